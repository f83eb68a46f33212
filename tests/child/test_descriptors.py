"""The descriptors 0 to 2: no file of this package ever takes one of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.running import command, environment

pytestmark = pytest.mark.slow

PROGRAM = """
    import json, os, sys
    from multiprocessing import get_context
    import worker
    from worker._spawn.preload.preloads import preloads
    from worker._spawn.processes import factory
    from worker.settings import resolve
    from worker._state.shared import SharedState

    def files() -> list:
        return [os.readlink(f"/proc/self/fd/{fd}") for fd in range(3)]

    def target(state, path) -> None:
        print("x", file=sys.stderr)
        with open(path, "w") as file:
            json.dump(files(), file)

    if __name__ == "__main__":
        folder, method = sys.argv[1:]
        is_native = worker.core_info().core == "native"
        state = SharedState() if is_native else {}
        state["Sanic-Server-0-0"] = {"pid": 1}
        make = factory(get_context(method), resolve({"graceful_timeout": 5}))
        kwargs = {"state": state, "path": folder + "/child"}
        process = make(name="x", target=target, kwargs=kwargs, daemon=True)
        process.start()
        process.join()
        assert state["Sanic-Server-0-0"]["pid"] == 1
        with open(folder + "/main", "w") as file:
            json.dump(files(), file)
        preloads.reset()
        if is_native:
            state.close()
    """


@pytest.mark.parametrize(
    ("closed", "method", "core"),
    [
        ([2], "spawn", "native"),
        ([0, 1, 2], "spawn", "native"),
        ([0, 1, 2], "fork", "native"),
        ([0, 1, 2], "forkserver", "native"),
        ([0, 1, 2], "fork", "pure"),
    ],
)
def test_closed_descriptors_become_the_null_device(
    closed: list[int], method: str, core: str, tmp_path: Path
) -> None:
    def begin() -> None:
        for fd in closed:
            os.close(fd)

    main = subprocess.run(
        command(PROGRAM, str(tmp_path), method, cwd=tmp_path),
        cwd=tmp_path,
        env=environment({"WORKER_CORE": core}),
        stdin=subprocess.DEVNULL,
        preexec_fn=begin,
        timeout=60,
    )
    assert main.returncode == 0
    for who in ("main", "child"):
        text = (tmp_path / who).read_text()
        assert text.count("/dev/null") >= len(closed), (who, text)
        assert "memfd" not in text and "pipe" not in text and "socket" not in text, (who, text)


def test_open_descriptors_are_kept() -> None:
    code = "import os, worker; print(*(os.readlink(f'/proc/self/fd/{fd}') for fd in range(3)))"
    reader, writer = os.pipe()
    with open(writer, "wb") as err:
        main = subprocess.run(
            [sys.executable, "-c", code],
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=err,
            text=True,
            check=True,
        )
        null, out, error = main.stdout.split()
        assert null == "/dev/null" and out.startswith("pipe:")
        assert error == os.readlink(f"/proc/self/fd/{reader}")
    os.close(reader)
