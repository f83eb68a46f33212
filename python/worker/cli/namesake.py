"""Explains the failed import of another module named ``worker``, which an application may have.

Once this package is imported, ``import worker`` finds it everywhere in the process. A module of the
application with the same name cannot be imported, and the error would not show the reason.

Every process imports this module, before any other: what only an error needs is imported on use.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec
    from pathlib import Path

__all__ = ["NamesakeAttributeError", "NamesakeError", "find", "refusal", "where"]

PACKAGE = "worker"
OURS = os.path.realpath(os.path.join(os.path.dirname(__file__), os.pardir))


class NamesakeError(ImportError):
    """A module of another ``worker`` than this package was imported."""


class NamesakeAttributeError(AttributeError):
    """An attribute of another ``worker`` than this package was requested."""


def find(*more: str) -> Path | None:
    """Return the file or folder that would be imported in place of this package; ``None`` for none.

    Args:
        *more (str): Directories that are searched after those of ``sys.path``.
    """
    from importlib.machinery import PathFinder
    from pathlib import Path

    folders: list[Path] = []
    for entry in (*sys.path, *more):
        spec = PathFinder.find_spec(PACKAGE, [entry])
        if spec is None:
            continue
        if spec.origin is not None:
            namesake = Path(spec.origin)
            # Another copy of this package is no namesake.
            if not (namesake.parent / "_core" / "choose.py").exists():
                return namesake
        else:
            folders += [*map(Path, spec.submodule_search_locations or ())]
    # Python prefers every other kind to a folder without __init__.py. An import needs a module in it.
    return next((folder for folder in folders if any(folder.rglob("*.py"))), None)


def refusal(namesake: Path) -> str:
    """Return why this package and another ``worker`` cannot be used together, and the remedy."""
    kind = "folder" if namesake.is_dir() or namesake.name == "__init__.py" else "file"
    return (
        f"{namesake} has the name of the package that sanic-worker installs: an application that "
        f"imports `{PACKAGE}` would get one and mean the other. Rename that {kind}."
    )


def where(error: BaseException) -> str:
    """Return the line of the application that raised an error, as ``file:line``."""
    from traceback import walk_tb

    theirs = [
        f"{frame.f_code.co_filename}:{line}"
        for frame, line in walk_tb(error.__traceback__)
        if not frame.f_globals.get("__name__", "").startswith((PACKAGE, "importlib"))
    ]
    return theirs[-1] if theirs else ""


def missing_attribute(name: str) -> AttributeError:
    """Return the error for an attribute that this package lacks."""
    text = f"module {PACKAGE!r} has no attribute {name!r}"
    namesake = None if name.startswith("__") else find()
    if namesake is None:
        return AttributeError(text, name=name, obj=sys.modules[PACKAGE])
    return NamesakeAttributeError(f"{text}. {refusal(namesake)}", name=name, obj=sys.modules[PACKAGE])


class Finder:
    """The last finder in ``sys.meta_path``: it is called for modules that no other finder has found."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Raise an explanation for a missing module that another ``worker`` may have; never find one."""
        package, _, rest = name.partition(".")
        if package == PACKAGE and rest and not rest.startswith("_") and (namesake := find()):
            raise NamesakeError(f"There is no module {name} in {OURS}. {refusal(namesake)}", name=name)
        return None
