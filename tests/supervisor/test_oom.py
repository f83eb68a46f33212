"""Which exits the kernel's counts of kills for want of memory explain, in fake trees of control groups."""

from __future__ import annotations

import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from system.test_cgroup import PID, V1_GROUPS, V1_MOUNTS, V2_MOUNTS, Tree

from worker._supervisor.child import ChildProcess
from worker._supervisor.oom import OomKills

GROUP = "app.slice/shop.service"


class Kernel:
    """A tree of control groups with the processes of one group, and its count of kills."""

    def __init__(self, root: Path, version: int) -> None:
        self.tree = Tree(root)
        self.version = version
        if version == 2:
            self.tree.mount(V2_MOUNTS, "0::{path}\n", path=f"/{GROUP}")
        else:
            self.tree.mount(V1_MOUNTS, V1_GROUPS, path=f"/{GROUP}")
        self.kills(0)

    def kills(self, count: int) -> None:
        """Set the count."""
        if self.version == 2:
            self.tree.write(GROUP, memory__events=f"low 0\nmax 7\noom 1\noom_kill {count}")
        else:
            self.tree.write(f"memory/{GROUP}", memory__oom_control=f"under_oom 0\noom_kill {count}")

    def start(self, kills: OomKills, pid: int) -> None:
        """Start a process in the group."""
        (self.tree.root / f"proc/{pid}").mkdir(exist_ok=True)
        groups = (self.tree.root / f"proc/{PID}/cgroup").read_text()
        (self.tree.root / f"proc/{pid}/cgroup").write_text(groups)
        kills.note_start(pid)


@pytest.fixture(params=[1, 2], ids=["v1", "v2"])
def kernel(request: pytest.FixtureRequest, tmp_path: Path) -> Kernel:
    return Kernel(tmp_path, request.param)


@pytest.fixture
def kills(kernel: Kernel) -> OomKills:
    found = OomKills(str(kernel.tree.root))
    for pid in (1, 2, 3):
        kernel.start(found, pid)
    return found


def test_a_count_that_has_grown_explains_a_kill(kernel: Kernel, kills: OomKills) -> None:
    kernel.kills(1)
    assert kills.explains(1, was_killed=True)


def test_a_count_that_has_not_grown_explains_nothing(kills: OomKills) -> None:
    assert not kills.explains(1, was_killed=True)


def test_another_exit_leaves_the_kill_to_the_process_that_it_was(kernel: Kernel, kills: OomKills) -> None:
    kernel.kills(1)
    assert not kills.explains(1, was_killed=False)
    assert kills.explains(2, was_killed=True)


def test_each_kill_explains_one_exit(kernel: Kernel, kills: OomKills) -> None:
    kernel.kills(2)
    assert [kills.explains(pid, was_killed=True) for pid in (1, 2, 3)] == [True, True, False]


def test_a_kill_before_the_last_start_explains_nothing(kernel: Kernel, kills: OomKills) -> None:
    # It was that of a process that a server had started.
    kernel.kills(1)
    kernel.start(kills, 4)
    assert not kills.explains(1, was_killed=True)


def test_the_group_of_a_process_is_known_after_its_exit(kernel: Kernel, kills: OomKills) -> None:
    (kernel.tree.root / "proc/1/cgroup").unlink()
    kernel.kills(1)
    assert kills.explains(1, was_killed=True)


def test_a_group_without_the_controller_counts_in_its_ancestor(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    tree.mount(V2_MOUNTS, "0::{path}\n", path=f"/{GROUP}/inner")
    tree.write(GROUP, memory__events="oom_kill 3")
    tree.write(f"{GROUP}/inner", cgroup__procs="")
    assert tree.group.oom_kills() == 3


@pytest.mark.parametrize(
    ("code", "was_killed", "asked"),
    [(-signal.SIGKILL, False, True), (-signal.SIGKILL, True, False), (-signal.SIGSEGV, False, False)],
)
def test_only_a_kill_that_the_main_process_has_not_sent_counts(
    code: int, was_killed: bool, asked: bool
) -> None:
    heard: list[bool] = []

    def explains(pid: int, *, was_killed: bool) -> bool:
        heard.append(was_killed)
        return was_killed

    kills: Any = SimpleNamespace(explains=explains)
    slot: Any = SimpleNamespace(name="s")
    child = ChildProcess(slot, SimpleNamespace(pid=1), 0.0, 1.0, oom_kills=kills, was_killed=was_killed)
    assert child.exit(code, 2.0, False).oom is asked
    assert heard == [asked]
