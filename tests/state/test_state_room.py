"""The address space that the state takes."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from support.ports import hold_port
from support.running import python

MEBIBYTE = 1 << 20

pytestmark = [pytest.mark.native, pytest.mark.slow]


def run(code: str, limit: int | None = None) -> list[str]:
    """Run code in a process with this much address space; return the lines that it prints."""
    begin = "import errno, os, resource\n"
    if limit is not None:
        begin += f"resource.setrlimit(resource.RLIMIT_AS, ({limit}, {limit}))\n"
    command = [sys.executable, "-c", begin + textwrap.dedent(code)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.stderr == ""
    return ended.stdout.splitlines()


@pytest.mark.parametrize(
    ("limit", "size"),
    [
        (None, 1 << 30),
        (100 << 30, 1 << 30),
        (2000 * MEBIBYTE, 100 * MEBIBYTE),
        (1300 * MEBIBYTE, 65 * MEBIBYTE),
        # The smallest possible state.
        (150 * MEBIBYTE, 8 * MEBIBYTE),
    ],
)
def test_takes_a_twentieth_of_the_address_space(limit: int | None, size: int) -> None:
    code = """
        from worker._state.shared import SharedState
        state = SharedState()
        state["a"] = {"x": 1}
        print(os.fstat(state._memory).st_size, state["a"])
        """
    assert run(code, limit) == [f"{size} {{'x': 1}}"]


def test_a_requested_size_is_allocated_or_refused() -> None:
    code = """
        from worker._state.shared import SharedState
        state = SharedState(500 << 20)
        print(os.fstat(state._memory).st_size >> 20)
        try:
            SharedState(2 << 30)
        except OSError as error:
            print(error.errno == errno.ENOMEM, error)
        """
    text = (
        "True [Errno 12] Cannot allocate memory: the state of the workers, 2147483648 bytes "
        "(`state_max_bytes`)"
    )
    assert run(code, 1300 * MEBIBYTE) == ["500", text]


APPLICATION = """
import resource, sys

from sanic import Sanic

import worker

app = Sanic("roomy")


@app.get("/")
async def index(request): ...


@app.after_server_start
async def start(app):
    large = bytearray(int(sys.argv[2]))
    large[:: 1 << 12] = b"x" * len(large[:: 1 << 12])
    print("allocated", len(large), app.m.state["state"], flush=True)
    app.m.terminate()


if __name__ == "__main__":
    limit = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    worker.install()
    app.run(host="127.0.0.1", port=int(sys.argv[3]), workers=1, motd=False, access_log=False)
"""


@pytest.mark.parametrize(
    ("limit", "size"),
    [
        # An ordinary limit, most of which the application should have.
        (1300 * MEBIBYTE, 1000 * MEBIBYTE),
        # Stock does not start under less.
        (90 * MEBIBYTE, MEBIBYTE),
    ],
)
def test_an_application_has_room_under_a_limit(limit: int, size: int, tmp_path: Path) -> None:
    with hold_port() as held:
        port = held.getsockname()[1]
        ended = python(APPLICATION, str(limit), str(size), str(port), cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert f"allocated {size} ACKED" in ended.stdout
