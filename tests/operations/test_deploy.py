"""The files of docs/deploy, each checked by the tool that reads it, and used as far as they can be here."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from signal import SIGHUP
from typing import Any

import pytest
from integration.harness import Server
from integration.tools import environment, free_port, wait_until

from worker.settings.table import SETTINGS

pytestmark = [pytest.mark.operations, pytest.mark.slow]

DEPLOY = Path(__file__).parents[2] / "docs" / "deploy"
DOWNLOAD = 60


# Kubernetes


def manifests() -> dict[str, Any]:
    yaml = pytest.importorskip("yaml")
    documents = list(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text()))
    return {document["kind"]: document for document in documents}


def pod() -> dict[str, Any]:
    found: dict[str, Any] = manifests()["Deployment"]["spec"]["template"]
    return found


def variables() -> dict[str, str]:
    return {one["name"]: one["value"] for one in pod()["spec"]["containers"][0]["env"]}


def test_the_manifests_fit_the_schemas_of_kubernetes() -> None:
    validator = pytest.importorskip("kubernetes_validate")
    for document in manifests().values():
        validator.validate(document, validator.latest_version(), strict=True)


def test_the_manifests_fit_each_other() -> None:
    labels = pod()["metadata"]["labels"]
    kinds = manifests()
    assert kinds["Deployment"]["spec"]["selector"]["matchLabels"] == labels
    assert kinds["Service"]["spec"]["selector"] == labels
    assert kinds["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    (container,) = pod()["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert str(ports["health"]) == variables()["SANIC_WORKER_HEALTH_PORT"]
    assert pod()["metadata"]["annotations"]["prometheus.io/port"] == str(ports["health"])
    assert kinds["Service"]["spec"]["ports"][0]["targetPort"] in ports
    assert {container[probe]["httpGet"]["port"] for probe in container if probe.endswith("Probe")} == {
        "health"
    }


def test_a_pod_is_not_killed_before_its_requests_are_answered() -> None:
    delay, timeout = (
        float(variables()[f"SANIC_WORKER_{name}"]) for name in ("DRAIN_DELAY", "GRACEFUL_TIMEOUT")
    )
    assert pod()["spec"]["terminationGracePeriodSeconds"] > delay + timeout
    compose = (DEPLOY / "compose.yaml").read_text()
    (grace,) = re.findall(r"stop_grace_period: (\d+)s", compose)
    assert int(grace) > sum(map(float, re.findall(r'(?:DRAIN_DELAY|GRACEFUL_TIMEOUT): "(\d+)"', compose)))
    probe = pod()["spec"]["containers"][0]["readinessProbe"]
    assert delay > probe["periodSeconds"] * probe["failureThreshold"]


@pytest.mark.parametrize("file", ["kubernetes.yaml", "compose.yaml", "Dockerfile", "Caddyfile", "nginx.conf"])
def test_each_variable_is_a_setting(file: str) -> None:
    names = {name.lower() for name in re.findall(r"SANIC_WORKER_([A-Z_]+)", (DEPLOY / file).read_text())}
    assert names <= {setting.name for setting in SETTINGS}


# The image


def instructions() -> list[tuple[str, str]]:
    """Return the instructions of the Dockerfile, with their arguments."""
    text = re.sub(r"^#.*\n", "", (DEPLOY / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in lines) if name]


def test_the_last_stage_has_no_compiler_and_no_root() -> None:
    stages = [index for index, (name, _) in enumerate(instructions()) if name == "FROM"]
    last = instructions()[stages[-1] :]
    assert len(stages) == 2
    assert last[0][1].endswith("-slim")
    assert not [rest for name, rest in last if name == "RUN" and re.search(r"pip|apt|gcc", rest)]
    (user,) = [rest for name, rest in last if name == "USER"]
    # A name would not do for `runAsNonRoot`.
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)


def test_the_image_as_the_manifest_runs_it(tmp_path: Path) -> None:
    """Its command, its health check, and the probes, on other ports."""
    found = dict(instructions())
    entry = json.loads(found["ENTRYPOINT"])
    check = json.loads(found["HEALTHCHECK"].partition("CMD ")[2])
    assert entry[:2] == ["sanic-worker", "shop:app"]
    probes = free_port()
    env = {**variables(), "SANIC_WORKER_HEALTH_PORT": str(probes), "SANIC_WORKER_HEALTH_HOST": "127.0.0.1"}
    env["SANIC_WORKER_DRAIN_DELAY"] = "1"
    port = free_port()
    args = [arg for arg in entry[2:] if not arg.startswith("--host")]
    command = [sys.executable, "-m", "worker", "apps.cluster:app", *args, f"--port={port}"]
    with Server(command, cwd=tmp_path, env=env, port=port) as server:
        server.wait_ready()
        container = pod()["spec"]["containers"][0]
        for name in ("startupProbe", "readinessProbe", "livenessProbe"):
            path = container[name]["httpGet"]["path"]
            wait_until(lambda path=path: asked(server, path, probes) == 200, f"an answer to {path}")
        health = [sys.executable, *(word.replace("8081", str(probes)) for word in check[1:])]
        assert subprocess.run(health, timeout=30).returncode == 0
        server.signal(SIGHUP)
        server.wait_line("restart: done|replaced")
        assert server.stop() == 0
        assert subprocess.run(health, timeout=30, capture_output=True).returncode == 1


def asked(server: Server, path: str, port: int) -> int:
    with suppress(OSError, HTTPException):
        return server.request("GET", path, port=port).status
    return 0


# Proxies


@pytest.fixture(scope="session")
def debian(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], str]:
    """Return a function that gives a program of a Debian package, which is unpacked, but not installed."""
    folder = tmp_path_factory.mktemp("debian")

    def program(package: str, path: str) -> str:
        if found := shutil.which(package):
            return found
        if not shutil.which("apt-get"):
            pytest.skip(f"{package} is not installed, and there is no apt-get")
        if not (folder / path).exists():
            for command in (
                ["apt-get", "download", "-qq", package],
                ["sh", "-c", f"dpkg-deb -x {package}_*.deb ."],
            ):
                done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=DOWNLOAD)
                if done.returncode:
                    pytest.skip(f"{package} is not installed, and cannot be loaded: {done.stderr[-200:]}")
        tried = subprocess.run(
            [folder / path, "version" if package == "caddy" else "-v"], capture_output=True
        )
        if tried.returncode:
            pytest.skip(f"{package} does not run here: {tried.stderr.decode()[-200:]}")
        return str(folder / path)

    return program


Debian = Callable[[str, str], str]


def nginx_command(program: str, folder: Path, backend: int, port: int, *args: str) -> list[str]:
    text = (DEPLOY / "nginx.conf").read_text()
    text = text.replace("listen 80;", f"listen 127.0.0.1:{port};").replace(
        "127.0.0.1:8000", f"127.0.0.1:{backend}"
    )
    (folder / "shop.conf").write_text(text)
    places = "".join(
        f"{name}_temp_path {folder}/{name};\n"
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(
        f"daemon off; master_process off; pid {folder}/pid; error_log stderr;\nevents {{}}\n"
        f"http {{\naccess_log off;\n{places}include {folder}/shop.conf;\n}}\n"
    )
    return [program, "-e", "stderr", "-p", str(folder), "-c", str(folder / "nginx.conf"), *args]


def test_nginx_accepts_its_file(debian: Debian, tmp_path: Path) -> None:
    command = nginx_command(debian("nginx", "usr/sbin/nginx"), tmp_path, 8000, 80, "-t")
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    assert "warn" not in done.stderr


def test_caddy_accepts_its_file(debian: Debian, tmp_path: Path) -> None:
    program = debian("caddy", "usr/bin/caddy")
    env = {**os.environ, "HOME": str(tmp_path), "XDG_DATA_HOME": str(tmp_path)}
    command = [program, "validate", "--adapter=caddyfile", f"--config={DEPLOY / 'Caddyfile'}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, env=env)
    assert done.returncode == 0, done.stderr
    assert '"level":"warn"' not in done.stderr


@contextmanager
def running(command: list[str], port: int) -> Iterator[None]:
    process = subprocess.Popen(command, env=environment(), stderr=subprocess.DEVNULL)
    try:

        def listens() -> bool:
            with suppress(OSError), closing(HTTPConnection("127.0.0.1", port, timeout=5)) as connection:
                connection.connect()
                return True
            assert process.poll() is None
            return False

        wait_until(listens, "a proxy that listens")
        yield
    finally:
        process.terminate()
        process.wait(10)


def test_no_request_fails_behind_nginx_while_all_workers_are_replaced(debian: Debian, tmp_path: Path) -> None:
    program, front = debian("nginx", "usr/sbin/nginx"), free_port()
    with Server.run("apps.cluster:app", cwd=tmp_path) as server:
        server.wait_ready()
        server.settled(2)
        with running(nginx_command(program, tmp_path, server.port, front), front):
            failures: list[str] = []
            counts = [0, 0, 0]
            is_over = threading.Event()

            def client(number: int) -> None:
                with closing(HTTPConnection("127.0.0.1", front, timeout=30)) as connection:
                    while not is_over.is_set():
                        try:
                            connection.request("GET", "/whoami")
                            answer = connection.getresponse()
                            answer.read()
                            assert answer.status == 200, answer.status
                        except (OSError, HTTPException, AssertionError) as error:
                            failures.append(repr(error))
                        counts[number] += 1

            threads = [threading.Thread(target=client, args=(number,)) for number in range(len(counts))]
            for thread in threads:
                thread.start()
            try:
                for _ in range(3):
                    answered = [*counts]
                    wait_until(lambda was=answered: all(map(int.__lt__, was, counts)), "answers", 30)
                    before = {entry["pid"] for entry in server.settled(2).values()}
                    server.signal(SIGHUP)
                    wait_until(
                        lambda before=before: not before & server.processes().keys(),
                        "all processes replaced",
                        30,
                    )
            finally:
                is_over.set()
                for thread in threads:
                    thread.join()
            assert failures == []
