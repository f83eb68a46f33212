"""Cases for a real systemd, inside the sandbox: ``cases.py NAME`` runs one function of this file."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from time import monotonic
from typing import TypeVar

UNITS = Path("/etc/systemd/system")
SHOP = Path("/srv/shop")
LOG = Path("/run/shop.log")
UNIT = "sanic-worker.service"
# Each process of the server has this variable in its environment.
MARK = "SHOP_UNDER_TEST=1"
TIMEOUT = 30.0
PORT = 8000

T = TypeVar("T")


def until(look: Callable[[], T], what: str, timeout: float = TIMEOUT) -> T:
    pause, deadline = threading.Event(), monotonic() + timeout
    while not (value := look()):
        assert monotonic() < deadline, (
            f"not within {timeout:g} s: {what}; last seen: {value!r}; {shown(UNIT)}"
        )
        pause.wait(0.02)
    return value


def systemctl(*args: str, code: int | None = 0) -> str:
    done = subprocess.run(["systemctl", *args], capture_output=True, text=True, timeout=60)
    assert code is None or done.returncode == code, f"systemctl {args}: {done}"
    return done.stdout.strip()


def shown(unit: str) -> dict[str, str]:
    """Return the properties of a unit."""
    return dict(line.partition("=")[::2] for line in systemctl("show", unit).splitlines())


def main_pid(unit: str = UNIT) -> int:
    return int(shown(unit)["MainPID"])


def processes() -> set[int]:
    """Return the processes of the server."""
    found = set()
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdecimal() and MARK.encode() in (entry / "environ").read_bytes():
                found.add(int(entry.name))
    return found


def is_pending(pid: int, signum: int) -> bool:
    """Return whether a signal waits for a process."""
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if "ShdPnd" in line)
    return bool(int(line.split()[1], 16) >> (signum - 1) & 1)


def get(path: str = "/pid", port: int = PORT, timeout: float = TIMEOUT) -> str:
    """Return the body of an answer, which has status 200."""
    with contextlib.closing(HTTPConnection("127.0.0.1", port, timeout=timeout)) as connection:
        connection.request("GET", path, headers={"Connection": "close"})
        answer = connection.getresponse()
        body = answer.read().decode()
        assert answer.status == 200, (answer.status, body)
        return body


def servers() -> set[str]:
    """Return the pids that answer."""
    return {get() for _ in range(20)}


@contextlib.contextmanager
def load() -> Iterator[None]:
    """Send requests, each on its own connection, while the body runs; none may fail."""
    failures: list[str] = []
    stop = threading.Event()
    made = [0, 0]

    def client(number: int) -> None:
        while not stop.is_set():
            try:
                get()
            except (OSError, HTTPException, AssertionError) as error:
                failures.append(repr(error))
            made[number] += 1

    threads = [threading.Thread(target=client, args=[number]) for number in range(len(made))]
    for thread in threads:
        thread.start()
    try:
        until(lambda: min(made) > 5, "the load")
        yield
        before = [*made]
        until(lambda: all(now > then + 5 for now, then in zip(made, before, strict=True)), "more load")
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not failures, failures[:5]


def drop_in(name: str, *lines: str, unit: str = UNIT) -> None:
    """Change a unit."""
    folder = UNITS / f"{unit}.d"
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.conf").write_text("\n".join(lines) + "\n")
    systemctl("daemon-reload")


@contextlib.contextmanager
def reloading() -> Iterator[None]:
    """Have the unit reload in the body, and wait until it is active again."""
    before = shown(UNIT)["StateChangeTimestampMonotonic"]
    yield
    until(lambda: shown(UNIT)["ActiveState"] == "active", "the end of the reload")
    # Another state came between. It may have been shorter than the time from one look to the next.
    assert shown(UNIT)["StateChangeTimestampMonotonic"] != before


# The cases


def verify() -> None:
    """The units of the documentation have no mistake."""
    for unit in (UNIT, "sanic-worker.socket"):
        done = subprocess.run(
            ["systemd-analyze", "verify", UNITS / unit], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done
        assert unit not in done.stderr, done.stderr


def life() -> None:
    """Start, reload, a broken reload, restart, stop and kill, with the unit of the documentation."""
    (SHOP / "slow").touch()
    systemctl("start", UNIT)
    found = shown(UNIT)
    assert found["ActiveState"] == "active"
    assert found["StatusText"] == "4 of 4 workers", found["StatusText"]
    assert found["NFileDescriptorStore"] == "1"
    first = servers()
    assert 1 < len(first) <= 4
    variables = get("/environment").split()
    assert not [name for name in variables if name.startswith(("NOTIFY", "WATCHDOG", "LISTEN", "FDSTORE"))]
    main = main_pid()
    with load():
        with reloading():
            systemctl("reload", "--no-block", UNIT)
            until(lambda: not servers() & first, "other servers")
        # A reload waits for the end of the roll, also if the main process is late.
        second = servers()
        os.kill(main, signal.SIGSTOP)
        reload = subprocess.Popen(["systemctl", "reload", UNIT])
        until(lambda: is_pending(main, signal.SIGHUP), "the signal")
        threading.Event().wait(0.2)
        os.kill(main, signal.SIGCONT)
        assert reload.wait(TIMEOUT) == 0
        assert shown(UNIT)["ActiveState"] == "active"
        third = servers()
        assert not third & second
        (SHOP / "broken").touch()
        with reloading():
            systemctl("reload", "--no-block", UNIT)
            until(lambda: "aborted" in shown(UNIT)["StatusText"], "a rollout that is aborted")
        found = shown(UNIT)
        assert (found["ActiveState"], found["MainPID"]) == ("active", str(main))
        assert found["StatusText"].startswith("4 of 4 workers"), found["StatusText"]
        assert third <= {*map(str, processes())}
        (SHOP / "broken").unlink()
        systemctl("reload", UNIT)
        assert "aborted" not in shown(UNIT)["StatusText"]
        # The socket is kept meanwhile, and the connections wait in its queue.
        systemctl("restart", UNIT)
        assert main_pid() != main
        assert shown(UNIT)["NFileDescriptorStore"] == "1"
    until(lambda: "requests/s" in shown(UNIT)["StatusText"], "figures")
    systemctl("stop", UNIT)
    found = shown(UNIT)
    assert (found["ActiveState"], found["Result"], found["ExecMainStatus"]) == ("inactive", "success", "0")
    assert not processes()
    systemctl("start", UNIT)
    # To every process of the unit.
    systemctl("kill", UNIT)
    until(lambda: shown(UNIT)["ActiveState"] == "inactive", "the end")
    assert shown(UNIT)["ExecMainStatus"] == "0"
    assert not processes()


def hang() -> None:
    """A main process that hangs is killed by the watchdog, with all its children, and started again."""
    drop_in("fast", "[Service]", "WatchdogSec=2", "TimeoutAbortSec=1", "TimeoutStopSec=1", "RestartSec=100ms")
    drop_in("grace", "[Service]", "Environment=SANIC_WORKER_GRACEFUL_TIMEOUT=2")
    systemctl("start", UNIT)
    before, all_before = main_pid(), processes()
    assert len(all_before) >= 5
    # It beats while it is idle.
    beat = shown(UNIT)["WatchdogTimestampMonotonic"]
    until(lambda: shown(UNIT)["WatchdogTimestampMonotonic"] != beat, "a beat")
    os.kill(before, signal.SIGSTOP)
    until(lambda: shown(UNIT)["NRestarts"] == "1" and shown(UNIT)["ActiveState"] == "active", "the restart")
    assert main_pid() != before
    until(lambda: not all_before & processes(), "the end of the processes before")
    get()
    # A worker that hangs is killed by the main process, which has asked systemd for that time.
    os.kill(int(get()), signal.SIGSTOP)
    systemctl("stop", UNIT)
    assert "Killing it" in LOG.read_text()
    assert not processes()


def exits() -> None:
    """The exit codes: systemd starts the server again, or does not."""
    # However many starts fail before this test goes on.
    drop_in("often", "[Unit]", "StartLimitIntervalSec=0")
    drop_in("fast", "[Service]", "RestartSec=100ms", "Environment=SANIC_WORKER_MAX_CONSECUTIVE_FAILURES=2")
    (SHOP / "broken").touch()
    systemctl("start", UNIT, code=1)
    until(lambda: int(shown(UNIT)["NRestarts"]) >= 2, "restarts after a failed start")
    until(lambda: shown(UNIT)["ExecMainStatus"] == "1", "the exit code of a failed start")
    (SHOP / "broken").unlink()
    until(lambda: shown(UNIT)["ActiveState"] == "active", "a start that succeeds")
    get()
    # No worker can run any more.
    restarts = int(shown(UNIT)["NRestarts"])
    (SHOP / "broken").touch()
    for pid in re.findall(r"Worker ready \[(\d+)\]", LOG.read_text()):
        os.kill(int(pid), signal.SIGKILL)
    until(lambda: int(shown(UNIT)["NRestarts"]) > restarts, "a restart after a crash loop")
    systemctl("stop", UNIT)
    systemctl("reset-failed", UNIT, code=None)
    # Wrong usage.
    drop_in("wrong", "[Service]", "Environment=SANIC_WORKER_WORKERS=many")
    systemctl("start", UNIT, code=1)
    found = shown(UNIT)
    assert (found["ExecMainStatus"], found["NRestarts"], found["ActiveState"]) == ("2", "0", "failed")


def limits() -> None:
    """The limits of the unit are shorter than a roll of all workers, and than the drain delay."""
    drop_in("delay", "[Service]", "Environment=SANIC_WORKER_DRAIN_DELAY=5")
    systemctl("start", UNIT)
    main, first = main_pid(), servers()
    drop_in("short", "[Service]", "TimeoutStartSec=3", "TimeoutStopSec=2")
    # Each of the four workers takes a second.
    (SHOP / "slow").touch()
    systemctl("reload", UNIT)
    assert not servers() & first
    stop = subprocess.Popen(["systemctl", "stop", UNIT])
    until(lambda: shown(UNIT)["StatusText"].startswith("Stopping after the drain delay"), "the delay")
    get()
    assert stop.wait(TIMEOUT) == 0
    found = shown(UNIT)
    assert (found["Result"], found["ExecMainStatus"], found["MainPID"]) == ("success", "0", "0"), found
    assert "The drain delay is over" in LOG.read_text()
    assert not Path(f"/proc/{main}").exists()


def activation() -> None:
    """The first connection starts the server; a restart loses none."""
    systemctl("start", "sanic-worker.socket")
    assert shown(UNIT)["ActiveState"] == "inactive"
    get()
    until(lambda: shown(UNIT)["ActiveState"] == "active", "all serve")
    # The socket is the one of the other unit, and need not be kept.
    assert shown(UNIT)["NFileDescriptorStore"] == "0"
    with load():
        for _ in range(3):
            systemctl("restart", UNIT)
        systemctl("stop", UNIT)
        until(lambda: shown(UNIT)["ActiveState"] == "active", "a start by the load")
    systemctl("stop", "sanic-worker.socket", UNIT)
    with contextlib.closing(socket.socket()) as probe:
        assert probe.connect_ex(("127.0.0.1", PORT)) != 0


def user() -> None:
    """The server binds as root, and runs as nobody: port, sockets, pid file, inspector and logs."""
    run = Path("/run/shop")
    run.mkdir()
    os.chown(run, 65534, 65534)
    run.chmod(0o755)
    command = SHOP / ".venv/bin/sanic-worker"
    flags = f"--user=nobody --umask=027 --pid-file={run}/pid --inspector-unix={run}/inspector --workers=2"
    drop_in(
        "user",
        "[Service]",
        "User=root",
        "Environment=SANIC_INSPECTOR=true",
        "ExecStart=",
        f"ExecStart={command} shop:app --host=127.0.0.1 --port=80 {flags}",
    )
    systemctl("start", UNIT)
    main = main_pid()
    assert int((run / "pid").read_text()) == main
    owners = {}
    until(lambda: len(processes()) == 6, "all processes")
    for pid in processes():
        lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        owners[pid] = (lines["Uid"].split(), lines["Gid"].split(), lines["Groups"].split())
        # They are not hidden from each other.
        assert Path(f"/proc/{pid}/environ").stat().st_uid == 65534
    # The main process, the preload process, two servers, the inspector and the resource tracker.
    assert len(owners) == 6, owners
    assert {str(owner) for owner in owners.values()} == {str((["65534"] * 4, ["65534"] * 4, ["65534"]))}
    assert get("/new/file", port=80) == "640"
    assert (run / "file").stat().st_uid == 65534
    shown_by = [command, "inspect", "--unix", run / "inspector", "--json"]
    status = json.loads(subprocess.run(shown_by, capture_output=True, text=True, timeout=60).stdout)
    servers = [worker for worker in status["workers"] if worker["server"]]
    assert [bool(worker["rss_bytes"]) for worker in servers] == [True, True], status
    # It has the rights to restart workers and to write its files again.
    systemctl("reload", UNIT)
    second = subprocess.run(
        [command, "shop:app", "--port=8001", f"--pid-file={run}/pid"],
        capture_output=True,
        text=True,
        cwd=SHOP,
    )
    assert second.returncode == 1, second
    assert f"is that of the running process {main}" in second.stderr
    systemctl("stop", UNIT)
    assert shown(UNIT)["ExecMainStatus"] == "0", shown(UNIT)
    assert sorted(path.name for path in run.iterdir()) == ["file"]
    # A unix socket of the server, with the mode of the setting.
    flags = f"--user=nobody --umask=077 --unix-mode=660 --unix={run}/http --workers=2"
    drop_in("user", "[Service]", "User=root", "ExecStart=", f"ExecStart={command} shop:app {flags}")
    systemctl("start", UNIT)
    found = (run / "http").stat()
    assert (found.st_mode & 0o777, found.st_uid, found.st_gid) == (0o660, 65534, 65534)
    drop_in("store", "[Service]", "Environment=FDSTORE=0")
    systemctl("restart", UNIT)
    systemctl("stop", UNIT)
    assert not (run / "http").exists()
    # A mistake is named, and leaves no file.
    for wrong, message in (("nobody2", "There is no user nobody2"), ("4242424", "name it with --group")):
        arguments = ["shop:app", "--port=8001", f"--user={wrong}", f"--pid-file={run}/pid"]
        done = subprocess.run([command, *arguments], capture_output=True, text=True, cwd=SHOP)
        assert done.returncode == 2, done
        assert message in done.stderr and "Traceback" not in done.stderr, done
        assert not (run / "pid").exists()


def upgrade() -> None:
    """Another main process takes the place of the first one, and systemd follows; broken code does not."""

    def request() -> int:
        main = main_pid()
        os.kill(main, signal.SIGUSR2)
        return main

    def replace() -> None:
        with reloading():
            before = request()
            until(lambda: main_pid() != before, "another main process")
        until(lambda: not Path(f"/proc/{before}").exists(), "the end of the old one")

    systemctl("start", UNIT)
    with load():
        replace()
        replace()
        (SHOP / "broken").touch()
        before = request()
        until(lambda: "Upgrade failed" in LOG.read_text(), "the failure")
        until(lambda: shown(UNIT)["ActiveState"] == "active", "the old one is ready")
        assert main_pid() == before
        (SHOP / "broken").unlink()
        # The socket is kept by its name, and once.
        assert shown(UNIT)["NFileDescriptorStore"] == "1"
        systemctl("restart", UNIT)
    assert shown(UNIT)["NRestarts"] == "0"
    before = request()
    until(lambda: main_pid() != before, "a main process that follows a restart")
    # The watchdog is fed by the new one.
    beat = shown(UNIT)["WatchdogTimestampMonotonic"]
    until(lambda: shown(UNIT)["WatchdogTimestampMonotonic"] != beat, "a beat", 40)
    systemctl("stop", UNIT)
    found = shown(UNIT)
    assert (found["ActiveState"], found["Result"]) == ("inactive", "success"), found
    assert not processes()
    # Without messages, systemd takes the end of the old one for that of the service.
    silent = ("NotifyAccess=none", "WatchdogSec=0", "FileDescriptorStoreMax=0")
    drop_in("exec", "[Service]", "Type=exec", *silent)
    ready, refusal = "Worker ready", "Cannot upgrade: the parent process, systemd, takes the end"
    expected = LOG.read_text().count(ready) + 4
    systemctl("start", UNIT)
    until(lambda: LOG.read_text().count(ready) == expected, "the servers")
    # The first one may be refused because the start is not over.
    until(lambda: request() and refusal in LOG.read_text(), "a refusal")
    assert LOG.read_text().count(ready) == expected
    systemctl("stop", UNIT)


def prepare(python: str, package: str) -> None:
    """Make what the units name: the user, the command, the application."""
    for path in [Path(python), Path(package), Path(python).resolve()]:
        for parent in path.parents:
            parent.chmod(parent.stat().st_mode | 0o055)
    with open("/etc/passwd", "a") as users, open("/etc/group", "a") as groups:
        users.write("shop:x:4242:4242::/srv/shop:/bin/sh\n")
        groups.write("shop:x:4242:\n")
    command = SHOP / ".venv/bin/sanic-worker"
    command.parent.mkdir(parents=True)
    lines = [
        "#!/bin/sh",
        f"export PYTHONPATH={package} PYTHONDONTWRITEBYTECODE=1",
        f'exec {python} -m worker "$@"',
    ]
    command.write_text("\n".join(lines) + "\n")
    command.chmod(0o755)
    (SHOP / "shop.py").write_text((UNITS / "shop.py").read_text())
    LOG.touch()
    drop_in(
        "log",
        "[Service]",
        f"Environment={MARK}",
        f"StandardOutput=append:{LOG}",
        f"StandardError=append:{LOG}",
    )


if __name__ == "__main__":
    prepare(*sys.argv[2:])
    try:
        globals()[sys.argv[1]]()
    except BaseException:
        traceback.print_exc()
        print(LOG.read_text()[-8000:])
        sys.exit(1)
