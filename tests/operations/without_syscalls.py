"""``without_syscalls.py NUMBER[,NUMBER...] COMMAND``: run a command to which these system calls are refused.

They fail with EPERM, as by the seccomp profile of a container.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys

PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
# Instructions of the filter: load the number of the call, compare it, return a verdict.
LOAD, SKIP_UNLESS_EQUAL, RETURN = 0x20, 0x15, 0x06
EPERM, ALLOW = 0x00050001, 0x7FFF0000


def refuse(numbers: list[int]) -> None:
    """Refuse system calls to this process and its children, for good."""
    steps = [(LOAD, 0, 0, 0)]
    for number in numbers:
        steps += [(SKIP_UNLESS_EQUAL, 0, 1, number), (RETURN, 0, 0, EPERM)]
    steps.append((RETURN, 0, 0, ALLOW))
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    header = ctypes.create_string_buffer(struct.pack("HP", len(steps), ctypes.addressof(program)))
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    for call in (PR_SET_NO_NEW_PRIVS, 1, 0), (PR_SET_SECCOMP, SECCOMP_MODE_FILTER, header):
        if prctl(*call, 0, 0):
            raise OSError(ctypes.get_errno(), "seccomp")


if __name__ == "__main__":
    refuse([int(number) for number in sys.argv[1].split(",")])
    os.execvp(sys.argv[2], sys.argv[2:])
