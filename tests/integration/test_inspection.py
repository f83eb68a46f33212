"""The inspector over HTTP, with and without a key and TLS, and through the command line client."""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme

from .harness import Response, Server
from .tools import MODULE, free_port, port_is_free, run_python, wait_until

KEY = "a secret"


class Inspected:
    """A server and its inspector."""

    def __init__(self, server: Server, port: int, key: str = "", tls: ssl.SSLContext | None = None) -> None:
        self.server = server
        self.port = port
        self.key = key
        self.tls = tls

    def request(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Response:
        self.server.tls, kept = self.tls, self.server.tls
        try:
            return self.server.request(method, path, body, headers, port=self.port)
        finally:
            self.server.tls = kept

    def call(self, action: str, **arguments: Any) -> Any:
        body = json.dumps(arguments).encode() if arguments else None
        response = self.request("POST", f"/{action}", body, **{"Content-Type": "application/json"})
        assert response.status == 200, response
        assert response.json["meta"] == {"action": action}
        return response.json["result"]

    def listens(self) -> bool:
        return not port_is_free(self.port)


Secured = tuple[Inspected, Path]


@contextmanager
def inspecting(cwd: Path) -> Iterator[Inspected]:
    """Run a server of two workers, and its inspector, in the body."""
    port = free_port()
    with Server.run("apps.inspected:app", cwd=cwd, env={"SANIC_INSPECTOR_PORT": str(port)}) as server:
        server.wait_ready()
        server.settled(2)
        found = Inspected(server, port)
        wait_until(found.listens, "the inspector")
        yield found
        assert port_is_free(port) or server.exit_code is None


@pytest.fixture(scope="module")
def inspected(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Inspected]:
    with inspecting(tmp_path_factory.mktemp("inspected")) as found:
        yield found


def inspect(inspected: Inspected, *args: str, env: dict[str, str] | None = None) -> Any:
    """Run the stock client; every such command is run with the interpreter under test."""
    command = ["-m", "sanic", "inspect", *args]
    return run_python(*command, cwd=inspected.server.cwd, env=env)


def pids(inspected: Inspected) -> set[int]:
    """Return the two servers, once they have settled."""
    return {entry["pid"] for entry in inspected.server.settled(2).values()}


def test_information_and_table(inspected: Inspected) -> None:
    names = {"Sanic-Main", "Sanic-Inspector-0", "Sanic-Server-0-0", "Sanic-Server-1-0"}
    wait_until(
        lambda: inspected.server.settled(2) and inspected.server.table().keys() == names, "two servers"
    )
    response = inspected.request("GET", "/")
    assert response.status == 200
    assert response.json["meta"] == {"action": "info"}
    assert set(response.json["result"]) == {"info", "workers"}
    assert response.json["result"]["info"]["app"] == "inspected"
    workers = response.json["result"]["workers"]
    assert workers["Sanic-Main"] == {"pid": inspected.server.pid}
    assert workers["Sanic-Inspector-0"]["server"] is False
    table = inspected.server.table()
    assert set(workers) == set(table) == names
    for name in ("Sanic-Server-0-0", "Sanic-Server-1-0"):
        assert workers[name]["pid"] == table[name]["pid"]
        assert workers[name]["start_at"] == table[name]["start_at"]["iso"]


@pytest.mark.parametrize("zero_downtime", [False, True])
def test_reload(inspected: Inspected, zero_downtime: bool) -> None:
    before = inspected.server.settled(2)
    arguments = {"zero_downtime": True} if zero_downtime else {}
    assert inspected.call("reload", **arguments) is None
    wait_until(
        lambda: {e["pid"] for e in inspected.server.settled(2).values()}.isdisjoint(
            e["pid"] for e in before.values()
        ),
        "two new workers",
    )


def test_all_workers_report_that_they_are_stoppable(inspected: Inspected) -> None:
    """The inspector as well: the main process may have to send it a stop once more."""

    def all_say_so() -> bool:
        workers = inspected.request("GET", "/").json["result"]["workers"]
        return all(entry.get("stoppable") for name, entry in workers.items() if name != "Sanic-Main")

    wait_until(all_say_so, "all stoppable")


def test_scale(inspected: Inspected) -> None:
    inspected.server.settled(2)
    assert inspected.call("scale", replicas=3) == "Scaling to 3"
    inspected.server.settled(3)
    assert inspected.call("scale", replicas="2") == "Scaling to 2"
    inspected.server.settled(2)
    assert inspected.call("scale", replicas=0) == "Scaling to 1"
    inspected.server.settled(1)
    assert inspected.call("scale", replicas=2) == "Scaling to 2"
    inspected.server.settled(2)


def test_commands_of_a_subclass(inspected: Inspected) -> None:
    assert inspected.call("echo") == {"args": [], "kwargs": {}}
    assert inspected.call("echo", args=["a", 1], deep={"x": None}) == {
        "args": ["a", 1],
        "kwargs": {"deep": {"x": None}},
    }
    assert inspected.call("later", value="on") == "later on"
    assert inspected.call("later", args=["off"]) == "later off"


@pytest.mark.ours
def test_subclasses_derive_from_the_inspector_of_the_package(inspected: Inspected) -> None:
    assert inspected.call("parent").partition(".")[0] == "worker"


@pytest.mark.parametrize("action", ["nothing_of_the_kind", "_setup", "__call__", "port"])
def test_unknown_actions(inspected: Inspected, action: str) -> None:
    response = inspected.request("POST", f"/{action}")
    assert response.status == 404
    assert f"Unknown action: {action}" in response.text


@pytest.mark.parametrize(
    ("action", "body"),
    [
        ("reload", b"{"),
        ("reload", b"[1]"),
        ("reload", b"3"),
        ("reload", b'{"nonsense": 1}'),
        ("scale", b""),
        ("scale", b"{}"),
        ("scale", b'{"replicas": "abc"}'),
        ("scale", b'{"replicas": [1]}'),
        ("echo", b'{"args": 3}'),
        ("later", b'{"args": [1, 2, 3]}'),
    ],
)
def test_bad_bodies(inspected: Inspected, action: str, body: bytes) -> None:
    response = inspected.request("POST", f"/{action}", body, **{"Content-Type": "application/json"})
    assert response.status == 400, response
    inspected.server.settled(2)


@pytest.mark.ours
def test_a_request_with_a_foreign_origin_is_refused(inspected: Inspected) -> None:
    before = inspected.server.settled(2)
    headers = {"Host": "evil.example", "Origin": "http://evil.example", "Content-Type": "text/plain"}
    response = inspected.request("POST", "/scale", b'{"replicas": 3}', **headers)
    assert 400 <= response.status < 500, response
    assert inspected.call("scale", replicas=2) == "Scaling to 2"
    inspected.server.wait_line("No change needed")
    assert set(inspected.server.settled(2)) == set(before)


@pytest.mark.ours
def test_a_cross_site_request_is_refused(inspected: Inspected) -> None:
    sent = {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "navigate"}
    assert inspected.request("POST", "/shutdown", **sent).status == 403
    # A link to the page may be followed.
    assert inspected.request("GET", "/", **sent).status == 200


@pytest.mark.ours
@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_without_a_key_no_inspector_on_public_addresses(tmp_path: Path, host: str) -> None:
    port = free_port()
    env = {"SANIC_INSPECTOR_PORT": str(port), "SANIC_INSPECTOR_HOST": host}
    with Server.run("apps.inspected:app", workers=1, cwd=tmp_path, env=env) as server:
        server.wait_ready()
        wait_until(
            lambda: server.table().get("Sanic-Inspector-0") == {"server": False, "state": "NONE"},
            "no process",
        )
        assert port_is_free(port)
        assert server.stop() == 0
        (line,) = server.log("err").splitlines()
        assert "Inspector not started" in line
        assert "INSPECTOR_API_KEY" in line


@pytest.mark.ours
def test_a_setting_allows_public_addresses_without_a_key(tmp_path: Path) -> None:
    port = free_port()
    env = {"SANIC_INSPECTOR_PORT": str(port), "SANIC_INSPECTOR_HOST": "0.0.0.0"}
    args = ("--inspector-open", "true")
    with Server.run("apps.inspected:app", *args, workers=1, cwd=tmp_path, env=env) as server:
        server.wait_ready()
        inspected = Inspected(server, port)
        wait_until(inspected.listens, "the inspector")
        assert inspected.request("GET", "/").status == 200
        assert inspected.request("GET", "/", Host="evil.example").status == 403
        # The same client that the stock command has, by the address.
        assert inspect(inspected, "--host=127.0.0.1", f"--port={port}").returncode == 0
        assert server.stop() == 0
        assert server.log("err") == ""


def test_the_client_lists_all_workers(inspected: Inspected) -> None:
    shown = inspect(inspected, f"--port={inspected.port}")
    assert shown.returncode == 0, shown
    for name in ("Sanic-Main", "Sanic-Inspector-0", "Sanic-Server-"):
        assert name in shown.stdout
    raw = inspect(inspected, f"--port={inspected.port}", "--raw")
    assert json.loads(raw.stdout)["workers"]["Sanic-Main"] == {"pid": inspected.server.pid}


def test_the_client_reloads_and_scales(inspected: Inspected) -> None:
    port = f"--port={inspected.port}"
    before = inspected.server.settled(2)
    assert inspect(inspected, "reload", "--zero-downtime", port).returncode == 0
    wait_until(
        lambda: {e["pid"] for e in inspected.server.settled(2).values()}.isdisjoint(
            e["pid"] for e in before.values()
        ),
        "two new workers",
    )
    assert inspect(inspected, "scale", "3", port).stdout.strip() == "Scaling to 3"
    inspected.server.settled(3)
    assert inspect(inspected, "scale", "2", port).stdout.strip() == "Scaling to 2"
    inspected.server.settled(2)


def test_the_client_runs_commands_of_a_subclass(inspected: Inspected) -> None:
    done = inspect(inspected, "echo", "a", "b", "--one=1", "--flag", "--no-other", f"--port={inspected.port}")
    assert json.loads(done.stdout) == {
        "args": ["a", "b"],
        "kwargs": {"one": "1", "flag": True, "other": False},
    }


def test_the_client_reports_a_missing_inspector(inspected: Inspected) -> None:
    done = inspect(inspected, f"--port={free_port()}")
    assert done.returncode == 1
    assert "Could not connect to inspector at" in done.stderr


@pytest.mark.ours
def test_the_sanic_worker_command_has_the_client(inspected: Inspected) -> None:
    done = run_python(
        "-m", MODULE, "inspect", "echo", "x", f"--port={inspected.port}", cwd=inspected.server.cwd
    )
    assert json.loads(done.stdout) == {"args": ["x"], "kwargs": {}}, done


@contextmanager
def securing(cwd: Path) -> Iterator[Secured]:
    """Run a server whose inspector has a key and TLS; yield the certificate of its authority, too."""
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost", "127.0.0.1")
    authority.cert_pem.write_to_path(str(cwd / "ca.pem"))
    certificate.private_key_pem.write_to_path(str(cwd / "key.pem"))
    certificate.cert_chain_pems[0].write_to_path(str(cwd / "cert.pem"))
    port = free_port()
    env = {
        "SANIC_INSPECTOR_PORT": str(port),
        "SANIC_INSPECTOR_API_KEY": KEY,
        "SANIC_INSPECTOR_TLS_KEY": str(cwd / "key.pem"),
        "SANIC_INSPECTOR_TLS_CERT": str(cwd / "cert.pem"),
    }
    context = ssl.create_default_context(cafile=str(cwd / "ca.pem"))
    with Server.run("apps.inspected:app", workers=1, cwd=cwd, env=env) as server:
        server.wait_ready()
        server.settled(1)
        found = Inspected(server, port, KEY, context)
        wait_until(found.listens, "the inspector")
        yield found, cwd / "ca.pem"


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    with securing(tmp_path_factory.mktemp("secured")) as found:
        yield found


@pytest.mark.parametrize(("method", "path"), [("GET", "/"), ("POST", "/scale"), ("POST", "/shutdown")])
@pytest.mark.parametrize("sent", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "Bearer"}])
def test_requests_without_the_key_are_refused(
    secured: Secured, method: str, path: str, sent: dict[str, str]
) -> None:
    response = secured[0].request(method, path, None, **sent)
    assert response.status == 401
    assert "Bad API key" in response.text


def test_requests_with_the_key_over_tls_are_answered(secured: Secured) -> None:
    response = secured[0].request("GET", "/", Authorization=f"Bearer {KEY}")
    assert response.status == 200
    assert response.json["result"]["workers"]["Sanic-Main"] == {"pid": secured[0].server.pid}


def test_shutdown_by_the_client_over_tls(tmp_path: Path) -> None:
    with securing(tmp_path) as (inspected, authority):
        inspected.server.wait_events("after_server_start")
        env = {"SSL_CERT_FILE": str(authority)}
        port = f"--port={inspected.port}"
        done = inspect(inspected, "shutdown", "--secure", f"--api-key={KEY}", port, env=env)
        assert done.returncode == 0, done
        assert inspected.server.wait() == 0
        assert len(inspected.server.events("after_server_stop")) == 1
