"""Requests that a foreign web page may have caused, and loopback addresses."""

from __future__ import annotations

import multiprocessing
import socket
from pathlib import Path
from typing import Any

import pytest
from sanic.compat import Header
from sanic.server.socket import bind_socket
from support.fakes import FakePublisher
from support.running import House, errors

from worker import settings
from worker._inspect.origin import is_loopback, refusal_reason
from worker.inspector import Inspector
from worker.process import Worker

from .test_inspector import Running, make

OWN = ("Host", "localhost:6457")


class Request:
    """A request with the given headers."""

    def __init__(self, *headers: tuple[str, str], method: str = "POST", version: str = "1.1") -> None:
        self.headers = Header(headers)
        self.method = method
        self.version = version


def refused(*headers: tuple[str, str], scheme: str = "http", **given: Any) -> str:
    return refusal_reason(Request(*headers, **given), scheme)  # type: ignore[arg-type]


class TestHost:
    @pytest.mark.parametrize("port", ["", ":", ":6457", ":1", ":65535"])
    @pytest.mark.parametrize(
        "host",
        [
            "localhost",
            "LocalHost",
            "localhost.",
            "127.0.0.1",
            "127.1",
            "127.255.0.3",
            "10.1.2.3",
            "0.0.0.0",
            "[::1]",
            "[::]",
            "[::ffff:127.0.0.1]",
            "[2001:DB8::1]",
        ],
    )
    def test_an_address_or_localhost_is_accepted(self, host: str, port: str) -> None:
        assert refused(("Host", host + port)) == ""

    @pytest.mark.parametrize("port", ["", ":6457"])
    @pytest.mark.parametrize(
        "host",
        [
            "evil.example",
            "evil.example.",
            "localhost.evil.example",
            "evil-localhost",
            "localhost..",
            "app.localhost",
            "localhost.localdomain",
            "127.0.0.1.evil.example",
            "127.0.0.1.nip.io",
            "127.0.0.1 evil.example",
            "evil.example@localhost",
            "localhost@127.0.0.1",
            "localhost/",
            "localhost#",
            "localhost, evil.example",
            "127.0.0.256",
            "1.2.3.4.5",
            "[::1",
            "::1",
            "[::1]x",
            "[evil.example]",
            "[v1.x]",
            "",
            ".",
            "-",
            "%6cocalhost",
            "\u217cocalhost",
        ],
    )
    def test_another_name_is_refused(self, host: str, port: str) -> None:
        for method in ("GET", "POST"):
            assert "neither an IP address nor localhost" in refused(("Host", host + port), method=method)

    @pytest.mark.parametrize("port", ["x", "-1", "6457:1", "123456", " 1", "\u0661"])
    def test_an_invalid_port_is_refused(self, port: str) -> None:
        assert refused(("Host", f"localhost:{port}"))

    def test_several_headers_are_refused(self) -> None:
        assert "several Host" in refused(OWN, OWN)
        assert "several Host" in refused(OWN, ("host", "evil.example"))

    def test_a_missing_header_is_refused(self) -> None:
        assert "no Host" in refused()
        assert "no Host" in refused(("Origin", "http://localhost:6457"), version="1.0")
        # A probe, never a browser.
        assert refused(version="1.0") == ""


class TestOrigin:
    @pytest.mark.parametrize(
        ("scheme", "host", "origin"),
        [
            ("http", "localhost:6457", "http://localhost:6457"),
            ("http", "localhost:6457", "HTTP://LOCALHOST:6457"),
            ("https", "localhost:6457", "https://localhost:6457"),
            ("http", "localhost", "http://localhost"),
            ("http", "localhost:80", "http://localhost"),
            ("https", "localhost", "https://localhost:443"),
            ("http", "[::1]:6457", "http://[::1]:6457"),
            ("http", "10.1.2.3:6457", "http://10.1.2.3:6457"),
            # All names of this machine for itself are one host.
            ("http", "localhost:6457", "http://127.0.0.1:6457"),
        ],
    )
    def test_the_own_origin_is_accepted(self, scheme: str, host: str, origin: str) -> None:
        assert refused(("Host", host), ("Origin", origin), scheme=scheme) == ""

    @pytest.mark.parametrize(
        "origin",
        [
            "http://evil.example",
            "http://evil.example:6457",
            "http://localhost",
            "http://localhost:3000",
            "http://localhost:64570",
            "https://localhost:6457",
            "http://10.1.2.3:6457",
            "http://localhost.evil.example:6457",
            "http://localhost:6457@evil.example",
            "http://[broken",
            "ftp://localhost:6457",
            "localhost:6457",
            "file://",
            "null",
            "",
        ],
    )
    def test_another_origin_is_refused(self, origin: str) -> None:
        for method in ("GET", "POST"):
            assert "is not the inspector's own" in refused(OWN, ("Origin", origin), method=method)

    def test_the_origin_of_another_address_is_refused(self) -> None:
        assert refused(("Host", "10.1.2.3:6457"), ("Origin", "http://10.1.2.4:6457"))

    def test_several_headers_are_refused(self) -> None:
        own = ("Origin", "http://localhost:6457")
        assert "several Host or Origin" in refused(OWN, own, own)
        assert "several Host or Origin" in refused(OWN, own, ("origin", "null"))


class TestSite:
    @pytest.mark.parametrize("site", ["cross-site", "same-site", "Cross-Site", "", "other"])
    @pytest.mark.parametrize("mode", ["no-cors", "cors", "websocket", None])
    @pytest.mark.parametrize("method", ["GET", "POST"])
    def test_another_site_is_refused(self, method: str, mode: str | None, site: str) -> None:
        modes = [("Sec-Fetch-Mode", mode)] if mode else []
        assert "another site" in refused(OWN, ("Sec-Fetch-Site", site), *modes, method=method)

    @pytest.mark.parametrize("site", ["cross-site", "same-site"])
    def test_navigation_is_accepted_only_for_get(self, site: str) -> None:
        headers = (OWN, ("Sec-Fetch-Site", site), ("Sec-Fetch-Mode", "navigate"))
        assert refused(*headers, method="GET") == ""
        assert "another site" in refused(*headers, method="POST")
        assert "another site" in refused(*headers, ("Sec-Fetch-Mode", "cors"), method="GET")
        # A link does not make another name resolve to this machine.
        assert "neither" in refused(("Host", "evil.example"), *headers[1:], method="GET")

    @pytest.mark.parametrize("site", ["none", "same-origin", "Same-Origin"])
    def test_the_own_site_is_accepted(self, site: str) -> None:
        assert refused(OWN, ("Sec-Fetch-Site", site), ("Sec-Fetch-Mode", "cors")) == ""

    def test_several_headers_are_refused(self) -> None:
        assert refused(OWN, ("Sec-Fetch-Site", "none"), ("Sec-Fetch-Site", "cross-site"))


class TestOverASocket:
    """The check applies to the bytes on the wire."""

    def test_raw_requests(self) -> None:
        with Running("fork") as running:
            assert running.message() == "ready"

            def status(*lines: str, version: str = "1.1") -> int:
                head = "\r\n".join([f"POST /reload HTTP/{version}", *lines, "Connection: close", "", ""])
                with socket.create_connection(("127.0.0.1", running.port)) as sock:
                    sock.sendall(head.encode())
                    return int(sock.makefile("rb").readline().split()[1])

            host = f"Host: localhost:{running.port}"
            own = f"Origin: http://localhost:{running.port}"
            assert status("Host: evil.example") == 403
            assert status(host, "Host: evil.example") == 403
            assert status("Host: evil.example", host) == 403
            assert status() == 403
            assert status("Host:") == 403
            assert status(host, "Origin: http://localhost:1") == 403
            assert status(host, own, own) == 403
            assert status(host, "Sec-Fetch-Site: same-site", "Sec-Fetch-Mode: navigate") == 403
            assert not running.receiver.poll(0)
            assert status(host, own) == 200
            assert status(version="1.0") == 200
            assert running.message() == running.message() == "__ALL_PROCESSES__:"


class TestLoopback:
    @pytest.mark.parametrize(
        ("host", "expected"),
        [
            ("localhost", True),
            ("127.0.0.1", True),
            ("127.1", True),
            ("127.0.0.53", True),
            ("::1", True),
            ("::ffff:127.0.0.1", True),
            ("0.0.0.0", False),
            ("0", False),
            ("", False),
            ("::", False),
            ("::ffff:0.0.0.0", False),
        ],
    )
    def test_is_determined_from_the_socket(
        self, host: str, expected: bool, caplog: pytest.LogCaptureFixture
    ) -> None:
        with bind_socket(host, 0) as sock:
            assert is_loopback(sock) is expected
        inspector = make(host=host)
        assert (inspector.__before_start__(settings.resolve({})) is not None) is expected
        told = errors(caplog)
        assert len(told) == (not expected)
        assert all("INSPECTOR_API_KEY" in line and "SANIC_WORKER_INSPECTOR_OPEN" in line for line in told)

    def test_a_name_is_resolved(self, monkeypatch: pytest.MonkeyPatch) -> None:
        bound: list[str] = []

        def bind(host: str, port: int) -> socket.socket:
            bound.append(host)
            return bind_socket({"here.example": "127.0.0.1", "all.example": "0.0.0.0"}[host], port)

        monkeypatch.setattr("worker._inspect.address.bind_socket", bind)
        plain = settings.resolve({})
        assert make(host="here.example").__before_start__(plain)
        assert not make(host="all.example").__before_start__(plain)
        assert bound == ["here.example", "all.example"]

    @pytest.mark.parametrize("given", [{"api_key": "k"}, {"api_key": 0}, {"host": "no.such.host.invalid"}])
    def test_an_inspector_with_a_key_or_an_invalid_host_starts(self, given: dict[str, Any]) -> None:
        assert make(**{"host": "0.0.0.0", **given}).__before_start__(settings.resolve({}))

    def test_the_setting_allows_other_addresses(self, caplog: pytest.LogCaptureFixture) -> None:
        assert make(host="0.0.0.0").__before_start__(settings.resolve({"inspector_open": True}))
        assert errors(caplog) == []

    def test_the_inspector_process_checks_its_socket_too(self, caplog: pytest.LogCaptureFixture) -> None:
        with pytest.raises(SystemExit) as ended:
            make(host="0.0.0.0", port=0)()
        assert ended.value.code == 1
        (line,) = errors(caplog)
        assert line.startswith("Inspector not started: on 0.0.0.0 (0.0.0.0) ")


@pytest.mark.slow
@pytest.mark.usefixtures("main_is_heard")
class TestInAServer:
    @pytest.mark.parametrize("opened", [True, False])
    def test_the_server_runs_without_a_refused_inspector(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture, opened: bool
    ) -> None:
        house = House(tmp_path, inspector_open=opened)
        inspector: Any = Inspector(house.publisher, {}, house.state, "0.0.0.0", 0, "", "", "")
        house.manager.manage("Inspector", inspector, {}, transient=False)

        def act() -> None:
            house.said("ready")
            if opened:
                house.until("Sanic-Inspector-0", state="STARTED")
            else:
                assert house.until("Sanic-Inspector-0", state="NONE").get("pid") is None

        house.run(act)
        assert len(errors(caplog)) == (not opened)

    def test_a_target_may_refuse_to_start(self) -> None:
        context = multiprocessing.get_context("fork")

        def worker(target: Any) -> Worker:
            return Worker("x", target, {}, context, {}, settings=settings.resolve({}))

        class Broken:
            def __before_start__(self, settings: Any) -> str:
                raise RuntimeError("not made as it should be")

            def __after_stop__(self, settings: Any) -> None:
                raise RuntimeError("not made as it should be")

        assert worker(print).may_start()
        assert worker(Broken()).may_start()
        assert not worker(make(FakePublisher(), host="0.0.0.0")).may_start()
