"""Hold the source to the project's rules that no linter knows.

Each rule is a function that yields its breaches, as ``(path, line, text)``. The script prints them all and
ends with 1 if there is one.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "python" / "worker"
MAX_LINES = 450
LEAVES = {"constants"}
CORES = ("worker._native", "worker._core.pure")  # and the parts of the pure one
MAY_IMPORT_INTEGRATION = {"__init__", "cli"}
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


def modules_keep_their_place() -> Iterator[Breach]:
    """Only some modules import a core, the integration or the stock package; the leaves import nothing."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for imported in imports(path):
            within = "_core" in path.relative_to(PACKAGE).parts
            if imported.name.startswith(CORES) and not within:
                yield Breach(path, imported.line, "only _core imports a core")
            if imported.is_of("worker.integration") and path.stem not in MAY_IMPORT_INTEGRATION:
                allowed = ", ".join(sorted(MAY_IMPORT_INTEGRATION))
                yield Breach(path, imported.line, f"only {allowed} import integration")
            by_name = imported.dynamic and path.stem == "integration"
            if imported.is_of("sanic.worker") and not by_name:
                yield Breach(path, imported.line, "integration alone touches sanic.worker, by name")
            leafward = any(imported.is_of(f"worker.{leaf}") for leaf in LEAVES)
            if path.stem in LEAVES and imported.is_of("worker") and not leafward:
                yield Breach(path, imported.line, "constants imports nothing of the package")


def files_are_short() -> Iterator[Breach]:
    """No file is longer than a reader can keep in mind."""
    for folder in ("python", "src", "tests", "scripts", "examples", "benches"):
        for suffix in ("py", "pyi", "rs"):
            for path in sorted((ROOT / folder).rglob(f"*.{suffix}")):
                length = len(path.read_bytes().splitlines())
                if length > MAX_LINES:
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
        modules_keep_their_place,
        files_are_short,
        tests_never_sleep,
    ]
    breaches = [breach for rule in rules for breach in rule()]
    for breach in breaches:
        print(breach)
    print(f"{len(rules)} rules, {len(breaches)} breaches")
    return 1 if breaches else 0


if __name__ == "__main__":
    sys.exit(main())
