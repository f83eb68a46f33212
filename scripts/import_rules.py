"""Hold the source to the project's rules that no linter knows.

Each rule is a function that yields its breaches, as ``(path, line, text)``. The script prints them all and
ends with 1 if there is one.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "python" / "worker"
MAX_LINES = 450
MAX_ARROWS = 90
CORES = ("worker._native", "worker._core.pure")

# The rooms: modules and packages at the top of the package, each with the rooms that it may import, inside of
# a function or for type checking too. A room only imports rooms above it, so there is no cycle.
ROOMS: dict[str, str] = {
    "_native": "",
    "constants": "",
    "_system": "",
    "_core": "_native constants",
    "settings": "_core _system constants",
    "_state": "_core constants settings",
    "_control": "_core",
    "_inspect": "_control _core _state _system constants",
    "_child": "_core _state _system settings",
    "_reload": "_core _state constants settings",
    "loader": "",
    "state": "_state",
    "multiplexer": "_control _state constants state",
    "serve": "_child _state constants loader multiplexer",
    "reloader": "_child _control _core _reload loader",
    "inspector": "_child _inspect constants",
    "_spawn": "_child",
    "process": "_spawn _state constants settings",
    "_supervisor": "_child _control _core _spawn _state _system constants process settings",
    "restarter": "constants",
    "manager": "_inspect _supervisor constants process restarter settings",
    "integration": "_child _spawn _state _supervisor _system settings",
    "cli": "_core _reload _spawn _system integration loader serve settings",
    "__init__": "_child _core cli constants inspector integration loader manager multiplexer process "
    "reloader restarter serve state",
    "__main__": "cli",
}
DYNAMIC_IMPORTS = {"import_module", "__import__"}


class Breach(NamedTuple):
    """One place where a rule is broken."""

    path: Path
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line}: {self.text}"


class Import(NamedTuple):
    """One name that a module imports, in full, e.g. ``worker.state.SharedState``."""

    name: str
    line: int
    dynamic: bool = False

    def is_of(self, module: str) -> bool:
        """Whether this imports the module, or something in it."""
        return self.name == module or self.name.startswith(module + ".")


def imports(path: Path) -> Iterator[Import]:
    """Yield the imports of a module of the package, anywhere in it, relative and dynamic imports included."""
    package = ["worker", *path.relative_to(PACKAGE).parent.parts]
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *filter(None, [node.module])])
            for alias in node.names:
                yield Import(f"{module}.{alias.name}", node.lineno)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in DYNAMIC_IMPORTS and isinstance(node.args[0].value, str):
                yield Import(node.args[0].value, node.lineno, dynamic=True)


def pyo3_stays_in_python() -> Iterator[Breach]:
    """Rust outside ``src/python/`` names no pyo3, ``lib.rs`` excepted."""
    for path in sorted((ROOT / "src").rglob("*.rs")):
        inside = path.relative_to(ROOT / "src")
        if inside.parts[0] == "python" or inside == Path("lib.rs"):
            continue
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if re.search(r"\bpyo3\b", line):
                yield Breach(path, number, "pyo3 has its place in src/python/")


def room_of(path: Path) -> str:
    """The room that a file lies in."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def arrows() -> dict[tuple[str, str], Breach]:
    """Return each import of one room by another, with the first place that it stands in."""
    found: dict[tuple[str, str], Breach] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        for imported in imports(path):
            if imported.is_of("worker"):
                name = f"{imported.name}.".split(".")[1]
                room, target = room_of(path), name if name in ROOMS else "__init__"
                if room != target:
                    found.setdefault((room, target), Breach(path, imported.line, f"{room} imports {target}"))
    return found


def rooms_import_what_they_may() -> Iterator[Breach]:
    """A room imports only the rooms that the table allows, each of which stands above it."""
    above: list[str] = []
    for room, allowed in ROOMS.items():
        for target in set(allowed.split()) - set(above):
            yield Breach(Path(__file__), 1, f"{target} does not stand above {room}: a cycle")
        above.append(room)
    found = arrows()
    for (room, target), place in found.items():
        if target not in ROOMS.get(room, "").split():
            yield place._replace(text=f"{place.text}, which the table does not allow")
    for room, allowed in ROOMS.items():
        for target in allowed.split():
            if (room, target) not in found:
                yield Breach(Path(__file__), 1, f"{room} does not import {target}; the table allows it")
    if len(found) > MAX_ARROWS:
        yield Breach(Path(__file__), 1, f"{len(found)} arrows between rooms, {MAX_ARROWS} are allowed")


def modules_import_in_one_direction() -> Iterator[Breach]:
    """No module imports itself by way of others, for type checking neither."""
    paths = {
        ".".join(["worker", *path.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(".__init__"): path
        for path in PACKAGE.rglob("*.py")
    }
    graph: dict[str, set[str]] = {}
    for module, path in paths.items():
        names = [imported.name for imported in imports(path)]
        found = {name if name in paths else name.rpartition(".")[0] for name in names}
        # An import of the package itself is of its version, or lazy.
        graph[module] = (found & paths.keys()) - {module, "worker"}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        first, *others = reversed(error.args[1])
        yield Breach(paths[first], 1, f"a cycle of imports: {' imports '.join([first, *others])}")


def only_core_imports_a_core() -> Iterator[Breach]:
    """Only ``_core`` imports a core; only ``integration`` refers to the stock package, by name."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for imported in imports(path):
            if imported.name.startswith(CORES) and room_of(path) != "_core":
                yield Breach(path, imported.line, "only _core imports a core")
            by_name = imported.dynamic and room_of(path) == "integration"
            if imported.is_of("sanic.worker") and not by_name:
                yield Breach(path, imported.line, "integration alone touches sanic.worker, by name")


def files_are_short() -> Iterator[Breach]:
    """No file is longer than 450 lines, unless its first lines give the reason."""
    for folder in ("python", "src", "tests", "scripts", "examples", "benches"):
        for suffix in ("py", "pyi", "rs"):
            for path in sorted((ROOT / folder).rglob(f"*.{suffix}")):
                lines = path.read_text().splitlines()
                length = len(lines)
                if length > MAX_LINES and f"longer than {MAX_LINES} lines" not in "".join(lines[:6]):
                    yield Breach(path, length, f"{length} lines, {MAX_LINES} are allowed")


def tests_never_sleep() -> Iterator[Breach]:
    """A test waits for an event, never for a time."""
    for path in sorted((ROOT / "tests").rglob("*.py")):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if re.search(r"\bsleep\(", line):
                yield Breach(path, number, "a test waits for what happens, it does not sleep")


def main() -> int:
    """Print every breach; return the exit code."""
    rules = [
        pyo3_stays_in_python,
        rooms_import_what_they_may,
        modules_import_in_one_direction,
        only_core_imports_a_core,
        files_are_short,
        tests_never_sleep,
    ]
    breaches = [breach for rule in rules for breach in rule()]
    for breach in breaches:
        print(breach)
    print(f"{len(rules)} rules, {len(arrows())} arrows between rooms, {len(breaches)} breaches")
    return 1 if breaches else 0


if __name__ == "__main__":
    sys.exit(main())
