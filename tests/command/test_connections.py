"""The connections of the client: errors, keys and transports."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme
from support.fake_inspector import FakeInspector, event

from worker._system import runtime
from worker.cli.inspect.exits import ExitCode

from .conftest import Run, running

KEY = "a secret"


class TestErrors:
    @pytest.mark.parametrize(
        ("code", "message", "expected"),
        [
            (400, "replicas cannot be 'x'\n\x1b[2J", "replicas cannot be 'x' \\x1b[2J"),
            (
                404,
                "Unknown action: x. There are: reload, scale",
                "Unknown action: x. There are: reload, scale",
            ),
            (500, "", "500 Internal Server Error"),
            (503, "The state cannot be reached", "The state cannot be reached"),
        ],
    )
    def test_the_text_of_the_server_is_shown(
        self, inspector: FakeInspector, run: Run, code: int, message: str, expected: str
    ) -> None:
        inspector.refusals["/scale"] = (code, message)
        found = run("inspect", "scale", "3", *inspector.args)
        assert found == (ExitCode.FAILED, "", f"sanic-worker: {expected}\n")

    def test_a_forbidden_request(self, inspector: FakeInspector, run: Run) -> None:
        inspector.refusals["/status"] = (403, "The request is refused")
        assert run("ps", *inspector.args) == (ExitCode.REFUSED, "", "sanic-worker: The request is refused\n")

    @pytest.mark.parametrize("args", [["ps"], ["inspect", "reload", "--wait"], ["events", "-f"]])
    def test_nothing_listens(self, run: Run, args: list[str]) -> None:
        with socket.socket() as taken:
            # Nothing else can listen there meanwhile.
            taken.bind(("127.0.0.1", 0))
            port = taken.getsockname()[1]
            code, out, err = run(*args, "-H", "127.0.0.1", "-p", str(port))
        assert (code, out) == (ExitCode.UNREACHABLE, "")
        (line,) = err.splitlines()
        assert line.startswith(f"sanic-worker: Nothing listens at http://127.0.0.1:{port}. Start the server")
        assert "INSPECTOR = True" in line and "SANIC_INSPECTOR_PORT" in line

    def test_no_unix_socket(self, run: Run, tmp_path: Path) -> None:
        code, _, err = run("ps", f"--unix={tmp_path}/x")
        assert code == ExitCode.UNREACHABLE
        assert err.startswith(f"sanic-worker: Nothing listens at unix:{tmp_path}/x. ")

    def test_an_unknown_host(self, run: Run) -> None:
        code, _, err = run("ps", "-H", "nowhere.invalid")
        assert code == ExitCode.UNREACHABLE
        assert err.startswith("sanic-worker: Cannot connect to http://nowhere.invalid:6457: ")
        assert "--secure" not in err

    def test_a_unix_socket_that_closes_the_connection(self, run: Run, tmp_path: Path) -> None:
        path = str(tmp_path / "x")
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(path)
            other.listen()

            def close() -> None:
                other.accept()[0].close()

            thread = threading.Thread(target=close)
            thread.start()
            code, _, err = run("ps", f"--unix={path}")
            thread.join()
        assert code == ExitCode.UNREACHABLE
        assert err.startswith(f"sanic-worker: Cannot connect to unix:{path}: ")
        assert "--secure" not in err

    def test_no_answer_in_time(self, run: Run) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            port = silent.getsockname()[1]
            code, _, err = run("ps", f"-p{port}", "-H127.0.0.1", "--timeout=0.2")
        assert code == ExitCode.UNREACHABLE
        assert err == (
            f"sanic-worker: No answer from http://127.0.0.1:{port} in time. "
            "--timeout sets the limit, in seconds.\n"
        )

    @pytest.mark.parametrize("answer", [b"", b"SSH-2.0-x\r\n", b"HTTP/1.1 200 OK\r\n\r\n<html>"])
    def test_another_server_listens(self, run: Run, answer: bytes) -> None:
        with socket.create_server(("127.0.0.1", 0)) as other:

            def serve() -> None:
                connection, _ = other.accept()
                with connection:
                    connection.recv(4096)
                    connection.sendall(answer)

            thread = threading.Thread(target=serve)
            thread.start()
            code, _, err = run("ps", "-H127.0.0.1", f"-p{other.getsockname()[1]}")
            thread.join()
        assert code == (ExitCode.FAILED if b"HTTP" in answer else ExitCode.UNREACHABLE)
        assert len(err.splitlines()) == 1

    def test_a_wrong_command(self, run: Run) -> None:
        code, _, err = run("inspect", "scale")
        assert code == ExitCode.USAGE
        assert err.endswith("See sanic-worker inspect scale --help\n")

    def test_top_needs_a_terminal(self, inspector: FakeInspector, run: Run) -> None:
        code, out, err = run("top", *inspector.args)
        assert (code, out) == (ExitCode.USAGE, "")
        assert err == "sanic-worker: top needs a terminal; `ps` and `ps --json` do not\n"

    def test_the_reader_of_a_pipe_may_leave(self, inspector: FakeInspector) -> None:
        inspector.events = [event(1, "x" * 1000)] * 500
        command = [sys.executable, "-m", "worker", "events", *inspector.args]
        with running(command, stderr=subprocess.PIPE) as client:
            assert client.stdout is not None and client.stderr is not None
            client.stdout.readline()
            client.stdout.close()
            assert client.stderr.read() == ""
            assert client.wait(20) == ExitCode.FAILED


class TestKey:
    @pytest.fixture
    def locked(self) -> Iterator[FakeInspector]:
        with FakeInspector(key=KEY) as found:
            yield found

    @pytest.mark.parametrize("args", [[], ["-k", "wrong"]])
    def test_without_it_the_request_is_refused(
        self, locked: FakeInspector, run: Run, args: list[str]
    ) -> None:
        code, out, err = run("ps", *locked.args, *args)
        assert (code, out) == (ExitCode.REFUSED, "")
        assert err == "sanic-worker: Bad API key. Give the key by SANIC_INSPECTOR_API_KEY or --api-key\n"

    @pytest.mark.parametrize("place", ["option", "environment"])
    def test_with_it_the_request_is_answered(
        self, locked: FakeInspector, run: Run, place: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if place == "environment":
            monkeypatch.setenv("SANIC_INSPECTOR_API_KEY", KEY)
        args = ["--api-key", KEY] if place == "option" else []
        code, out, err = run("ps", *locked.args, *args)
        assert (code, err) == (0, "")
        assert KEY not in out

    def test_the_option_wins(self, locked: FakeInspector, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SANIC_INSPECTOR_API_KEY", "wrong")
        assert run("ps", *locked.args, "-k", KEY)[0] == 0

    @pytest.mark.parametrize("key", ["schl\u00fcssel", "\u6771\u4eac"])
    def test_it_is_sent_as_utf_8(self, run: Run, key: str) -> None:
        with FakeInspector(key=key) as inspector:
            assert run("ps", *inspector.args, "-k", key)[0] == 0

    def test_one_that_is_no_utf_8_is_sent_as_it_is(self, locked: FakeInspector, run: Run) -> None:
        code, _, err = run("ps", *locked.args, "-k", os.fsdecode(b"\xff"))
        assert code == ExitCode.REFUSED, err
        sent = locked.requests[0].headers["Authorization"]
        assert sent.encode("latin-1") == b"Bearer \xff"

    def test_a_key_that_http_cannot_send_is_not_printed(self, locked: FakeInspector, run: Run) -> None:
        code, _, err = run("ps", *locked.args, "-k", "se\ncret")
        assert code == ExitCode.USAGE
        assert "cret" not in err.replace("sanic", "")


class TestTransports:
    def test_a_unix_socket(self, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        with FakeInspector(unix=tmp_path / "inspector") as inspector:
            assert run("ps", *inspector.args)[0] == 0
            monkeypatch.setenv("SANIC_WORKER_INSPECTOR_UNIX", str(inspector.unix))
            assert run("inspect", "greet")[:2] == (0, "hello\n")
            assert inspector.requests[0].headers["Host"] == "localhost"

    def test_tls_is_verified(self, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        authority = trustme.CA()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(context)
        authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        with FakeInspector(tls=context) as inspector:
            code, _, err = run("ps", *inspector.args, "--secure")
            assert code == ExitCode.UNREACHABLE
            assert "is not trusted" in err and "SSL_CERT_FILE" in err
            monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
            assert run("ps", *inspector.args, "--secure")[0] == 0
            assert run("ps", "-H", f"https://127.0.0.1:{inspector.port}")[0] == 0
            code, _, err = run("ps", *inspector.args)
            assert code == ExitCode.UNREACHABLE
            assert "add --secure" in err

    def test_a_server_of_this_user_is_found(
        self, inspector: FakeInspector, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(runtime, "directories", lambda: [f"{tmp_path}/run"])
        monkeypatch.setattr("worker.cli.inspect.address.directories", lambda: [f"{tmp_path}/run"])
        url = f"http://127.0.0.1:{inspector.port}"
        runtime.write({"pid": os.getpid(), "app": "shop", "url": url, "started": ""})
        assert run("ps")[0] == 0
        assert inspector.requests[0][:2] == ("GET", "/status")
