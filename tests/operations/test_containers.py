"""What a container takes away from a server: each part is tried by itself, and much of it together."""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from signal import SIGHUP
from typing import Any

import pytest
from integration.tools import environment, free_port, wait_until

from .contained import Contained, needs_namespaces

pytestmark = [pytest.mark.operations, pytest.mark.slow, needs_namespaces()]

MiB = 1024 * 1024
HIDES_OTHERS = """
import sys
sys.modules.update(dict.fromkeys(["aioquic", "cryptography", "httpx", "trustme"]))
"""
# By their numbers on x86-64.
SYSCALLS = {
    "pidfd": "434,424",
    "memfd_create": "319",
    "io_uring": "425,426,427",
    "close_range": "436",
    "process_vm": "310,311",
    "kcmp": "312",
}
# Only the flag of this mount, in this namespace: never that of the file system, which others use.
READ_ONLY = "mount -o remount,bind,ro /"
NO_SHM = "mount -t tmpfs -o ro,mode=755 none /dev/shm"
NO_TMP = "mount -t tmpfs -o ro,mode=755 none /tmp"
HIDDEN = "mount -o remount,hidepid=2 /proc"
NO_PROC = "mount -t tmpfs -o ro none /proc"
NO_IPV6 = "ip link set lo up; sysctl -qw net.ipv6.conf.all.disable_ipv6=1"
NOBODY = (
    "setpriv",
    "--reuid=65534",
    "--regid=65534",
    "--clear-groups",
    "--bounding-set=-all",
    "--no-new-privs",
)
# Another user can reach neither the directory of the test nor, perhaps, the interpreter.
OPENED = f"""
mount -t tmpfs -o mode=755 none /mnt
install -m 644 contained.py /mnt
cd /mnt
home=/$(echo {sys.base_prefix} | cut -d/ -f2)
if [ "$home" = /root ]; then
    mkdir /mnt/base && mount --bind {sys.base_prefix} /mnt/base
    mount -t tmpfs -o mode=755 none /root
    mkdir -p {sys.base_prefix} && mount --bind /mnt/base {sys.base_prefix}
fi
"""


def complaints(server: Contained) -> list[str]:
    """Return the warnings and errors in the log."""
    return [line for line in server.log().splitlines() if re.search(r"WARNING|ERROR|Traceback", line)]


def probe(server: Contained, port: int) -> int:
    with suppress(OSError, HTTPException):
        return server.request("GET", "/readyz", port=port).status
    return 0


def serves_reloads_and_stops(server: Contained) -> None:
    first = server.answers()["pid"]
    server.signal(SIGHUP)
    wait_until(lambda: server.answers()["pid"] != first, "another worker", timeout=30)
    assert server.stop() == 0


@pytest.mark.parametrize(
    ("setup", "expected"),
    [
        pytest.param(READ_ONLY, [], id="a read-only root"),
        pytest.param(NO_SHM, [], id="no /dev/shm"),
        pytest.param(NO_PROC, [], id="no /proc"),
        pytest.param("ulimit -n 64", [], id="few descriptors"),
        pytest.param("export TZ=Nowhere/Nothing", [], id="an unknown time zone"),
        pytest.param("unset HOME USER PATH LANG", [], id="no environment"),
    ],
)
def test_a_server_runs_with(setup: str, expected: list[str], tmp_path: Path) -> None:
    with Contained(tmp_path, setup=setup) as server:
        serves_reloads_and_stops(server)
        assert complaints(server) == expected


def test_a_server_runs_as_another_user_without_capabilities_in_a_read_only_container(tmp_path: Path) -> None:
    setup = f"{OPENED}\n{NO_SHM}\n{HIDDEN}\n{READ_ONLY}"
    with Contained(tmp_path, setup=setup, runner=NOBODY) as server:
        assert server.answers()["uid"] == 65534
        serves_reloads_and_stops(server)
        assert complaints(server) == []


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the numbers of system calls are those of x86-64")
@pytest.mark.parametrize("names", [[name] for name in SYSCALLS] + [list(SYSCALLS)], ids="+".join)
def test_a_server_runs_without_system_calls(names: list[str], tmp_path: Path) -> None:
    """Old container engines refuse the newer ones."""
    numbers = ",".join(SYSCALLS[name] for name in names)
    runner = (sys.executable, str(Path(__file__).with_name("without_syscalls.py")), numbers)
    with Contained(tmp_path, runner=runner) as server:
        serves_reloads_and_stops(server)
        assert complaints(server) == []


def test_the_inspector_and_the_probes_in_a_read_only_container(tmp_path: Path) -> None:
    """There is no place for the file by which a command finds the inspector; it can be given the address."""
    setup = f"{OPENED}\n{NO_TMP}\n{NO_SHM}\n{READ_ONLY}"
    env = {"SANIC_INSPECTOR": "true", "SANIC_INSPECTOR_PORT": "0", "SANIC_WORKER_INSPECTOR_OPEN": "true"}
    probes = free_port()
    with Contained(tmp_path, f"--health-port={probes}", setup=setup, runner=NOBODY, env=env) as server:
        server.answers()
        wait_until(lambda: probe(server, probes) == 200, "a server that is ready")
        server.wait_line("Inspector listens")
        serves_reloads_and_stops(server)
        assert complaints(server) == []


def test_a_server_runs_without_ipv6(tmp_path: Path) -> None:
    env = {"SANIC_INSPECTOR": "true", "SANIC_INSPECTOR_PORT": "6457"}
    flags, args = ["--net"], ["--health-port=8081", "--health-host=localhost"]
    with Contained(tmp_path, *args, setup=NO_IPV6, flags=flags, env=env, host="localhost") as server:
        server.wait_line("Worker ready")
        server.wait_line("Health listens on localhost:8081")
        assert server.stop() == 0
        assert complaints(server) == []


class Limited:
    """A control group of the test's own with a limit; gone at the end."""

    def __init__(self, controller: str, limits: dict[str, str]) -> None:
        root = Path("/sys/fs/cgroup")
        self.is_unified = (root / "cgroup.controllers").exists()
        base = root if self.is_unified else root / controller
        self.path = base / f"sanic-worker-test-{os.getpid()}"
        try:
            if self.is_unified and controller not in (root / "cgroup.subtree_control").read_text().split():
                raise FileNotFoundError(f"the controller {controller} is not at hand")
            self.path.mkdir()
            for name, value in limits.items():
                (self.path / name).write_text(value)
        except OSError as error:
            with suppress(OSError):
                self.path.rmdir()
            pytest.skip(f"no control group with a limit can be made here: {error}")

    @property
    def setup(self) -> str:
        """The command of a shell that joins the group."""
        return f"echo 0 > {self.path}/cgroup.procs"

    def read(self, name: str) -> str:
        return (self.path / name).read_text()

    def remove(self) -> None:
        def removed() -> bool:
            with suppress(OSError):
                self.path.rmdir()
            return not self.path.exists()

        wait_until(removed, "an empty control group")


@pytest.fixture
def limited(request: pytest.FixtureRequest) -> Iterator[Limited]:
    group = Limited(*request.param)
    yield group
    group.remove()


def memory(limit: int) -> tuple[str, dict[str, str]]:
    is_unified = Path("/sys/fs/cgroup/cgroup.controllers").exists()
    return "memory", {"memory.max" if is_unified else "memory.limit_in_bytes": str(limit)}


@pytest.mark.parametrize(
    ("limited", "preload"),
    [(memory(80 * MiB), "framework"), (memory(64 * MiB), "off")],
    indirect=["limited"],
    ids=["80 MB", "64 MB"],
)
def test_one_worker_runs_within(limited: Limited, preload: str, tmp_path: Path) -> None:
    # As where only the requirements of the package are installed, not those of its tests.
    (tmp_path / "sitecustomize.py").write_text(HIDES_OTHERS)
    env = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{environment()['PYTHONPATH']}"}
    with Contained(tmp_path, f"--preload={preload}", setup=limited.setup, env=env) as server:
        for _ in range(100):
            server.answers()
        events = limited.read("memory.events" if limited.is_unified else "memory.oom_control")
        assert re.search(r"^oom_kill 0$", events, re.MULTILINE)
        assert server.stop() == 0
        assert complaints(server) == []


@pytest.mark.parametrize("limited", [("pids", {"pids.max": "32"})], indirect=True)
def test_a_server_runs_with_few_processes(limited: Limited, tmp_path: Path) -> None:
    with Contained(tmp_path, setup=limited.setup) as server:
        serves_reloads_and_stops(server)
        assert complaints(server) == []


@pytest.mark.parametrize("limited", [("pids", {"pids.max": "3"})], indirect=True)
def test_a_start_that_the_limit_of_processes_refuses_fails_with_its_reason(
    limited: Limited, tmp_path: Any
) -> None:
    with Contained(tmp_path, setup=limited.setup) as server:
        assert server.wait(30) == 1
        assert "Resource temporarily unavailable" in server.log()
