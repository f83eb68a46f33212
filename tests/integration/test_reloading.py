"""The reloader: an edit in a watched directory restarts the workers and reaches every listener once."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from .harness import Server
from .tools import wait_until


class Watched:
    """A directory and its files, whose times are set by hand so that no two edits look alike."""

    def __init__(self, root: Path) -> None:
        self.root = root / "watched"
        self.root.mkdir()
        self._aside = root / "aside"
        self._now = 1_700_000_000

    def edit(self, name: str) -> str:
        """Put new content in place, in one step; return the path."""
        self._now += 10
        self._aside.write_text(f"{self._now}\n")
        os.utime(self._aside, (self._now, self._now))
        return str(self._aside.replace(self.root / name).resolve())


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Watched:
    watched = Watched(tmp_path_factory.mktemp("reloading"))
    for name in (
        "first.txt",
        "second.txt",
        "with:colon.txt",
        *(f"prime-{number}.txt" for number in range(10)),
    ):
        watched.edit(name)
    return watched


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, watched: Watched) -> Iterator[Server]:
    """Start a server whose reloader has seen an edit, hence has scanned the directory before."""
    cwd = tmp_path_factory.mktemp("reload")
    args = ("--reload", f"--reload-dir={watched.root}")
    with Server.run("apps.cluster:app", *args, workers=1, cwd=cwd) as server:
        server.wait_ready()
        server.settled(1)
        server.wait_events("reload_process_start")
        for number in range(10):
            path = watched.edit(f"prime-{number}.txt")
            with contextlib.suppress(AssertionError):
                server.wait_events("before_server_start", timeout=10, reloaded=path)
                break
        yield server
        server.settled(1)
        # A test must not do it: another one may come after it.
        assert server.stop() == 0
        assert len(server.events("reload_process_stop")) == 1


def test_the_reloader_is_in_the_table(server: Server) -> None:
    server.wait_ready()
    entry = server.table()["Sanic-Reloader-0"]
    assert entry["server"] is False
    assert entry["starts"] == 1
    (started,) = server.events("reload_process_start")
    assert entry["pid"] == started.pid
    assert started.process == "Sanic-Reloader-0"


def test_an_edit_triggers_once_and_reaches_the_workers(server: Server, watched: Watched) -> None:
    path = watched.edit("first.txt")
    started = server.wait_events("before_server_start", reloaded=path)
    assert started[0].process == "Sanic-Server-0-0"
    server.wait_ready()
    # The previous worker answers until the new one does.
    wait_until(lambda: server.get("/whoami")["reloaded"] == path, "an answer of the new one")
    server.settled(1)

    later = watched.edit("second.txt")
    server.wait_events("before_server_start", reloaded=later)
    server.wait_events("after_reload_trigger", changed=[later])
    seen = [event.fields["changed"] for event in server.events("after_reload_trigger")]
    assert seen[-2:] == [[path], [later]]
    assert len(server.events("before_server_start", reloaded=path)) == 1
    names = [event.name for event in server.output.events if event.name.endswith("_reload_trigger")]
    assert names == ["before_reload_trigger", "after_reload_trigger"] * len(seen)
    assert len(server.events("reload_process_start")) == 1


@pytest.mark.ours
def test_a_colon_in_a_path_is_kept(server: Server, watched: Watched) -> None:
    path = watched.edit("with:colon.txt")
    server.wait_events("before_server_start", reloaded=path)
    server.wait_events("after_reload_trigger", changed=[path])
    assert server.events("after_reload_trigger")[-1].fields["changed"] == [path]
