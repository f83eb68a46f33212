"""Programs in a terminal: on a pseudo-terminal of the test's own, or in ``tmux``."""

from __future__ import annotations

import fcntl
import os
import re
import select
import shlex
import signal
import struct
import subprocess
import sys
import termios
import uuid
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Any

from support.running import environment, until

# Longer than any step on a slow machine; reaching it is a failure.
LONG = 20.0
# The first terminal that the leader of a session opens becomes that of the session.
IN_SESSION = """
import os, sys
os.open(os.ttyname(0), os.O_RDWR | os.O_CLOEXEC)
os.execv(sys.argv[1], sys.argv[1:])
"""
ESCAPES = re.compile(r"\x1b(?:\[[0-9;?]*[A-Za-z]|[()][AB0]|[=>])")


class Terminal:
    """A program on a pseudo-terminal, as a context manager.

    Attributes:
        output: Everything that the program has written.
    """

    def __init__(self, *command: str, rows: int = 24, columns: int = 100) -> None:
        self._master, self._slave = os.openpty()
        self.resize(rows, columns)
        self.attributes = termios.tcgetattr(self._slave)
        self.output = ""
        slave = self._slave
        self.process = subprocess.Popen(
            [sys.executable, "-c", IN_SESSION, *command],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment({"TERM": "xterm-256color"}),
            start_new_session=True,
        )

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._master)
        os.close(self._slave)

    def resize(self, rows: int, columns: int) -> None:
        """Set the size; the program gets a SIGWINCH. Frames of another size do not count from then on."""
        self.rows = rows
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, keys: str) -> None:
        """Send keys."""
        os.write(self._master, keys.encode())

    def hold(self) -> None:
        """Take no more output, as after Ctrl-S: a program that writes is blocked."""
        termios.tcflow(self._slave, termios.TCOOFF)

    @property
    def frame(self) -> list[str]:
        """The lines of the last frame that was drawn as a whole, without colours."""
        for drawn in reversed(self.output.split("\x1b[H")[1:]):
            # The terminal adds a carriage return of its own.
            lines = ESCAPES.sub("", drawn).replace("\r", "").split("\n")
            if len(lines) == self.rows:
                return lines
        return []

    def shows(self, text: str) -> list[str]:
        """Wait until the last frame contains a text; return the frame."""
        return self.until(lambda frame: text in "\n".join(frame), repr(text))

    def until(self, fits: Callable[[list[str]], object], what: str) -> list[str]:
        """Wait until the last frame is as wanted; return it."""
        deadline = monotonic() + LONG
        while not (frame := self.frame) or not fits(frame):
            shown = f"{what} is not shown; last frame: {frame}; {self.output[-500:]!r}"
            assert self._read(deadline), shown
        return frame

    def ended(self) -> int:
        """Wait for the end of the program; return its exit code."""
        deadline = monotonic() + LONG
        # A terminal whose output is not read takes no more of it.
        while (code := self.process.poll()) is None:
            assert monotonic() < deadline, f"it has not ended; {self.output[-500:]!r}"
            self._read(monotonic() + 0.02)
        while self._read(monotonic()):
            pass
        return code

    @property
    def is_restored(self) -> bool:
        """Whether the terminal is as it was before the program."""
        screen = re.findall(r"\x1b\[\?(1049|25)([hl])", self.output)
        left = dict(screen) == {"1049": "l", "25": "h"}
        return left and termios.tcgetattr(self._slave) == self.attributes

    def _read(self, deadline: float) -> bool:
        ready, _, _ = select.select([self._master], [], [], max(0.0, deadline - monotonic()))
        if ready:
            self.output += os.read(self._master, 65536).decode(errors="replace")
        return bool(ready)


class Tmux:
    """A shell in a ``tmux`` server of its own, as a context manager."""

    def __init__(self, folder: Path, *, rows: int = 24, columns: int = 100) -> None:
        self._name = f"test-{uuid.uuid4().hex[:12]}"
        self._env = environment({"TMUX_TMPDIR": str(folder)})
        self._env.pop("TMUX", None)
        size = ["-x", str(columns), "-y", str(rows)]
        shell = shlex.join(["env", "PS1=READY$ ", "bash", "--norc", "--noprofile", "-i"])
        self._run("-f", "/dev/null", "new-session", "-d", *size, shell)
        self.pid = int(self._run("display-message", "-p", "#{pid}"))

    def __enter__(self) -> Tmux:
        try:
            self.shows("READY$")
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pidfd = os.pidfd_open(self.pid)
        try:
            signal.pidfd_send_signal(pidfd, signal.SIGTERM)
            select.select([pidfd], [], [], LONG)
        finally:
            os.close(pidfd)

    def type(self, *keys: str) -> None:
        """Send keys, by their names in tmux."""
        self._run("send-keys", *keys)

    @property
    def screen(self) -> str:
        """The text on the screen."""
        return self._run("capture-pane", "-p")

    def shows(self, text: str, count: int = 1, timeout: float = LONG) -> str:
        """Wait until the screen contains a text, at least this often; return the screen."""
        seen: list[str] = []

        def look() -> bool:
            seen[:] = [self.screen]
            return seen[0].count(text) >= count

        until(look, f"{text!r} on the screen", timeout)
        return seen[0]

    def _run(self, *args: str) -> str:
        command: list[Any] = ["tmux", "-L", self._name, *args]
        done = subprocess.run(command, env=self._env, capture_output=True, text=True, timeout=LONG)
        assert done.returncode == 0, done
        return done.stdout
