"""The messages to the service manager: which change is told, and when the main process wakes up for it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from support.running import House, until

from worker._supervisor.duties import notify
from worker._supervisor.duties.notify import Facts, Told, changes, status
from worker._supervisor.model import ServerPhase
from worker._system import systemd

RUNNING = Facts(ServerPhase.RUNNING, wanted=4, ready=4, failed=0, rolls=frozenset(), failure="")
READY = Told(ready=True)
NOTHING: frozenset[int] = frozenset()
RELOADING = {"RELOADING": 1, "MONOTONIC_USEC": 77}


def told(before: Told, facts: Facts) -> dict[str, int]:
    return changes(before, facts, now_usec=77, stop_seconds=2.5)[1]


class TestDecision:
    @pytest.mark.parametrize(
        ("facts", "fields"),
        [
            (RUNNING._replace(phase=ServerPhase.STARTING), {}),
            (RUNNING._replace(ready=3), {}),
            (RUNNING._replace(ready=0, failed=4), {}),
            (RUNNING._replace(ready=3, failed=1), {"READY": 1}),
            (RUNNING, {"READY": 1}),
            (RUNNING._replace(phase=ServerPhase.START_FAILED), {}),
            (RUNNING._replace(phase=ServerPhase.STOPPING), {"STOPPING": 1, "EXTEND_TIMEOUT_USEC": 2_500_000}),
        ],
    )
    def test_a_server_is_ready_when_all_serve(self, facts: Facts, fields: dict[str, int]) -> None:
        assert told(Told(), facts) == fields

    @pytest.mark.parametrize(
        ("before", "now", "fields"),
        [
            (NOTHING, NOTHING, {}),
            (NOTHING, {1}, RELOADING),
            ({1}, {1}, {}),
            # A second roll has joined: its request waits for a message of its own.
            ({1}, {1, 2}, RELOADING),
            ({1, 2}, {2}, {}),
            ({1}, NOTHING, {"READY": 1}),
        ],
    )
    def test_a_roll_is_a_reload(
        self, before: frozenset[int], now: frozenset[int], fields: dict[str, int]
    ) -> None:
        facts = RUNNING._replace(rolls=frozenset(now))
        assert told(Told(True, frozenset(before)), facts) == fields

    def test_a_server_that_was_ready_stays_so(self) -> None:
        assert told(READY, RUNNING._replace(ready=1)) == {}

    def test_a_roll_before_the_server_is_ready_is_told_after_it(self) -> None:
        after, fields = changes(Told(), RUNNING._replace(ready=3, rolls=frozenset({1})), 77, 1)
        assert (after, fields) == (Told(), {})
        after, fields = changes(after, RUNNING._replace(rolls=frozenset({1})), 77, 1)
        assert fields == {"READY": 1}
        assert told(after, RUNNING._replace(rolls=frozenset({1}))) == RELOADING

    @pytest.mark.parametrize(
        "facts", [RUNNING._replace(phase=ServerPhase.STOPPING), RUNNING._replace(is_stopping=True)]
    )
    def test_a_stop_is_told_once_and_ends_a_reload(self, facts: Facts) -> None:
        after, fields = changes(Told(True, frozenset({1})), facts, 77, 1)
        assert fields == {"STOPPING": 1, "EXTEND_TIMEOUT_USEC": 1_000_000}
        assert told(after, facts) == {}
        # The drain delay is over.
        assert told(after, RUNNING._replace(phase=ServerPhase.STOPPING)) == {}

    @pytest.mark.parametrize(
        ("facts", "rate", "text"),
        [
            (RUNNING, 0.0, "4 of 4 workers"),
            (RUNNING, 311.7, "4 of 4 workers, 312 requests/s"),
            (RUNNING._replace(wanted=1, ready=0), 0.2, "0 of 1 worker"),
            (RUNNING._replace(phase=ServerPhase.STARTING, ready=1), 5.0, "Starting: 1 of 4 workers"),
            (RUNNING._replace(rolls=frozenset({1})), 5.0, "Reloading: 4 of 4 workers"),
            (
                RUNNING._replace(rolls=frozenset({1}), is_upgrading=True),
                5.0,
                "Upgrading: 4 of 4 workers",
            ),
            (RUNNING._replace(phase=ServerPhase.STOPPING), 5.0, "Stopping"),
            (RUNNING._replace(is_stopping=True), 5.0, "Stopping after the drain delay: 4 of 4 workers"),
            (RUNNING._replace(failure="no luck"), 0.0, "4 of 4 workers; no luck"),
        ],
    )
    def test_the_status_is_one_line(self, facts: Facts, rate: float, text: str) -> None:
        assert status(facts, rate) == text


class Receiver:
    """The socket of a service manager. Each message is a line."""

    def __init__(self, path: str) -> None:
        self.messages: list[str] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(path)
        self._thread = threading.Thread(target=self._receive, name="receiver")
        self._thread.start()

    def _receive(self) -> None:
        while message := self._socket.recv(4096):
            self.messages.append(message.decode().replace("\n", " "))

    def close(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"", self._socket.getsockname())
        self._thread.join()
        self._socket.close()

    def count(self, text: str) -> int:
        """Return the number of messages that contain a text."""
        return sum(text in message for message in [*self.messages])

    def wait(self, text: str, count: int = 1) -> None:
        """Wait for this many messages that contain a text."""
        until(lambda: self.count(text) >= count, f"{count} x {text}; {self.messages}")


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    with TemporaryDirectory() as folder:
        path = f"{folder}/notify"
        monkeypatch.setattr(systemd, "_taken", {})
        monkeypatch.setattr(systemd, "_pid", 0)
        monkeypatch.setenv("NOTIFY_SOCKET", path)
        with contextlib.closing(Receiver(path)) as receiver:
            yield receiver


@pytest.mark.slow
@pytest.mark.usefixtures("main_is_heard")
class TestMessages:
    def test_a_life_in_messages(self, tmp_path: Path, receiver: Receiver) -> None:
        systemd.take_environment()
        house = House(tmp_path, number=2)

        def act() -> None:
            receiver.wait("READY=1 STATUS=2 of 2 workers")
            house.send("Sanic-Server-0-0:")
            house.until("Sanic-Server-0-0", starts=2, serving=True)
            assert not any("RELOADING" in message for message in receiver.messages)
            os.kill(os.getpid(), signal.SIGHUP)
            receiver.wait("RELOADING=1 MONOTONIC_USEC=")
            receiver.wait("READY=1", 2)
            # It may take longer than the limit of the unit.
            reload = next(message for message in receiver.messages if "RELOADING" in message)
            assert "EXTEND_TIMEOUT_USEC=" in reload
            house.plan("fails")
            os.kill(os.getpid(), signal.SIGHUP)
            receiver.wait("READY=1", 3)
            receiver.wait("READY=1 STATUS=2 of 2 workers; the last reload was aborted: ")

        house.run(act)
        receiver.wait("STOPPING=1")
        assert receiver.messages[0].startswith("EXTEND_TIMEOUT_USEC=")
        assert sum("READY=1" in message for message in receiver.messages) == 3

    def test_the_watchdog_is_the_only_reason_to_wake_while_idle(
        self, tmp_path: Path, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("WATCHDOG_USEC", "200000")
        monkeypatch.setattr(notify, "PAUSE", 0.01)
        systemd.take_environment()
        house = House(tmp_path)

        def act() -> None:
            receiver.wait("READY=1")
            # The first figures come with one of the next, or before it.
            receiver.wait("WATCHDOG=1", receiver.count("WATCHDOG=1") + 2)
            first = len(receiver.messages)
            receiver.wait("WATCHDOG=1", receiver.count("WATCHDOG=1") + 5)
            assert {message for message in receiver.messages[first:] if "WATCHDOG" not in message} == set()

        house.run(act)
