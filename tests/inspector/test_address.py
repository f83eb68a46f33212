"""The address of an inspector: its URL, and addresses that are refused before they are used."""

from __future__ import annotations

import logging
import multiprocessing
import os
import socket
from pathlib import Path
from typing import Any

import pytest
from support.fakes import FakePublisher
from support.ports import hold_port
from support.running import errors

from worker import settings
from worker._inspect import address
from worker._inspect.address import Address, AddressRefusedError

from .test_inspector import make

PLAIN = settings.resolve({})


@pytest.fixture(autouse=True)
def _runtime_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"host": "localhost", "port": 6457}, "http://localhost:6457"),
        ({"host": "::1", "port": 1}, "http://[::1]:1"),
        ({"host": "localhost", "port": 0}, "http://localhost:<any free port>"),
        ({"host": "localhost", "port": 1, "is_secure": True}, "https://localhost:1"),
        ({"host": "localhost", "port": 1, "unix": "/a b"}, "unix:/a b"),
    ],
)
def test_the_configured_url(given: dict[str, Any], expected: str) -> None:
    assert Address(**given).url == expected


@pytest.mark.parametrize(
    ("host", "is_secure", "expected"),
    [
        ("localhost", False, "http://127.0.0.1:"),
        ("0.0.0.0", False, "http://127.0.0.1:"),
        ("", False, "http://127.0.0.1:"),
        ("::1", False, "http://[::1]:"),
        ("::", False, "http://[::1]:"),
        ("localhost", True, "https://localhost:"),
        ("::1", True, "https://[::1]:"),
        ("0.0.0.0", True, "https://127.0.0.1:"),
    ],
)
def test_the_url_in_the_state_is_for_clients_of_this_machine(
    host: str, is_secure: bool, expected: str, tmp_path: Path
) -> None:
    name = multiprocessing.current_process().name
    state: dict[str, Any] = {name: {}}
    with Address(host, 0, "", is_secure, may_be_open=True).listening(state, "shop", os.getpid()) as sock:
        port = sock.getsockname()[1]
        assert state == {name: {"address": f"{expected}{port}"}}
        (path,) = (tmp_path / "sanic-worker").iterdir()
        assert f'"url": "{expected}{port}"' in path.read_text()
    assert not path.exists()
    # The next process of this slot gets the same port: here one that no other program can take meanwhile.
    with hold_port("::1" if ":" in host else "127.0.0.1") as held:
        port = held.getsockname()[1]
        state[name]["address"] = f"{expected}{port}"
        with Address(host, 0, "", is_secure, may_be_open=True).listening(state, "shop", os.getpid()) as sock:
            assert sock.getsockname()[1] == port


@pytest.mark.parametrize("state", [{}, {"MainProcess": {"address": "http://[broken"}}])
def test_a_state_without_an_address_is_no_obstacle(state: dict[str, Any]) -> None:
    with Address("localhost", 0).listening(state, "", 1) as sock:
        assert sock.getsockname()[1]


def test_a_file_that_cannot_be_written_is_one_debug_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    caplog.set_level(logging.DEBUG, "sanic.root")
    monkeypatch.setattr(address.runtime, "directories", lambda: [str(tmp_path / "no" / "such")])
    with Address("localhost", 0).listening({}, "", 1):
        lines = [record for record in caplog.records if "announced" in record.getMessage()]
        assert [record.levelno for record in lines] == [logging.DEBUG]
    assert errors(caplog) == []


class TestRefused:
    @pytest.mark.parametrize("port", [65_536, -1, "x", "", None, 1.5])
    def test_a_port_that_is_none(self, port: Any, caplog: pytest.LogCaptureFixture) -> None:
        assert make(port=port).__before_start__(PLAIN) is None
        with pytest.raises(SystemExit) as end:
            make(port=port)()
        assert end.value.code == 1
        first, second = errors(caplog)
        assert first == second
        assert f"cannot listen on localhost:{port}: a port is a whole number from 0 to 65535" in first

    def test_a_host_that_is_none(self, caplog: pytest.LogCaptureFixture) -> None:
        host: Any = None
        assert make(host=host).__before_start__(PLAIN) is None
        (line,) = errors(caplog)
        assert line.startswith("Inspector not started: cannot listen on None:6457: ")

    def test_main_leaves_an_address_that_is_in_use_to_the_inspector(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            assert make(port=port).__before_start__(PLAIN) == f"http://localhost:{port}"

    def test_main_does_not_touch_a_unix_socket(self) -> None:
        path = Path("/no/such/inspector")
        given = settings.resolve({"inspector_unix": path})
        # Neither the host nor TLS matter.
        inspector = make(FakePublisher(), host="0.0.0.0", tls_key="k", tls_cert="c")
        assert inspector.__before_start__(given) == f"unix:{path}"

    def test_a_host_that_is_not_loopback_is_refused_when_it_listens(self) -> None:
        listening = Address("0.0.0.0", 0).listening({}, "", 1)
        with pytest.raises(AddressRefusedError, match="any client that reaches this machine"), listening:
            pass
