"""A main process on a terminal: the terminal's end stops the server, any other SIGHUP reloads it."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.running import command, environment, lives, until, wait_for_end

pytestmark = pytest.mark.operations

SERVER = """
import logging, os, sys
from pathlib import Path
from support.running import House

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    logging.basicConfig(filename=folder / "log", level=logging.INFO, format="%(message)s")
    house = House(folder)

    def act():
        house.said("ready")
        (folder / "pid").write_text(str(os.getpid()))

    try:
        house.run(act, stops=False)
    finally:
        logging.info("Main has ended.")
"""


class Shell:
    """An interactive bash on a terminal of its own, in which a server is started."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        self.server = 0
        self._program = " ".join(command(SERVER, str(folder), cwd=folder))
        self.pid, self._terminal = pty.fork()
        if self.pid == 0:
            os.execvpe("bash", ["bash", "--norc", "--noprofile", "-i", *options], environment())
        self._open = True

    def type(self, line: str) -> None:
        """Type a line."""
        os.write(self._terminal, line.encode() + b"\n")

    def start(self, line: str = "{}") -> None:
        """Type the command that runs the server, and wait until it serves."""
        self.type(line.format(self._program))

        def look() -> str:
            # Unread output would block the shell.
            while select.select([self._terminal], [], [], 0)[0]:
                os.read(self._terminal, 4096)
            path = self.folder / "pid"
            return path.read_text() if path.exists() else ""

        self.server = int(until(look, "a server that serves"))

    def logged(self, text: str) -> None:
        """Wait until the server has logged this."""
        until(lambda: text in (self.folder / "log").read_text(), f"{text!r} in the log")

    def stop(self) -> None:
        """Stop the running server."""
        os.kill(self.server, signal.SIGTERM)
        self.logged("Received signal SIGTERM. Shutting down.\n")
        wait_for_end(self.server)

    def has_reloaded(self) -> bool:
        """Whether the server has taken a SIGHUP for this."""
        return "Received signal SIGHUP.\n" in (self.folder / "log").read_text()

    def hang_up(self) -> None:
        """Close the terminal."""
        if self._open:
            os.close(self._terminal)
        self._open = False

    def close(self) -> None:
        """End all processes that are left."""
        for pid in (self.server, self.pid):
            if pid and lives(pid):
                os.kill(pid, signal.SIGKILL)
        self.hang_up()
        os.waitpid(self.pid, 0)


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    """A shell on a terminal."""
    with contextlib.closing(Shell(tmp_path)) as made:
        yield made


@pytest.mark.parametrize("line", ["{}", "{} &"])
def test_closing_the_terminal_stops_the_server(shell: Shell, line: str) -> None:
    shell.start(line)
    shell.hang_up()
    wait_for_end(shell.server)
    shell.logged("Received signal SIGHUP. Shutting down.\n")
    shell.logged("Main has ended.\n")
    assert not shell.has_reloaded()


def test_the_end_of_the_shell_stops_a_server_in_the_foreground(shell: Shell) -> None:
    shell.start()
    os.kill(shell.pid, signal.SIGKILL)
    wait_for_end(shell.server)
    shell.logged("Main has ended.\n")


def test_a_shell_with_huponexit_stops_the_server(tmp_path: Path) -> None:
    """The signal comes while the terminal is still there; it is gone a moment later."""
    with contextlib.closing(Shell(tmp_path, "-l")) as shell:
        shell.start("shopt -s huponexit; {} &")
        shell.type("exit")
        wait_for_end(shell.server)
        shell.logged("Main has ended.\n")


@pytest.mark.parametrize("line", ["{}", "{} &"])
def test_sighup_from_another_process_reloads(shell: Shell, line: str) -> None:
    shell.start(line)
    os.kill(shell.server, signal.SIGHUP)
    shell.logged("Received signal SIGHUP.\n")
    shell.stop()


def test_a_server_under_nohup_ignores_sighup(shell: Shell) -> None:
    shell.start("nohup {} >/dev/null 2>&1 &")
    shell.hang_up()
    wait_for_end(shell.pid)
    os.kill(shell.server, signal.SIGHUP)
    os.kill(shell.server, signal.SIGTTIN)
    shell.logged("Scaling from 1 to 2 workers\n")
    assert not shell.has_reloaded()
    shell.stop()


def test_sighup_reloads_a_server_without_a_terminal(shell: Shell) -> None:
    shell.start("setsid {} &")
    shell.hang_up()
    wait_for_end(shell.pid)
    os.kill(shell.server, signal.SIGHUP)
    shell.logged("Received signal SIGHUP.\n")
    shell.stop()
