"""Make virtual environments that hold the built wheel, and keep them under ``.venvs/``.

They are filled by the pip of the environment that runs the scripts, so they need none of their own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HOME = ROOT / ".venvs"
INTERPRETER: str = getattr(sys, "_base_executable", sys.executable)
"""The interpreter behind the environment that runs this."""
DEPENDENCIES = [
    "pathspec>=1",
    "prometheus-client>=0.22",
    "rich>=13",
    "sanic>=23.12",
    "setproctitle>=1.3",
    "shtab>=1.7",
    "watchfiles>=1",
]
TEST_GROUP = ["--group", f"{ROOT / 'pyproject.toml'}:test"]


def clean_environment() -> dict[str, str]:
    """Return the variables without those that would let a checkout or another venv show through."""
    hidden = {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"}
    return {name: value for name, value in os.environ.items() if name not in hidden}


def cores() -> tuple[str, ...]:
    """Return the cores to test: both, or the one that ``WORKER_CORE`` names."""
    chosen = os.environ.get("WORKER_CORE")
    return (chosen,) if chosen else ("native", "pure")


def wheel() -> Path:
    """Return the wheel that ``make dist`` built; :class:`SystemExit` if there is not exactly one."""
    found = list((ROOT / "dist").glob("*.whl"))
    if len(found) != 1:
        raise SystemExit(f"expected one wheel in dist/, found {len(found)}: run `make dist`")
    return found[0]


class Environment:
    """An environment ``.venvs/<name>`` of the given interpreter, with the given requirements.

    ``requirements`` are pip's arguments. An environment that was made for others, for another interpreter or
    from another ``pyproject.toml`` is made anew.
    """

    def __init__(self, name: str, interpreter: str, requirements: list[str]) -> None:
        self.path = HOME / name
        self.python = self.path / "bin" / "python"
        stamp = self.path / "stamp.json"
        wanted = json.dumps([interpreter, requirements, (ROOT / "pyproject.toml").read_text()])
        if not stamp.exists() or stamp.read_text() != wanted:
            print(f"making .venvs/{name}", flush=True)
            subprocess.run([interpreter, "-m", "venv", "--clear", "--without-pip", self.path], check=True)
            self.pip("install", *requirements)
            stamp.write_text(wanted)

    def pip(self, *arguments: str) -> None:
        """Run pip on this environment; :class:`subprocess.CalledProcessError` if it fails."""
        command = [sys.executable, "-m", "pip", "--quiet", "--python", str(self.python), *arguments]
        subprocess.run(command, check=True, cwd=ROOT)

    def install_wheel(self) -> None:
        """Install the present wheel into it, without asking any index."""
        self.pip("install", "--no-index", "--no-deps", "--force-reinstall", str(wheel()))

    def run_python(
        self, *arguments: str, cwd: Path = ROOT, variables: Mapping[str, str] | None = None
    ) -> int:
        """Run its interpreter in ``cwd`` with these variables added; return the exit code."""
        environment = clean_environment() | dict(variables or {})
        command = [str(self.python), *arguments]
        return subprocess.run(command, cwd=cwd, env=environment, check=False).returncode

    def evaluate(self, *lines: str) -> str:
        """Run these lines with it; return their output; fail if they do."""
        command = [str(self.python), "-c", "\n".join(lines)]
        environment = clean_environment()
        return str(subprocess.check_output(command, cwd=ROOT, env=environment, text=True))
