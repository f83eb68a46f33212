"""The terminal as ``top`` uses it: keys one by one, a screen of its own, and restored in every case."""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import tty
from contextlib import suppress
from time import monotonic
from types import FrameType, TracebackType
from typing import Any

__all__ = ["Terminal", "keys_in"]

ENTER_SCREEN = "\x1b[?1049h\x1b[?25l\x1b[2J"
LEAVE_SCREEN = "\x1b[?25h\x1b[?1049l"
HOME, CLEAR_LINE, CLEAR_BELOW = "\x1b[H", "\x1b[2K", "\x1b[J"

SEQUENCES = {
    b"\x1b[A": "up",
    b"\x1b[B": "down",
    b"\x1bOA": "up",
    b"\x1bOB": "down",
    b"\x1b[5~": "page up",
    b"\x1b[6~": "page down",
    b"\x1b[H": "home",
    b"\x1b[F": "end",
    b"\x1bOH": "home",
    b"\x1bOF": "end",
    b"\x1b[1~": "home",
    b"\x1b[4~": "end",
    b"\x1b[7~": "home",
    b"\x1b[8~": "end",
}
# A control sequence ends with a byte of this range.
FINAL = range(0x40, 0x7F)
ESCAPE = 0x1B
# The signals that end the command.
ENDS = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
# The longest wait for a terminal that takes no output, at the end, in seconds.
LEAVE_LIMIT = 0.5


def keys_in(data: bytes) -> list[str]:
    """Return the keys in the input of a terminal; sequences without a meaning here are left out."""
    keys = []
    while data:
        length = 1
        if data[0] == ESCAPE and data[1:2] in (b"[", b"O"):
            length = next((end for end in range(3, len(data) + 1) if data[end - 1] in FINAL), len(data))
        token, data = data[:length], data[length:]
        if token in SEQUENCES:
            keys.append(SEQUENCES[token])
        elif token == b"\x1b":
            keys.append("escape")
        elif token in (b"\r", b"\n"):
            keys.append("enter")
        elif length == 1:
            keys.append(token.decode("latin-1"))
    return keys


class Terminal:
    """The terminal of this process, as a context manager.

    At the end it is as before, also after an exception, Ctrl-C, Ctrl-\\, SIGTERM or SIGHUP. While the process
    is suspended (Ctrl-Z), it is as before, too.
    """

    def __init__(self) -> None:
        self._fd = sys.stdin.fileno()
        self._wakes, self._wake = os.pipe()
        os.set_blocking(self._wake, False)
        os.set_blocking(self._wakes, False)
        self._attributes: list[Any] = []
        self._handlers: dict[int, Any] = {}
        self._wakeup_fd = -1

    def __enter__(self) -> Terminal:
        self._attributes = termios.tcgetattr(self._fd)
        self._wakeup_fd = signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        handlers = {
            **dict.fromkeys(ENDS, _end),
            signal.SIGTSTP: self._suspend,
            signal.SIGWINCH: _pass,
        }
        self._handlers = {signum: signal.signal(signum, handler) for signum, handler in handlers.items()}
        try:
            self._enter()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Another signal must not end the process before the terminal is restored.
        held = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, *ENDS})
        # The terminal may be gone.
        with suppress(OSError, termios.error):
            self._leave()
        for signum, handler in self._handlers.items():
            signal.signal(signum, handler)
        signal.set_wakeup_fd(self._wakeup_fd)
        wake, self._wake = self._wake, -1
        os.close(self._wakes)
        os.close(wake)
        signal.pthread_sigmask(signal.SIG_SETMASK, held)

    @property
    def size(self) -> os.terminal_size:
        """The columns and lines; 80 by 24 if the terminal does not know."""
        with suppress(OSError):
            found = os.get_terminal_size(sys.stdout.fileno())
            if found.columns and found.lines:
                return found
        return os.terminal_size((80, 24))

    def wake(self) -> None:
        """End a wait for keys, from any thread."""
        # The pipe is full of wakes, or the terminal has been left.
        with suppress(OSError):
            os.write(self._wake, b"\0")

    def read_keys(self, timeout: float | None = None) -> list[str]:
        """Wait for keys, a wake, a signal or the end of ``timeout`` (seconds); return the keys.

        Raises:
            EOFError: The terminal was closed.
        """
        ready, _, _ = select.select([self._fd, self._wakes], [], [], timeout)
        if self._wakes in ready:
            with suppress(BlockingIOError):
                os.read(self._wakes, 4096)
        if self._fd not in ready:
            return []
        try:
            data = os.read(self._fd, 1024)
        except OSError as error:
            raise EOFError from error
        if not data:
            raise EOFError
        return keys_in(data)

    def draw(self, lines: list[str]) -> None:
        """Show lines, from the top of the screen on."""
        # A line is cleared first: afterwards the cursor may stand on its last character.
        text = "\r\n".join(CLEAR_LINE + line for line in lines)
        self._write(f"{HOME}{text}{CLEAR_BELOW if len(lines) < self.size.lines else ''}")

    def _enter(self) -> None:
        tty.setcbreak(self._fd)
        self._write(ENTER_SCREEN)

    def _leave(self) -> None:
        # A terminal that takes no output (Ctrl-S, a hung connection) must not keep the process.
        self._write(LEAVE_SCREEN, LEAVE_LIMIT)
        termios.tcsetattr(self._fd, termios.TCSANOW, self._attributes)

    def _suspend(self, signum: int, frame: FrameType | None) -> None:
        self._leave()
        ours = signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        signal.raise_signal(signal.SIGTSTP)
        # Goes on here when the shell continues it.
        signal.signal(signal.SIGTSTP, ours)
        self._enter()

    def _write(self, text: str, limit: float | None = None) -> None:
        """Write text; give up what the terminal does not take within ``limit`` (seconds)."""
        # Not through a buffer, which would be flushed again at the end of the process.
        stdout = sys.stdout.fileno()
        data = text.encode(sys.stdout.encoding or "utf-8", "replace")
        if limit is None:
            while data:
                data = data[os.write(stdout, data) :]
            return
        deadline = monotonic() + limit
        os.set_blocking(stdout, False)
        try:
            while data and select.select([], [stdout], [], max(0.0, deadline - monotonic()))[1]:
                data = data[os.write(stdout, data) :]
        except BlockingIOError:
            pass
        finally:
            os.set_blocking(stdout, True)


def _end(signum: int, frame: FrameType | None) -> None:
    # The exit code of a shell for a process that was ended by a signal.
    raise SystemExit(128 + signum)


def _pass(signum: int, frame: FrameType | None) -> None:
    """Do nothing: the wakeup descriptor ends the wait, and the next frame has the new size."""
