"""A server as PID 1 of a namespace of its own, as in a container; its mounts are its own, too."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path
from signal import SIGKILL, SIGTERM, Signals

import pytest
from integration.harness import Server
from integration.tools import MODULE, free_port, wait_until

# `--mount-proc` makes the mounts private: nothing that is mounted here is seen outside.
UNSHARE = ["unshare", "--fork", "--pid", "--mount-proc", "--kill-child"]

APPLICATION = """
import os
from sanic import Sanic, json

app = Sanic("contained")

@app.get("/whoami")
async def whoami(request):
    return json({"pid": os.getpid(), "uid": os.getuid()})
"""


def needs_namespaces(*flags: str) -> pytest.MarkDecorator:
    """Skip a test where this user may not make namespaces of these kinds."""
    can = (
        shutil.which("unshare")
        and not subprocess.run([*UNSHARE, *flags, "true"], capture_output=True).returncode
    )
    return pytest.mark.skipif(not can, reason="no PID and mount namespaces may be made here: this needs root")


class Contained(Server):
    """A server as PID 1 of a namespace.

    Args:
        cwd (Path): The directory with the application.
        *args (str): More arguments of the command.
        code (str): The application.
        setup (str): Commands of a shell that run before it in the namespace.
        runner (Sequence[str]): A command that runs the server.
        flags (Sequence[str]): More flags of ``unshare``.
        host (str): The host to listen on.
    """

    def __init__(
        self,
        cwd: Path,
        *args: str,
        code: str = APPLICATION,
        setup: str = "",
        runner: Sequence[str] = (),
        flags: Sequence[str] = (),
        env: dict[str, str] | None = None,
        host: str = "127.0.0.1",
    ) -> None:
        (cwd / "contained.py").write_text(textwrap.dedent(code))
        port = free_port()
        served = [
            sys.executable,
            "-m",
            MODULE,
            "contained:app",
            f"--host={host}",
            f"--port={port}",
            "--no-motd",
        ]
        shell = ["sh", "-ec", f'{setup}\nexec "$@"', "sh"]
        # A step that is slow only because the machine is busy is no finding here.
        env = {"SANIC_WORKER_SLOW_LOOP_WARNING": "off", **(env or {})}
        super().__init__([*UNSHARE, *flags, *shell, *runner, *served, *args], cwd=cwd, env=env, port=port)

    @property
    def init(self) -> int:
        """The pid of the main process, as it is seen outside of the namespace; 0 if it has exited."""
        with contextlib.suppress(OSError):
            text = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text()
            return int(text.split()[0]) if text else 0
        return 0

    def signal(self, number: Signals, to: str = "main") -> None:
        """Send a signal to the main process, from outside of the namespace."""
        if to != "main":
            super().signal(number, to)
            return
        wait_until(lambda: self.init or self.exit_code is not None, "a main process")
        # It may have exited.
        if init := self.init:
            with contextlib.suppress(ProcessLookupError):
                os.kill(init, number)

    def close(self) -> str:
        """End the namespace; return a list of leftovers."""
        if self.exit_code is None and (init := self.init):
            os.kill(init, SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(15)
        if self.exit_code is None and (init := self.init):
            # The kernel kills all processes of the namespace with it.
            os.kill(init, SIGKILL)
            self._process.wait(15)
            return f"the main process did not end within 15 s of SIGTERM; {super().close()}"
        return super().close()

    def answers(self) -> dict[str, int]:
        """Wait until a server answers; return its answer."""

        def look() -> dict[str, int]:
            assert self.exit_code is None, f"the server has ended with {self.exit_code}\n{self.log()}"
            with contextlib.suppress(OSError, HTTPException):
                found: dict[str, int] = self.get("/whoami", timeout=5)
                return found
            return {}

        return wait_until(look, "an answer", timeout=30)

    def children(self) -> dict[int, str]:
        """Return the state of each child of the main process, by the pid outside of the namespace."""
        found, init = {}, str(self.init)
        for entry in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                state, parent = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[:2]
                if parent == init:
                    found[int(entry)] = state
        return found
