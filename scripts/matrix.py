"""Run the tests with the release wheel on each supported Sanic, or on each other CPython found here.

``matrix.py sanic|pythons|libraries [-- pytest arguments]``. The integration tests show the differences
between releases of Sanic. The others, and some integration tests, show those between interpreters.
``libraries`` is a row of one cell: the libraries that a preloaded application may import. Every cell runs,
even if one before it failed; the exit code is 1 if any failed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from environments import DEPENDENCIES, INTERPRETER, ROOT, TEST_GROUP, Environment

SANIC_LINES = ("23.12", "24.12", "25.12")
PYTHON_MINORS = range(10, 15)
# The folders of tests, but for those that need whole servers.
ROOMS = ("child", "command", "control", "core", "inspector", "reload", "spawn", "state", "system")
TESTS = {
    # The long ones too: some of them differ between releases.
    "sanic": ["tests/integration", "-m", "not soak and not chaos and not browser"],
    "pythons": [
        *(f"tests/{room}" for room in ROOMS),
        "tests/supervisor",
        *("tests/test_manager.py", "tests/test_process.py", "tests/test_serve.py", "tests/test_surface.py"),
        "tests/integration/test_cluster.py",
        "tests/integration/test_start_methods.py",
        "tests/integration/test_stopping.py",
    ],
    "libraries": ["tests/libraries", "-m", "libraries"],
}
PROBE = "import platform, sys; print(platform.python_implementation(), sys.version_info[:2], sys.executable)"


def find_python(minor: int) -> str | None:
    """Return the path of a working CPython 3.``minor``, from PATH or from pyenv; None if there is none."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    candidates = [shutil.which(f"python3.{minor}"), *sorted(pyenv.glob(f"3.{minor}.*/bin/python"))]
    for candidate in candidates:
        if candidate is None:
            continue
        probe = subprocess.run([candidate, "-c", PROBE], capture_output=True, text=True, check=False)
        expected = f"CPython (3, {minor}) "
        if probe.returncode == 0 and probe.stdout.startswith(expected):
            return str(probe.stdout).removeprefix(expected).strip()
    return None


def sanic_cells() -> Iterator[tuple[str, Environment]]:
    """Yield one environment for each supported line of Sanic, on the interpreter that runs this."""
    for line in SANIC_LINES:
        # The extensions of one line import names that only that line's Sanic has.
        extensions = [f"sanic-ext=={line}.*", "pydantic"]
        requirements = [*DEPENDENCIES, f"sanic=={line}.*", *TEST_GROUP, *extensions]
        yield f"Sanic {line}", Environment(f"sanic-{line}", INTERPRETER, requirements)


def python_cells() -> Iterator[tuple[str, Environment]]:
    """Yield one environment for each other CPython found, with the newest Sanic; print those left out."""
    for minor in PYTHON_MINORS:
        if minor == sys.version_info.minor:
            print(f"CPython 3.{minor}: runs this, left out; `make test` covers it", flush=True)
            continue
        interpreter = find_python(minor)
        if interpreter is None:
            print(f"CPython 3.{minor}: not found here, left out", flush=True)
            continue
        requirements = [*DEPENDENCIES, *TEST_GROUP]
        yield f"CPython 3.{minor}", Environment(f"python-3.{minor}", interpreter, requirements)


def library_cells() -> Iterator[tuple[str, Environment]]:
    """Yield one environment with the libraries that a preloaded application may import."""
    libraries = ["--group", f"{ROOT / 'pyproject.toml'}:libraries"]
    requirements = [*DEPENDENCIES, *TEST_GROUP, *libraries]
    yield "libraries", Environment("libraries", INTERPRETER, requirements)


def describe(environment: Environment) -> str:
    """Return the installed versions; :class:`SystemExit` if the package is not the wheel's."""
    file, python, sanic = environment.evaluate(
        "import platform, sanic, worker",
        "print(worker.__file__, platform.python_version(), sanic.__version__)",
    ).split()
    if not Path(file).is_relative_to(environment.path):
        raise SystemExit(f"{file} is not the installed wheel")
    return f"CPython {python}, Sanic {sanic}"


ROWS = {"sanic": sanic_cells, "pythons": python_cells, "libraries": library_cells}


def main() -> int:
    """Run one row of the matrix; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("row", choices=[*ROWS])
    parser.add_argument("pytest", nargs="*")
    arguments = parser.parse_args()
    results = []
    for name, environment in ROWS[arguments.row]():
        environment.install_wheel()
        print(f"=== {name}: {describe(environment)}", flush=True)
        began = time.monotonic()
        code = environment.run_python("-m", "pytest", "-q", *TESTS[arguments.row], *arguments.pytest)
        results.append((name, code, time.monotonic() - began))
    for name, code, seconds in results:
        print(f"{name:15} {'passed' if code == 0 else f'FAILED ({code})':12} {seconds:6.1f} s")
    return 1 if not results or any(code for _, code, _ in results) else 0


if __name__ == "__main__":
    sys.exit(main())
