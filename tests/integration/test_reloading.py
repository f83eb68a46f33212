"""The reloader: an edit in a watched directory restarts the workers and tells every listener once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from .harness import Server, wait_until


class Watched:
    """A directory and the files in it, whose times are set by hand so that no two edits look alike."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._now = 1_700_000_000

    def edit(self, name: str) -> str:
        """Write the file anew and return its path."""
        self._now += 10
        path = self.root / name
        path.write_text(f"{self._now}\n")
        os.utime(path, (self._now, self._now))
        return str(path.resolve())


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Watched:
    watched = Watched(tmp_path_factory.mktemp("watched"))
    for name in ("first.txt", "second.txt", "third.txt"):
        watched.edit(name)
    return watched


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, watched: Watched) -> Iterator[Server]:
    """A server whose reloader has already seen one edit, hence knows the other files."""
    cwd = tmp_path_factory.mktemp("reload")
    args = ("--reload", f"--reload-dir={watched.root}")
    with Server.run("apps.cluster:app", *args, workers=1, cwd=cwd) as server:
        server.wait_ready()
        server.settled(1)
        server.wait_events("reload_process_start")

        def noticed() -> bool:
            watched.edit("first.txt")
            return bool(server.events("after_reload_trigger"))

        wait_until(noticed, "the first reload")
        yield server


def quiet(server: Server) -> int:
    """Wait until no reload is under way and return how many there have been."""

    def look() -> bool:
        triggers = len(server.events("after_reload_trigger"))
        # Workers whose restart is still to come would start after this.
        return len(server.events("before_reload_trigger")) == triggers and bool(server.settled(1))

    wait_until(look, "quiet")
    return len(server.events("after_reload_trigger"))


def test_the_reloader_is_in_the_table(server: Server) -> None:
    server.wait_ready()
    entry = server.table()["Sanic-Reloader-0"]
    assert entry["server"] is False
    assert entry["starts"] == 1
    (started,) = server.events("reload_process_start")
    assert entry["pid"] == started.pid
    assert started.process == "Sanic-Reloader-0"


def test_an_edit_triggers_once_and_reaches_the_workers(server: Server, watched: Watched) -> None:
    quiet(server)
    path = watched.edit("second.txt")

    def triggers(file: str) -> list[list[str]]:
        return [e.fields["changed"] for e in server.events("after_reload_trigger") if file in e.fields["changed"]]

    started = server.wait_events("before_server_start", reloaded=path)
    assert started[0].process == "Sanic-Server-0-0"
    server.wait_ready()
    server.settled(1)
    assert server.get("/whoami")["reloaded"] == path

    later = watched.edit("third.txt")
    server.wait_events("before_server_start", reloaded=later)
    assert triggers(path) == [[path]]
    assert triggers(later) == [[later]]
    assert len(server.events("before_server_start", reloaded=path)) == 1
    names = [event.name for event in server.output.events if event.name.endswith("_reload_trigger")]
    assert names == ["before_reload_trigger", "after_reload_trigger"] * (len(names) // 2)
    assert len(server.events("reload_process_start")) == 1


@pytest.mark.ours
def test_a_new_file_a_deleted_one_and_an_older_one_are_changes(server: Server, watched: Watched) -> None:
    quiet(server)
    created = watched.edit("created.txt")
    server.wait_events("before_server_start", reloaded=created)
    quiet(server)
    os.utime(created, (1, 1))
    server.wait_events("before_server_start", 2, reloaded=created)
    quiet(server)
    os.unlink(created)
    server.wait_events("before_server_start", 3, reloaded=created)


@pytest.mark.ours
def test_an_awkward_name_arrives_whole(server: Server, watched: Watched) -> None:
    quiet(server)
    path = watched.edit("with,comma:and colon.txt")
    event = wait_until(
        lambda: [e for e in server.events("after_reload_trigger") if path in e.fields["changed"]], "the trigger"
    )
    assert event[0].fields["changed"] == [path]
    quiet(server)
    assert server.exit_code is None


def test_stop_ends_the_reloader_once(server: Server) -> None:
    server.wait_ready()
    server.settled(1)
    assert server.stop() == 0
    assert len(server.events("reload_process_stop")) == 1
