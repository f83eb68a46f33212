"""As PID 1 or as a subreaper, the main process collects the orphans of its workers only."""

from __future__ import annotations

import asyncio
import ctypes
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.running import House, command, environment, lives, until

pytestmark = pytest.mark.slow

PR_SET_CHILD_SUBREAPER = 36


@pytest.fixture
def _subreaper() -> Iterator[None]:
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    assert prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
    yield
    assert prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0) == 0


def zombies() -> set[int]:
    """Return the zombies of this process."""
    found = set()
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            stat = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if stat[0] == "Z" and int(stat[1]) == os.getpid():
            found.add(int(entry))
    return found


def start_others() -> tuple[list[subprocess.Popen[bytes]], int]:
    """Start children as a listener in the main process might; they exit with 7, and are not collected yet."""
    ends = [sys.executable, "-c", "import os; os._exit(7)"]
    others = [subprocess.Popen(ends), subprocess.Popen(ends, start_new_session=True)]
    forked = os.fork()
    if forked == 0:
        os._exit(7)
    until(lambda: {forked, *(one.pid for one in others)} <= zombies(), "the ends of others")
    return others, forked


@pytest.mark.usefixtures("_subreaper")
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_orphans_of_workers_are_collected(method: str, tmp_path: Path) -> None:
    house = House(tmp_path, "leaves_orphans", number=2, method=method, restart_policy="always")

    def act() -> None:
        house.said("ready", 2)
        house.all_acked()
        others, forked = start_others()
        house.plan("serves")
        first, second = house.said("ready")
        orphans = {said.pid for said in house.said("orphan", 2)}
        assert all(map(lives, orphans))
        # The orphan of the living worker has exited as well when the other worker is killed.
        house.open_gate(2)
        until(lambda: orphans <= zombies(), "the ends of the orphans")
        os.kill(first.pid, signal.SIGKILL)
        house.said("ready", 3)
        expected = {forked, *(one.pid for one in others)}
        until(lambda: zombies() <= expected, "no zombie but those of others")
        assert zombies() == expected
        assert [one.wait() for one in others] == [7, 7]
        assert os.waitstatus_to_exitcode(os.waitpid(forked, 0)[1]) == 7
        assert lives(second.pid)

    house.run(act)


@pytest.mark.usefixtures("_subreaper")
def test_an_orphan_that_outlives_its_worker_is_collected(tmp_path: Path) -> None:
    """The orphan lives when its worker exits, and is collected a moment later."""
    house = House(tmp_path, "leaves_orphans", restart_policy="always")

    def act() -> None:
        first, orphan = house.said("ready")[0].pid, house.said("orphan")[0].pid
        house.all_acked()
        house.plan("serves")
        os.kill(first, signal.SIGKILL)
        house.said("ready", 2)
        until(lambda: not lives(orphan) and not zombies(), "no zombie")

    house.run(act)


@pytest.mark.usefixtures("_subreaper")
def test_a_subprocess_of_asyncio_keeps_its_status(tmp_path: Path) -> None:
    # A forked worker would keep the subprocess's pipe open.
    house = House(tmp_path, method="spawn", restart_policy="always")
    codes = []

    async def waits() -> None:
        command = [sys.executable, "-c", "input(); raise SystemExit(7)"]
        process = await asyncio.create_subprocess_exec(*command, stdin=asyncio.subprocess.PIPE)
        process.stdin.write(b"\n")
        ended = asyncio.create_task(process.wait())
        for count in range(1, 3):
            ready = await asyncio.to_thread(house.said, "ready", count)
            await asyncio.to_thread(house.all_acked)
            os.kill(ready[-1].pid, signal.SIGKILL)
        codes.append(await ended)
        await asyncio.to_thread(house.said, "ready", 3)

    house.run(lambda: asyncio.run(waits()))
    assert codes == [7]


def test_orphans_are_collected_in_a_pid_namespace(tmp_path: Path) -> None:
    """/proc is that of the outer namespace, whose pids differ from the process's own."""
    unshare = ["unshare", "--fork", "--pid"]
    if not shutil.which("unshare") or subprocess.run([*unshare, "true"], capture_output=True).returncode:
        pytest.skip("no PID namespace may be made here")
    program = command(
        """
        import os, sys
        from pathlib import Path
        from support.running import House, until

        def exists(pid):
            # A zombie exists, too: it has not been collected.
            try:
                os.kill(pid, 0)
            except ProcessLookupError:
                return False
            return True

        if __name__ == "__main__":
            assert os.getpid() == 1
            house = House(Path(sys.argv[1]), "leaves_orphans", restart_policy="always")

            def act():
                house.said("ready")
                orphan = house.said("orphan")[0].pid
                assert exists(orphan)
                house.open_gate()
                until(lambda: not exists(orphan), "the end of the orphan")
                print("collected")

            house.run(act)
        """,
        str(tmp_path),
        cwd=tmp_path,
    )
    ended = subprocess.run(
        [*unshare, *program], cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=60
    )
    assert ended.stdout.splitlines()[-1:] == ["collected"], ended.stderr
