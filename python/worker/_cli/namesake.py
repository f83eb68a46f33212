"""Explains an import that meant another module: the application may have a ``worker`` of its own.

Once this package is imported, ``import worker`` gets it everywhere in the process. What the application has
under the same name is out of reach: an import from it fails, and the reason is not to be seen.
"""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from traceback import walk_tb
from typing import Any

__all__ = ["NamesakeAttributeError", "NamesakeError", "find", "refusal", "where"]

PACKAGE = "worker"
OURS = Path(__file__).parent.parent.resolve()


class NamesakeError(ImportError):
    """A module of another ``worker`` than this package was meant."""


class NamesakeAttributeError(AttributeError):
    """An attribute of another ``worker`` than this package was meant."""


def find(*more: str) -> Path | None:
    """Return the file or folder that would be imported if this package were not there; ``None`` for none.

    Args:
        *more (str): Directories that are searched after those of ``sys.path``.
    """
    folders: list[Path] = []
    for entry in (*sys.path, *more):
        spec = PathFinder.find_spec(PACKAGE, [entry])
        if spec is None:
            continue
        if spec.origin is not None:
            namesake = Path(spec.origin)
            # Another copy of this package is none.
            if not (namesake.parent / "_core" / "choose.py").exists():
                return namesake
        else:
            folders += [*map(Path, spec.submodule_search_locations or ())]
    # A folder without __init__.py comes after all that have one. An import needs a module in it.
    return next((folder for folder in folders if any(folder.rglob("*.py"))), None)


def refusal(namesake: Path) -> str:
    """Return why this package and another ``worker`` cannot be used together, and what to do."""
    kind = "folder" if namesake.is_dir() or namesake.name == "__init__.py" else "file"
    return (
        f"{namesake} has the name of the package that sanic-worker installs: an application that "
        f"imports `{PACKAGE}` would get one and mean the other. Rename that {kind}."
    )


def where(error: BaseException) -> str:
    """Return the line of the application that raised an error, as ``file:line``."""
    theirs = [
        f"{frame.f_code.co_filename}:{line}"
        for frame, line in walk_tb(error.__traceback__)
        if not frame.f_globals.get("__name__", "").startswith((PACKAGE, "importlib"))
    ]
    return theirs[-1] if theirs else ""


def missing_attribute(name: str) -> AttributeError:
    """Return the error for an attribute that this package has not."""
    text = f"module {PACKAGE!r} has no attribute {name!r}"
    namesake = None if name.startswith("__") else find()
    if namesake is None:
        return AttributeError(text, name=name, obj=sys.modules[PACKAGE])
    return NamesakeAttributeError(f"{text}. {refusal(namesake)}", name=name, obj=sys.modules[PACKAGE])


class Finder:
    """Comes last in ``sys.meta_path``: it is asked for what nobody else has found."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Explain where a module is missing that another ``worker`` may have; never find one."""
        package, _, rest = name.partition(".")
        if package == PACKAGE and rest and not rest.startswith("_") and (namesake := find()):
            raise NamesakeError(f"There is no module {name} in {OURS}. {refusal(namesake)}", name=name)
        return None
