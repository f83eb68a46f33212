"""The control group of a process: its limits and events, in both versions and from inside a container."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from support import cgroups
from support.processes import Children
from support.running import until

from worker._system import cgroup

PID = 4242
V1_MOUNTS = """\
31 23 0:28 / /sys/fs/cgroup rw,relatime shared:4 - tmpfs tmpfs rw,mode=755
32 31 0:29 {top} /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:5 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 {top} /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
37 31 0:34 {top} /sys/fs/cgroup/freezer rw,relatime - cgroup cgroup rw,freezer
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
"""
V1_GROUPS = "4:freezer:{path}\n3:memory:{path}\n2:cpu,cpuacct:{path}\n1:name=systemd:{path}\n"
V2_MOUNTS = "29 22 0:26 {top} /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
HYBRID_MOUNT = "41 31 0:38 {top} /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n"


class Tree:
    """A tree of files like ``/proc`` and ``/sys/fs/cgroup``, with the group of one process."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / f"proc/{PID}").mkdir(parents=True)
        (root / "proc/self").symlink_to(str(PID))

    def mount(self, mounts: str, groups: str, *, top: str = "/", path: str = "/") -> None:
        (self.root / "proc/self/mountinfo").write_text(mounts.format(top=top))
        (self.root / "proc/self/cgroup").write_text(groups.format(path=path))

    def write(self, group: str, **files: object) -> None:
        directory = self.root / "sys/fs/cgroup" / group
        directory.mkdir(parents=True, exist_ok=True)
        for name, value in files.items():
            (directory / name.replace("__", ".")).write_text(f"{value}\n")

    @property
    def group(self) -> cgroup.Cgroup:
        return cgroup.own(PID, root=str(self.root))


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


@pytest.fixture
def v2(tree: Tree) -> Tree:
    tree.mount(V2_MOUNTS, "0::{path}\n", path="/app.slice/shop.service")
    return tree


@pytest.fixture
def v1(tree: Tree) -> Tree:
    tree.mount(V1_MOUNTS, V1_GROUPS, path="/docker/7f")
    return tree


def facts(group: cgroup.Cgroup) -> tuple[object, ...]:
    return (
        group.memory_limit(),
        group.cpu_quota(),
        group.throttled_seconds(),
        group.oom_kills(),
        group.is_frozen(),
    )


NOTHING = (None, None, 0.0, 0, False)


class TestNothing:
    def test_without_control_groups_there_are_no_limits(self, tree: Tree) -> None:
        assert facts(tree.group) == NOTHING

    def test_of_a_process_that_is_gone(self, v2: Tree) -> None:
        assert facts(cgroup.own(1, root=str(v2.root))) == NOTHING

    def test_of_a_group_that_was_removed(self, v2: Tree) -> None:
        v2.mount(V2_MOUNTS, "0::{path} (deleted)\n", path="/gone")
        v2.write("", cgroup__procs="")
        assert facts(v2.group) == NOTHING

    def test_a_hierarchy_that_is_not_mounted(self, tree: Tree) -> None:
        tree.mount("", "0::/shop\n")
        assert facts(tree.group) == NOTHING


class TestVersion2:
    def test_the_tightest_limit_counts(self, v2: Tree) -> None:
        v2.write("app.slice/shop.service", memory__max="max", cpu__max="max 100000")
        assert (v2.group.memory_limit(), v2.group.cpu_quota()) == (None, None)
        v2.write("app.slice", memory__max=5000, cpu__max="250000 100000")
        assert (v2.group.memory_limit(), v2.group.cpu_quota()) == (5000, 2.5)
        v2.write("app.slice/shop.service", memory__max=900, cpu__max="50000 100000")
        assert (v2.group.memory_limit(), v2.group.cpu_quota()) == (900, 0.5)

    def test_an_ancestor_throttles_as_well(self, v2: Tree) -> None:
        v2.write("app.slice", cpu__stat="usage_usec 7\nnr_throttled 3\nthrottled_usec 1500000")
        v2.write("app.slice/shop.service", cpu__stat="usage_usec 7\nthrottled_usec 250000")
        assert v2.group.throttled_seconds() == pytest.approx(1.75)

    def test_processes_that_were_killed_for_memory(self, v2: Tree) -> None:
        v2.write("app.slice/shop.service", memory__events="low 0\noom 9\noom_kill 2\noom_group_kill 4")
        assert v2.group.oom_kills() == 2

    @pytest.mark.parametrize("frozen", [0, 1])
    def test_a_frozen_group(self, frozen: int, v2: Tree) -> None:
        v2.write("app.slice/shop.service", cgroup__events=f"populated 1\nfrozen {frozen}")
        assert v2.group.is_frozen() is bool(frozen)

    def test_in_a_container_the_own_group_is_the_root(self, tree: Tree) -> None:
        tree.mount(V2_MOUNTS, "0::{path}\n")
        tree.write("", memory__max=64 << 20, cpu__max="100000 100000")
        assert (tree.group.memory_limit(), tree.group.cpu_quota()) == (64 << 20, 1.0)

    def test_a_process_outside_of_the_namespace(self, tree: Tree) -> None:
        tree.mount(V2_MOUNTS, "0::/../other.slice\n")
        tree.write("", memory__max=64 << 20)
        assert tree.group.memory_limit() == 64 << 20

    def test_a_part_of_the_hierarchy_is_mounted(self, tree: Tree) -> None:
        tree.mount(V2_MOUNTS, "0::{path}\n", top="/docker/7f", path="/docker/7f/inner")
        tree.write("", memory__max=100)
        tree.write("inner", memory__max=200)
        assert tree.group.memory_limit() == 100

    def test_a_hierarchy_that_is_mounted_twice(self, tree: Tree) -> None:
        other = "30 22 0:26 /docker/9 /mnt/other rw - cgroup2 cgroup2 rw\n"
        tree.mount(other + V2_MOUNTS, "0::/docker/7f\n")
        tree.write("docker/7f", memory__max=100)
        assert tree.group.memory_limit() == 100

    def test_a_mount_point_with_a_space(self, tree: Tree) -> None:
        mount = "30 22 0:26 / /sys/fs/cgroup/my\\040groups rw - cgroup2 cgroup2 rw\n"
        tree.mount(mount, "0::/shop\n")
        tree.write("my groups/shop", memory__max=100)
        assert tree.group.memory_limit() == 100


class TestVersion1:
    def test_the_tightest_limit_counts(self, v1: Tree) -> None:
        v1.write("memory", memory__limit_in_bytes=0x7FFFFFFFFFFFF000)
        v1.write("memory/docker", memory__limit_in_bytes=5000)
        v1.write("memory/docker/7f", memory__limit_in_bytes=0x7FFFFFFFFFFFF000)
        v1.write("cpu,cpuacct/docker", cpu__cfs_quota_us=-1, cpu__cfs_period_us=100000)
        v1.write("cpu,cpuacct/docker/7f", cpu__cfs_quota_us=150000, cpu__cfs_period_us=100000)
        assert (v1.group.memory_limit(), v1.group.cpu_quota()) == (5000, 1.5)

    def test_no_limit(self, v1: Tree) -> None:
        v1.write("memory/docker/7f", memory__limit_in_bytes=0x7FFFFFFFFFFFF000)
        v1.write("cpu,cpuacct/docker/7f", cpu__cfs_quota_us=-1, cpu__cfs_period_us=100000)
        assert (v1.group.memory_limit(), v1.group.cpu_quota()) == (None, None)

    def test_events(self, v1: Tree) -> None:
        v1.write("memory/docker/7f", memory__oom_control="oom_kill_disable 0\nunder_oom 0\noom_kill 3")
        v1.write("cpu,cpuacct/docker/7f", cpu__stat="nr_throttled 1\nthrottled_time 2500000000")
        assert (v1.group.oom_kills(), v1.group.throttled_seconds()) == (3, pytest.approx(2.5))

    @pytest.mark.parametrize(("state", "frozen"), [("THAWED", False), ("FREEZING", True), ("FROZEN", True)])
    def test_a_frozen_group(self, state: str, frozen: bool, v1: Tree) -> None:
        v1.write("freezer/docker/7f", freezer__state=state)
        assert v1.group.is_frozen() is frozen

    def test_in_a_container_without_a_namespace(self, tree: Tree) -> None:
        tree.mount(V1_MOUNTS, V1_GROUPS, top="/docker/7f", path="/docker/7f")
        tree.write("memory", memory__limit_in_bytes=64 << 20)
        assert tree.group.memory_limit() == 64 << 20


class TestHybrid:
    def test_each_controller_has_its_own_hierarchy(self, tree: Tree) -> None:
        tree.mount(V1_MOUNTS + HYBRID_MOUNT, "0::{path}\n" + V1_GROUPS, path="/shop")
        tree.write("memory/shop", memory__limit_in_bytes=100)
        tree.write("unified/shop", memory__max=50, cgroup__events="populated 1\nfrozen 0")
        assert (tree.group.memory_limit(), tree.group.is_frozen()) == (100, False)
        tree.write("unified/shop", cgroup__events="populated 1\nfrozen 1")
        assert tree.group.is_frozen()


class TestAvailableCpus:
    def test_without_a_quota_it_is_the_affinity(self, v2: Tree) -> None:
        assert cgroup.available_cpus(str(v2.root)) == len(os.sched_getaffinity(0))

    @pytest.mark.parametrize(("quota", "cpus"), [(1_000, 1), (100_000, 1), (110_000, 2), (9_999_900_000, 4)])
    def test_a_quota_is_rounded_up(
        self, quota: int, cpus: int, v2: Tree, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(4)))
        v2.write("app.slice", cpu__max=f"{quota} 100000")
        assert cgroup.available_cpus(str(v2.root)) == cpus


class TestAvailableMemory:
    def test_it_is_unknown_without_any_file(self, tree: Tree) -> None:
        assert cgroup.available_memory(str(tree.root)) is None

    def test_that_of_the_machine_counts(self, v2: Tree) -> None:
        (v2.root / "proc/meminfo").write_text("MemTotal:      900 kB\nMemAvailable:    300 kB\n")
        assert cgroup.available_memory(str(v2.root)) == 300 * 1024
        v2.write("app.slice", memory__max=400 * 1024, memory__current=0)
        assert cgroup.available_memory(str(v2.root)) == 300 * 1024

    def test_idle_pages_of_files_are_available(self, v2: Tree) -> None:
        v2.write(
            "app.slice", memory__max=5000, memory__current=4000, memory__stat="anon 7\ninactive_file 900"
        )
        assert v2.group.memory_available() == cgroup.available_memory(str(v2.root)) == 1900
        # The tighter of two limits leaves more here.
        v2.write("app.slice/shop.service", memory__max=4500, memory__current=1000)
        assert v2.group.memory_available() == 1900
        v2.write("app.slice/shop.service", memory__max=4500, memory__current=4600)
        assert v2.group.memory_available() == 0

    def test_version_1(self, v1: Tree) -> None:
        stat = "inactive_file 1\ntotal_inactive_file 30"
        v1.write("memory/docker/7f", memory__limit_in_bytes=100, memory__usage_in_bytes=70, memory__stat=stat)
        assert v1.group.memory_available() == 60


class TestKernel:
    """Real groups, of the version that this machine has."""

    @pytest.mark.parametrize("controller", ["freezer", cgroup.V2])
    def test_a_frozen_process(self, controller: str, children: Children) -> None:
        with cgroups.group(controller) as group:
            pid = children.fork(signal.pause)
            group.add(pid)
            assert not cgroup.own(pid).is_frozen()
            group.freeze()
            assert cgroup.own(pid).is_frozen()
            group.thaw()
            until(lambda: not cgroup.own(pid).is_frozen(), "the thaw")

    def test_a_limit_of_the_memory(self, children: Children) -> None:
        with cgroups.group("memory") as outer, cgroups.group("memory", outer) as inner:
            pid = children.fork(signal.pause)
            inner.add(pid)
            outer.write("memory.max" if outer.is_v2 else "memory.limit_in_bytes", 32 << 20)
            found = cgroup.own(pid)
            assert found.memory_limit() == 32 << 20
            assert found.oom_kills() == 0

    def test_a_quota(self, children: Children) -> None:
        def spin() -> None:
            while True:
                pass

        with cgroups.group("cpu") as group:
            if group.is_v2:
                group.write("cpu.max", "20000 100000")
            else:
                group.write("cpu.cfs_quota_us", 20000)
            pid = children.fork(spin)
            group.add(pid)
            assert cgroup.own(pid).cpu_quota() == pytest.approx(0.2)
            until(lambda: cgroup.own(pid).throttled_seconds() > 0, "the first pause")
