from __future__ import annotations

import asyncio
import io
import json
import multiprocessing
import os
import socket
import ssl
import urllib.request
from collections.abc import Callable
from contextlib import closing
from datetime import datetime, timezone
from http import HTTPStatus
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import pytest
import trustme
from sanic import Sanic
from sanic.cli import inspector_client
from sanic.exceptions import BadRequest
from sanic.helpers import Default
from sanic_testing.testing import SanicASGITestClient
from support import inspecting
from support.fakes import FakePublisher
from support.ports import hold_port

from worker._inspect import serving
from worker._inspect.connections import Connection
from worker.inspector import Inspector

NOW = datetime(2024, 2, 3, 4, 5, 6, tzinfo=timezone.utc)
Ask = Callable[..., Any]


class Custom(Inspector):
    """An inspector with commands, and with attributes that only look like commands."""

    number = 5

    def plain(self, a: int, b: int = 2, *rest: int, **more: int) -> list[Any]:
        return [a, b, list(rest), more]

    async def later(self, bar: Any) -> str:
        done = asyncio.get_running_loop().create_future()
        done.get_loop().call_soon(done.set_result, None)
        await done
        return f"bar is {bar}"

    @classmethod
    def of_class(cls) -> str:
        return cls.__name__

    @staticmethod
    def loose() -> None:
        raise AssertionError("not a bound method")

    @property
    def computed(self) -> Any:
        raise AssertionError("a property was read")

    def broken(self) -> None:
        raise TypeError("a mistake of its own")

    def _hidden(self) -> None:
        raise AssertionError("not public")


def make(publisher: Any = None, **given: Any) -> Any:
    return inspecting.make(Custom, publisher, **given)


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    # The client replaces one header, the inspector sets the other.
    monkeypatch.setattr(Sanic, "__call__", Sanic.__call__)
    monkeypatch.setenv("SANIC_IGNORE_PRODUCTION_WARNING", "")


@pytest.fixture
def publisher() -> FakePublisher:
    return FakePublisher()


@pytest.fixture
def ask(publisher: FakePublisher) -> Ask:
    """Return a function that asks one inspector, made with the options of its first call."""
    made: list[Inspector] = []

    def ask(method: str, path: str, content: Any = None, headers: Any = None, **options: Any) -> Any:
        if not made:
            made.append(make(publisher, **options)(run=False))

        async def request() -> Any:
            async with SanicASGITestClient(made[0].app) as client:
                own = {"host": "localhost:6457", **(headers or {})}
                return (await client.request(method, path, content=content, headers=own))[1]

        return asyncio.run(request())

    return ask


def test_constructor_arguments_become_attributes() -> None:
    info: dict[str, Any] = {}
    inspector = make(app_info=info, host="h", port=1, api_key="k", tls_key="a", tls_cert="b")
    assert inspector.app_info is info
    assert (inspector.host, inspector.port, inspector.api_key) == ("h", 1, "k")
    assert (inspector.tls_key, inspector.tls_cert) == ("a", "b")
    assert inspector(False, config={"extra": 1}) is inspector
    assert inspector.app.name == "Inspector"
    assert os.environ["SANIC_IGNORE_PRODUCTION_WARNING"] == "true"


class TestInfo:
    def test_info(self, ask: Ask) -> None:
        state = {"Sanic-Main": {"pid": 1, "start_at": NOW}}
        response = ask("GET", "/", app_info={"app": "x"}, worker_state=state)
        assert response.status == 200
        assert response.json == {
            "meta": {"action": "info"},
            "result": {
                "info": {"app": "x", "packages": []},
                "workers": {"Sanic-Main": {"pid": 1, "start_at": NOW.isoformat()}},
            },
        }
        assert state == {"Sanic-Main": {"pid": 1, "start_at": NOW}}

    @pytest.mark.parametrize(
        "info",
        [
            {},
            {"app": "x"},
            {"number": 1, "nothing": None, "path": Path("/x"), "list": [1], "packages": ("a", 2)},
            {"packages": "sanic", "extra": {"of": NOW}},
            {"packages": None, "extra": "more"},
        ],
    )
    @pytest.mark.parametrize("raw", [False, True])
    def test_the_client_displays_any_information(
        self, ask: Ask, info: dict[str, Any], raw: bool, monkeypatch: pytest.MonkeyPatch, capsys: Any
    ) -> None:
        answer = ask("GET", "/", app_info=info, worker_state={"Sanic-Main": {"pid": 1}})
        assert answer.status == 200
        monkeypatch.setattr(inspector_client, "urlopen", lambda request: closing(io.BytesIO(answer.body)))
        inspector_client.InspectorClient("localhost", 6457, False, raw, None).do("info")
        shown = capsys.readouterr().out
        assert "Sanic-Main" in shown
        assert not raw or json.loads(shown)["info"].keys() >= info.keys()

    def test_info_over_a_sync_manager(self) -> None:
        with multiprocessing.Manager() as manager:
            inspector = make(worker_state=manager.dict({"a": {"at": NOW}}), app_info={"x": 1})
            assert inspector._state_to_json() == {"info": {"x": 1}, "workers": {"a": {"at": NOW.isoformat()}}}

    def test_make_safe(self) -> None:
        inner: dict[str, Any] = {"at": NOW, "list": [NOW, {"at": NOW}], "pair": (1, NOW)}
        state: dict[str, Any] = {
            "a": inner,
            "plain": [1, 1.5, True, None, "x"],
            "odd": Path("/x"),
            "set": {1},
        }
        safe = Inspector._make_safe(state)
        iso = NOW.isoformat()
        assert safe == {
            "a": {"at": iso, "list": [iso, {"at": iso}], "pair": [1, iso]},
            "plain": [1, 1.5, True, None, "x"],
            "odd": "/x",
            "set": [1],
        }
        assert inner == {"at": NOW, "list": [NOW, {"at": NOW}], "pair": (1, NOW)}
        safe["a"]["list"].clear()
        safe["plain"].clear()
        assert len(inner["list"]) == 2
        assert len(state["plain"]) == 5


class TestActions:
    @pytest.mark.parametrize(
        ("path", "body", "result", "message"),
        [
            ("/reload", None, None, "__ALL_PROCESSES__:"),
            ("/reload", {}, None, "__ALL_PROCESSES__:"),
            ("/reload", {"zero_downtime": False}, None, "__ALL_PROCESSES__:"),
            ("/reload", {"zero_downtime": True}, None, "__ALL_PROCESSES__::STARTUP_FIRST"),
            ("/reload", {"args": [True]}, None, "__ALL_PROCESSES__::STARTUP_FIRST"),
            ("/shutdown", None, None, "__TERMINATE__"),
            ("/scale", {"replicas": 4}, "Scaling to 4", "__SCALE__:4"),
            ("/scale", {"replicas": "4"}, "Scaling to 4", "__SCALE__:4"),
            ("/scale", {"replicas": 4.0}, "Scaling to 4", "__SCALE__:4"),
            ("/scale", {"replicas": 0}, "Scaling to 1", "__SCALE__:1"),
            ("/scale", {"replicas": "0"}, "Scaling to 1", "__SCALE__:1"),
            ("/scale", {"replicas": " 00 "}, "Scaling to 1", "__SCALE__:1"),
            ("/scale", {"replicas": ""}, "Scaling to 1", "__SCALE__:1"),
            ("/scale", {"replicas": None}, "Scaling to 1", "__SCALE__:1"),
        ],
    )
    def test_commands_to_the_manager(
        self, ask: Ask, publisher: FakePublisher, path: str, body: Any, result: Any, message: str
    ) -> None:
        response = ask("POST", path, None if body is None else json.dumps(body))
        assert response.status == 200
        assert response.json == {"meta": {"action": path[1:]}, "result": result}
        assert publisher.sent == [message]

    @pytest.mark.parametrize("replicas", [-1, "-1", "abc", "+", "- 1", 1.5, 1e30, True, [1], {"a": 1}, 129])
    def test_scale_refuses_invalid_numbers(self, ask: Ask, publisher: FakePublisher, replicas: Any) -> None:
        response = ask("POST", "/scale", json.dumps({"replicas": replicas}))
        assert response.status == 400
        assert "replicas must be a whole number from 1 on" in response.text
        with pytest.raises(BadRequest):
            make(publisher).scale(replicas)
        assert publisher.sent == []

    @pytest.mark.parametrize(
        ("path", "body", "result"),
        [
            ("/plain", {"a": 1}, [1, 2, [], {}]),
            ("/plain", {"args": [1, 3, 4, 5], "x": 6}, [1, 3, [4, 5], {"x": 6}]),
            ("/later", {"bar": 99}, "bar is 99"),
            ("/later", {"args": ["x"]}, "bar is x"),
            ("/of_class", None, "Custom"),
        ],
    )
    def test_commands_of_a_subclass(self, ask: Ask, path: str, body: Any, result: Any) -> None:
        response = ask("POST", path, None if body is None else json.dumps(body))
        assert response.status == 200
        assert response.json == {"meta": {"action": path[1:]}, "result": result}

    @pytest.mark.parametrize(
        "action",
        [
            *("nothing", "_hidden", "_setup", "__before_start__", "before_start", "__call__"),
            *("number", "port", "app", "computed", "loose"),
        ],
    )
    def test_unknown_actions_are_refused(self, ask: Ask, action: str) -> None:
        response = ask("POST", f"/{action}")
        assert response.status == 404
        assert response.json["message"].startswith(f"Unknown action: {action}. Known actions: broken, later")

    @pytest.mark.parametrize(
        ("path", "content", "complaint"),
        [
            ("/reload", "[]", "The body must be a JSON object"),
            ("/reload", "null", "The body must be a JSON object"),
            ("/reload", '"x"', "The body must be a JSON object"),
            ("/reload", "{", "Failed when parsing body as json"),
            ("/reload", '{"when": 1}', "Cannot call reload: got an unexpected keyword argument 'when'"),
            ("/reload", '{"args": [1, 2]}', "Cannot call reload: too many positional arguments"),
            ("/plain", '{"args": "abc"}', "args must be a JSON array"),
            ("/plain", '{"args": null}', "args must be a JSON array"),
            ("/plain", '{"args": [1], "a": 1}', "Cannot call plain: multiple values for argument 'a'"),
            ("/scale", None, "Cannot call scale: missing a required argument: 'replicas'"),
            ("/scale", "{}", "Cannot call scale: missing a required argument: 'replicas'"),
        ],
    )
    def test_bad_requests(
        self, ask: Ask, publisher: FakePublisher, path: str, content: str | None, complaint: str
    ) -> None:
        response = ask("POST", path, content)
        assert response.status == 400
        assert complaint in response.json["message"]
        assert publisher.sent == []

    def test_an_error_in_a_command_is_a_server_error(self, ask: Ask) -> None:
        assert ask("POST", "/broken").status == 500


class TestAccess:
    KEY = "se\u00e7ret"

    @pytest.mark.parametrize(
        "headers",
        [
            {},
            {"authorization": "Bearer wrong"},
            {"authorization": "Bearer "},
            {"authorization": "Bearer se\u00e7ret2".encode()},
        ],
    )
    @pytest.mark.parametrize(("method", "path"), [("GET", "/"), ("POST", "/shutdown"), ("POST", "/nothing")])
    def test_requests_without_the_key_are_refused(
        self, ask: Ask, publisher: FakePublisher, method: str, path: str, headers: dict[str, Any]
    ) -> None:
        response = ask(method, path, headers=headers, api_key=self.KEY)
        assert response.status == 401
        assert response.json["message"] == "Bad API key"
        assert publisher.sent == []

    def test_the_key_is_accepted(self) -> None:
        inspector = make(api_key=self.KEY)
        inspector._authentication(SimpleNamespace(token=self.KEY))  # type: ignore[arg-type]

    def test_the_key_is_accepted_over_http(self, ask: Ask, publisher: FakePublisher) -> None:
        headers = {"authorization": "Bearer 12345", "host": "elsewhere"}
        # A key of digits has this form when it comes from the environment.
        response = ask("POST", "/shutdown", headers=headers, api_key=12345)
        assert response.status == 200
        assert publisher.sent == ["__TERMINATE__"]

    @pytest.mark.parametrize("key", [0, 12345])
    def test_a_key_of_digits_alone_is_a_key(self, ask: Ask, publisher: FakePublisher, key: int) -> None:
        assert ask("POST", "/shutdown", api_key=key).status == 401
        assert publisher.sent == []
        headers = {"authorization": f"Bearer {key}", "host": "elsewhere"}
        assert ask("POST", "/shutdown", headers=headers).status == 200

    @pytest.mark.parametrize(("method", "path"), [("GET", "/"), ("POST", "/scale")])
    def test_foreign_pages_are_refused(
        self, ask: Ask, publisher: FakePublisher, method: str, path: str
    ) -> None:
        headers = {"host": "localhost:6457", "origin": "http://evil.example", "content-type": "text/plain"}
        response = ask(method, path, '{"replicas": 3}' if method == "POST" else None, headers)
        assert response.status == 403
        assert "Origin, 'http://evil.example'" in response.text
        assert "INSPECTOR_API_KEY" in response.text
        assert publisher.sent == []

    def test_with_the_key_any_origin_is_accepted(self, ask: Ask) -> None:
        headers = {"host": "server.example", "origin": "http://evil.example", "sec-fetch-site": "cross-site"}
        assert ask("GET", "/", headers=headers, api_key="k").status == 401
        assert ask("GET", "/", headers={**headers, "authorization": "Bearer k"}).status == 200


class Running:
    """Run an inspector in a process of its own."""

    def __init__(self, method: str, tls: tuple[Path, Path] | None = None) -> None:
        context: Any = multiprocessing.get_context(method)
        self.held = hold_port()
        self.port = self.held.getsockname()[1]
        self.receiver, self.sender = context.Pipe(duplex=False)
        key, cert = tls or (Default(), Default())
        inspector = inspecting.Announced(
            self.sender, {}, {"w": {"pid": 1}}, "localhost", self.port, "", key, cert
        )
        self.process = context.Process(target=inspector)

    def __enter__(self) -> Running:
        self.process.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.join()
        self.process.close()
        self.receiver.close()
        self.sender.close()
        self.held.close()

    def message(self) -> Any:
        assert self.receiver.poll(30)
        return self.receiver.recv()


@pytest.fixture
def tls(tmp_path: Path) -> tuple[Path, Path, ssl.SSLContext]:
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    certificate.private_key_pem.write_to_path(str(key))
    certificate.cert_chain_pems[0].write_to_path(str(cert))
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return key, cert, context


class TestServing:
    @pytest.mark.slow
    @pytest.mark.parametrize("secure", [False, True])
    @pytest.mark.parametrize("method", ["spawn", "fork"])
    def test_over_a_socket(self, method: str, secure: bool, tls: tuple[Path, Path, ssl.SSLContext]) -> None:
        key, cert, context = tls
        with Running(method, (key, cert) if secure else None) as running:
            assert running.message() == "ready"
            scheme = "https" if secure else "http"
            url = f"{scheme}://localhost:{running.port}/"
            with urllib.request.urlopen(url, context=context if secure else None) as answer:
                assert answer.status == HTTPStatus.OK
                assert json.load(answer)["result"] == {"info": {"packages": []}, "workers": {"w": {"pid": 1}}}
            post = urllib.request.Request(f"{url}scale", b'{"replicas": 2}', method="POST")
            with urllib.request.urlopen(post, context=context if secure else None) as answer:
                assert json.load(answer)["result"] == "Scaling to 2"
            assert running.message() == "__SCALE__:2"
            running.process.terminate()
            running.process.join(30)
            assert running.process.exitcode == 0

    def test_serves_no_other_application(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A forked process has inherited the main process's applications, ready to be served."""
        other = Sanic("Other")
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            other.prepare(sock=sock, motd=False)
            assert other.state.server_info
            served: list[dict[str, Any]] = []
            monkeypatch.setattr(Sanic, "run", lambda self, **options: served.append(options))
            inspector = make(port=0)()
        assert other.state.server_info == []
        assert inspector.app.name == "Inspector"
        (options,) = served
        assert options["single_process"] is True
        assert options["protocol"] is Connection
        assert options["sock"].fileno() == -1

    @pytest.mark.parametrize(("key", "cert"), [("k", Default()), (Default(), "c"), ("k", ""), (None, "c")])
    def test_tls_needs_key_and_cert(self, monkeypatch: pytest.MonkeyPatch, key: Any, cert: Any) -> None:
        served: list[Any] = []
        monkeypatch.setattr(serving, "serve", lambda app, sock, state, tls: served.append(tls))
        make(port=0, tls_key=key, tls_cert=cert)()
        make(port=0, tls_key="k", tls_cert="c")()
        assert served == [None, {"key": "k", "cert": "c"}]

    def test_a_unix_socket_has_no_tls(self, monkeypatch: pytest.MonkeyPatch) -> None:
        served: list[Any] = []
        monkeypatch.setattr(serving, "serve", lambda app, sock, state, tls: served.append((sock.family, tls)))
        with TemporaryDirectory() as directory:
            monkeypatch.setenv("SANIC_WORKER_INSPECTOR_UNIX", f"{directory}/inspector")
            make(tls_key="k", tls_cert="c")()
            assert os.listdir(directory) == []
        assert served == [(socket.AF_UNIX, None)]
