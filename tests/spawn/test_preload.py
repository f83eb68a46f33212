"""Servers from a fork server that has imported their modules: when it is used, and when not."""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Iterator
from multiprocessing import Pipe, get_context
from multiprocessing.connection import Connection
from typing import Any

import pytest
import sanic
from support.running import until

import worker
from worker._spawn import preload, processes
from worker._spawn.processes import factory

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    yield
    preload.reset()


def start_fork_server() -> None:
    processes.start_fork_server(get_context("spawn"))
    until(preload.is_ready, "the fork server to be ready")


VARIABLES = ("SANIC_WORKER_NAME", "COLOUR", "KEPT")


def colour(name: str) -> None:
    os.environ[name] = "red"


class Application:
    """Write a module that sets a variable of its own when a child imports it."""

    def __reduce__(self) -> Any:
        return colour, ("OWN_COLOUR",)


def shows_environment(journal: Connection, application: object) -> None:
    journal.send([os.environ.get(name) for name in (*VARIABLES, "OWN_COLOUR")])


def kind(method: str, *, is_server: bool = True) -> str:
    process = factory(get_context(method), is_server=is_server)(name="Sanic-Server-0-0", target=print)
    return str(process._start_method)


def test_only_servers_that_would_be_spawned_use_the_fork_server() -> None:
    assert kind("spawn") == kind("spawn", is_server=False) == "spawn"
    start_fork_server()
    assert (kind("spawn"), kind("spawn", is_server=False)) == ("forkserver", "spawn")
    assert kind("fork") == "fork"
    preload.reset()
    assert kind("spawn") == "spawn"


@pytest.mark.parametrize("method", ["fork", "forkserver", None])
def test_no_fork_server_for_other_start_methods(method: str | None) -> None:
    class Foreign:
        """A context of a foreign class."""

    context: Any = Foreign() if method is None else get_context(method)
    processes.start_fork_server(context)
    assert not preload.is_ready()


@pytest.mark.parametrize(
    "changed",
    [
        os.path.join(os.path.dirname(sanic.__file__), "app.py"),
        os.path.join(os.path.dirname(worker.__file__), "serve.py"),
        os.path.join(sysconfig.get_path("purelib"), "any", "other.py"),
        os.path.join(sysconfig.get_path("stdlib"), "json", "decoder.py"),
    ],
)
def test_a_change_of_an_imported_module_invalidates_the_fork_server(changed: str) -> None:
    start_fork_server()
    preload.invalidate_if_changed(["/srv/app.py", "relative.py", ""])
    assert preload.is_ready()
    preload.invalidate_if_changed(["/srv/app.py", changed])
    assert not preload.is_ready()
    processes.start_fork_server(get_context("spawn"))
    assert not preload.is_ready()


def test_servers_have_the_current_environment_of_the_main_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEPT", "blue")
    start_fork_server()
    journal, writer = Pipe(False)
    changes: list[tuple[Any, ...]] = [
        (monkeypatch.setenv, "SANIC_WORKER_NAME", "Sanic-Server-1-0"),
        (monkeypatch.setenv, "COLOUR", "blue"),
        (monkeypatch.setenv, "COLOUR", "green"),
        (monkeypatch.delenv, "COLOUR"),
        (monkeypatch.delenv, "KEPT"),
    ]
    for change, *args in changes:
        change(*args)
        arguments = {"journal": writer, "application": Application()}
        process = factory(get_context("spawn"), is_server=True)(
            name="Sanic-Server-0-0", target=shows_environment, kwargs=arguments, daemon=True
        )
        process.start()
        assert type(process) is processes.ForkServerProcess
        # A variable that the application has set itself stays.
        assert journal.recv() == [*map(os.environ.get, VARIABLES), "red"]
        process.join()
        process.close()
    journal.close()
    writer.close()
