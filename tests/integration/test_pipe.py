"""After a malformed message the main process names its sender, and obeys the next command."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .apps.messages import MESSAGES
from .harness import Server
from .tools import wait_until

HONEST = 100


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server.run("apps.hostile:app", cwd=tmp_path_factory.mktemp("pipe")) as server:
        server.wait_ready()
        server.settled(2)
        yield server
        # A test must not do it: another one may come after it.
        assert server.stop() == 0


@pytest.fixture
def alive(server: Server) -> Server:
    """The server, if no test before has ended it."""
    if server.exit_code is not None:
        pytest.fail(f"an earlier message has ended the server with {server.exit_code}", pytrace=False)
    return server


def obeys(server: Server) -> None:
    """Restart a worker."""
    before = server.settled(2)
    who = server.post("/m/restart")["name"]
    wait_until(lambda: server.settled(2)[who]["pid"] != before[who]["pid"], "a restart after it")


@pytest.mark.parametrize("which", [*MESSAGES, "ghost"])
def test_a_bad_message_is_logged_with_its_sender(alive: Server, which: str) -> None:
    mark = alive.mark()
    sent = alive.post(f"/bad/{which.replace(' ', '-')}")
    alive.wait_line(rf"Failed to restart processes: {sent['probe']}$", since=mark)
    complaints = [line.text for line in alive.output.lines[mark:] if line.stream == "err"]
    assert any(sent["name"] in text for text in complaints[:-1]), complaints
    assert len(alive.settled(2)) == 2


def test_a_payload_that_is_no_pickle_is_logged_with_its_sender(alive: Server) -> None:
    mark = alive.mark()
    sent = alive.post("/garbage")
    alive.wait_line(rf"Failed to restart processes: {sent['probe']}$", since=mark)
    assert any(sent["name"] in line.text for line in alive.output.lines[mark:] if line.stream == "err")


def test_the_shorter_tuple_of_earlier_releases_is_accepted(alive: Server) -> None:
    alive.post("/seven")
    (event,) = alive.wait_events("nothing")
    assert event.process == "Sanic-Seven-0"


@pytest.mark.parametrize("sender", ["Oversize", "Noise", "Truncated"])
def test_bytes_that_are_no_frame_are_logged_with_their_sender(alive: Server, sender: str) -> None:
    mark = alive.mark()
    alive.post("/m/restart", {"name": f"Sanic-{sender}-0"})
    alive.wait_events("sent", what=sender.lower())
    alive.wait_line(f"Sanic-{sender}-0", since=mark)
    obeys(alive)


def test_valid_messages_arrive_beside_malformed_ones(alive: Server) -> None:
    mark = alive.mark()
    names = ("Fuzz", "HonestA", "HonestB")
    alive.post("/m/restart", {"name": ",".join(f"Sanic-{name}-0" for name in names)})
    for what in ("honest-a", "honest-b", "fuzz"):
        alive.wait_events("sent", what=what)
    alive.post("/send", ["Probe-after-all"])
    alive.wait_line("Failed to restart processes: Probe-after-all$", since=mark)
    prefix = "Failed to restart processes: honest-"
    received = [line.text.partition(prefix)[2] for line in alive.output.lines[mark:] if prefix in line.text]
    # Each sender's messages arrive once each and in order.
    for label in "ab":
        assert [text for text in received if text.startswith(label)] == [
            f"{label}-{n}" for n in range(HONEST)
        ]
    obeys(alive)
