"""The memory of the state if the system refuses the usual file."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from support.running import python

pytestmark = [pytest.mark.native, pytest.mark.slow]

REFUSED = """
import errno, os, sys
from multiprocessing import Process, set_start_method

REASON = sys.argv[1] if len(sys.argv) > 1 else ""


def refuse(*args):
    raise OSError(getattr(errno, REASON), os.strerror(getattr(errno, REASON)))


def child(state):
    state.update_entry("a", {"child": True})


if __name__ == "__main__":
    if REASON:
        os.memfd_create = refuse
    else:
        del os.memfd_create
    set_start_method("spawn")
    from worker._state.shared import SharedState

    state = SharedState()
    state["a"] = {"x": 1}
    process = Process(target=child, args=(state,))
    process.start()
    process.join()
    file = os.fstat(state._memory)
    path = os.readlink(f"/proc/self/fd/{state._memory}")
    print(path.startswith("/memfd:"), file.st_nlink, oct(file.st_mode))
    print(os.get_inheritable(state._memory), state["a"])
"""


@pytest.mark.parametrize("reason", ["EPERM", "ENOSYS", ""])
def test_an_unlinked_file_replaces_anonymous_memory(reason: str, tmp_path: Path) -> None:
    assert not reason or hasattr(errno, reason)
    ended = python(REFUSED, *filter(None, [reason]), cwd=tmp_path)
    assert ended.stderr == ""
    assert ended.stdout.splitlines() == ["False 0 0o100600", "False {'x': 1, 'child': True}"]


FILTERED = """
import ctypes, os, struct

# Of system calls: memfd_create is refused with EPERM, whatever calls it.
NUMBER = {"x86_64": 319, "aarch64": 279}[os.uname().machine]
code = [(0x20, 0, 0, 0), (0x15, 0, 1, NUMBER), (0x06, 0, 0, 0x00050001), (0x06, 0, 0, 0x7FFF0000)]
program = b"".join(struct.pack("HBBI", *one) for one in code)
kept = ctypes.create_string_buffer(program)
filter = struct.pack("HxxxxxxP", len(code), ctypes.addressof(kept))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, ctypes.c_char_p(filter), 0, 0) == 0, ctypes.get_errno()
try:
    os.memfd_create("x")
except PermissionError:
    print("refused")

from worker._state.shared import SharedState

state = SharedState()
state["a"] = {"x": 1}
print(state.copy())
"""


def test_anonymous_memory_refused_by_a_seccomp_filter(tmp_path: Path) -> None:
    if os.uname().machine not in ("x86_64", "aarch64"):
        pytest.skip("which number the call has is known for two machines")
    ended = python(FILTERED, cwd=tmp_path)
    assert ended.stderr == ""
    assert ended.stdout.splitlines() == ["refused", "{'a': {'x': 1}}"]
