"""Run a command as the terminal's foreground job, and end with its status.

``make`` that is interrupted ends with an error, regardless of its recipe. So the command gets a process group
of its own and the terminal with it, as in a shell: Ctrl-C and Ctrl-Z reach the command, and ``make`` learns
of them only through this script. Without a terminal the command replaces this script.
"""

from __future__ import annotations

import os
import signal
import sys

TERMINAL = 0


def has_terminal() -> bool:
    """Whether standard input is a terminal whose foreground job is this one."""
    try:
        return os.tcgetpgrp(TERMINAL) == os.getpgrp()
    except OSError:
        return False


def start(command: list[str]) -> int:
    """Start the command in a process group of its own, which owns the terminal; return its pid."""
    pid = os.fork()
    if pid == 0:
        os.setpgid(0, 0)
        os.tcsetpgrp(TERMINAL, os.getpid())
        signal.signal(signal.SIGTTOU, signal.SIG_DFL)
        os.execvp(command[0], command)
    return pid


def supervise(pid: int) -> int:
    """Hand the terminal to and fro as the job stops and continues; return its exit code."""
    for forwarded in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(forwarded, lambda number, _frame: os.kill(pid, number))
    while True:
        _, status = os.waitpid(pid, os.WUNTRACED)
        os.tcsetpgrp(TERMINAL, os.getpgrp())
        if not os.WIFSTOPPED(status):
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code
        os.kill(0, signal.SIGTSTP)
        os.tcsetpgrp(TERMINAL, pid)
        os.killpg(pid, signal.SIGCONT)


def main() -> int:
    """Run ``sys.argv[1:]``."""
    command = sys.argv[1:]
    sys.stdout.flush()
    if not has_terminal():
        os.execvp(command[0], command)
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    return supervise(start(command))


if __name__ == "__main__":
    sys.exit(main())
