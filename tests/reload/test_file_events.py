"""Where file events are incomplete, all files are scanned. One log line gives the reason and the remedy."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from time import monotonic

import pytest
from support.cores import CORES
from support.watching import Watching, make_site

from worker._core import Scanner
from worker._reload import file_events
from worker._reload.file_events import FileEvents

pytestmark = pytest.mark.slow

SAID = re.compile(
    r"WARNING: Reloader: file events do not tell everything \((.*)\)\. Scanning all files every 0\.2 s\."
)
Start = Callable[..., Watching]


def limited(limit: str, number: int) -> list[str]:
    """Return a command that runs another one with a limit of its own on inotify."""
    script = f'echo {number} > /proc/sys/user/max_inotify_{limit} && exec "$@"'
    return ["unshare", "--user", "--map-root-user", "sh", "-c", script, "sh"]


def can_be_limited() -> bool:
    try:
        return subprocess.run([*limited("watches", 100), "true"], capture_output=True).returncode == 0
    except OSError:
        return False


@pytest.fixture(params=CORES)
def start(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Start]:
    """Start a reloader that watches two directories, one of them in the other."""
    make_site(tmp_path)
    (tmp_path / "watched" / "below").mkdir(parents=True)
    started: list[Watching] = []

    def start(interval: float = 0.2, **options: object) -> Watching:
        root = tmp_path / "watched"
        started.append(Watching(request.param, tmp_path, root, interval=interval, **options))  # type: ignore[arg-type]
        return started[-1]

    yield start
    for watching in started:
        assert watching.close() == 0


def sees(watching: Watching, path: Path) -> None:
    for content in ("x", "xx"):
        path.write_text(content)
        known = len(watching.reloads)
        watching.until(
            partial(lambda known: any(str(path) in told for told in watching.reloads[known:]), known)
        )


def said(watching: Watching) -> str:
    (text,) = SAID.findall(watching.log.read_text())
    return str(text)


class TestLimits:
    pytestmark = pytest.mark.skipif(not can_be_limited(), reason="needs a user namespace")

    def test_too_few_inotify_watches(self, start: Start, tmp_path: Path) -> None:
        watching = start(under=limited("watches", 3))
        sees(watching, tmp_path / "watched" / "below" / "a.py")
        (tmp_path / "watched" / "new").mkdir()
        sees(watching, tmp_path / "watched" / "new" / "a.py")
        assert re.match(
            r"not all of \d+ directories can be watched; `sysctl fs.inotify.max_user_watches=524288` "
            r"\(it is \d+\) would do, or patterns of files to ignore "
            r"\(SANIC_WORKER_RELOAD_IGNORE\)$",
            said(watching),
        )

    def test_too_few_inotify_instances(self, start: Start, tmp_path: Path) -> None:
        watching = start(under=limited("instances", 0))
        sees(watching, tmp_path / "watched" / "below" / "a.py")
        assert re.match(
            r".*Too many open files.*; `sysctl fs.inotify.max_user_instances=1024` "
            r"\(it is \d+\), or more open files \(ulimit -n\), would do$",
            said(watching),
        )


def test_polling_can_be_forced(start: Start, tmp_path: Path) -> None:
    watching = start(environment={"WATCHFILES_FORCE_POLLING": "true"})
    sees(watching, tmp_path / "watched" / "below" / "a.py")
    assert said(watching) == "WATCHFILES_FORCE_POLLING is set"


@pytest.mark.parametrize("text", ["", "0", "false", "Disabled"])
def test_polling_is_not_forced_by_false_values(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("WATCHFILES_FORCE_POLLING", text)
    assert bool(FileEvents((), 0.05, lambda: True).degraded_reason) == (text == "0")


def test_names_that_are_no_utf8(start: Start, tmp_path: Path) -> None:
    """Paths that watchfiles can neither take nor report."""
    folder = tmp_path / "watched" / "\udcff"
    folder.mkdir()
    watching = start()
    sees(watching, folder / "a.py")
    sees(watching, tmp_path / "watched" / "\udcfe.py")
    sees(watching, tmp_path / "watched" / "below" / "a.py")
    assert said(watching) == rf"b'{tmp_path}/watched/\xff' is no UTF-8 and cannot be watched"


@pytest.mark.parametrize("kind", ["nfs4", "fuse.sshfs", "9p"])
def test_network_file_systems_are_scanned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    device = tmp_path.stat().st_dev
    numbers = f"{os.major(device)}:{os.minor(device)}"
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        f"1 0 0:1 / /proc rw - proc proc rw\n2 0 {numbers} / /net rw shared:1 - {kind} host:/ rw\n"
    )
    scanner = Scanner([tmp_path])
    scanner.scan()
    for source, reason in (
        (mounts, f" is on a file system that does not tell of all changes ({kind})"),
        (None, ""),
    ):
        monkeypatch.setattr(file_events, "MOUNTS", str(source))
        watching = FileEvents([str(tmp_path)], 0.05, lambda: True)
        assert watching.cover(scanner, ()) is True
        assert watching.degraded_reason.removeprefix(str(tmp_path)) == reason
        assert not watching.polling
        watching.close()


def test_an_edit_is_reported_after_a_queue_overflow(start: Start, tmp_path: Path) -> None:
    """The kernel drops later events: here an edit, while the reloader is suspended."""
    with open("/proc/sys/fs/inotify/max_queued_events", encoding="ascii") as limit:
        room = int(limit.read())
    watching = start(interval=3600.0)
    sees(watching, tmp_path / "watched" / "below" / "b.py")
    noise = [tmp_path / "watched" / f"{number}.tmp" for number in range(2)]
    edited = tmp_path / "watched" / "below" / "a.py"
    with watching.unaware():
        stopped, number = monotonic(), 0
        while number <= room or monotonic() < stopped + 2 * file_events.STALL:
            number += 1
            noise[number % 2].write_text("")
        edited.write_text("x")
    watching.until(lambda: str(edited) in watching.changed)
