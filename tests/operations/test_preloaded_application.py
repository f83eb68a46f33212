"""Servers with `preload="app"`: TLS after the fork, and applications that are unfit."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import pytest
import trustme
from integration.harness import Server
from integration.tools import wait_until

pytestmark = [pytest.mark.operations, pytest.mark.ours]

APPLICATION = """
import os
import ssl
from sanic import Sanic, json

# OpenSSL has its state, and has given random bytes, before the fork.
context = ssl.create_default_context()
ssl.RAND_bytes(32)
importer = os.getpid()
app = Sanic("shop")

@app.main_process_start
async def wait_for_it(app):
    # However long the preload process takes, no worker is spawned at the first start.
    from worker._supervisor.duties import preloading
    preloading.FIRST_WAIT = 30

@app.get("/")
async def index(request):
    return json([os.getpid(), importer != os.getpid(), ssl.RAND_bytes(16).hex()])
"""


def answers(server: Server, workers: int = 2) -> list[list[Any]]:
    """Return the last answer of each worker."""
    found: dict[int, list[Any]] = {}

    def look() -> bool:
        answer = server.get("/")
        found[answer[0]] = answer
        return len(found) == workers

    wait_until(look, "answers of all workers")
    return [*found.values()]


@pytest.mark.parametrize("depth", ["framework", "app"])
def test_tls_works_after_the_fork(depth: str, tmp_path: Path) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    certificate.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    certificate.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
    context = ssl.create_default_context()
    authority.configure_trust(context)
    (tmp_path / "shop.py").write_text(APPLICATION)
    args = [f"--preload={depth}", f"--cert={tmp_path / 'cert.pem'}", f"--key={tmp_path / 'key.pem'}"]
    with Server.run("shop:app", *args, cwd=tmp_path, start_method="spawn", tls=context) as server:
        server.wait_ready("/")
        is_app = depth == "app"
        wait_until(lambda: [one[1] for one in answers(server)] == [is_app] * 2, "workers of that depth")
        found = answers(server)
        assert found[0][2] != found[1][2]


UNFIT = """
import threading

threading.Thread(target=threading.Event().wait, name="poller", daemon=True).start()
"""
HOOK = """
import worker

@worker.after_fork
def connect():
    raise ConnectionError("no database")
"""


def test_an_unfit_application_is_served_without_being_preloaded(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(APPLICATION + UNFIT)
    options: dict[str, Any] = {"cwd": tmp_path, "start_method": "spawn"}
    with Server.run("shop:app", "--preload=app", "--slow-loop-warning=off", **options) as server:
        server.wait_ready("/")
        server.wait_line("the import has left")
        assert [is_preloaded for _, is_preloaded, _ in answers(server)] == [False, False]
        (warning,) = [line for line in server.log().splitlines() if "WARNING" in line]
        assert "the import has left the thread 'poller' (module shop, line 24)" in warning


def test_a_worker_whose_hook_fails_says_why(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(APPLICATION + HOOK)
    options: dict[str, Any] = {"cwd": tmp_path, "start_method": "spawn", "workers": 1}
    with Server.run("shop:app", "--preload=app", **options) as server:
        server.wait_line("shop.connect failed after the fork: ConnectionError: no database")
        assert server.wait() == 1


TOGETHER = """
import os
import threading
from pathlib import Path

here, there = Path("main"), Path("preload")
if os.environ.get("SANIC_WORKER_NAME") == "Sanic-Preload":
    here, there = there, here
here.touch()
for _ in range(3000):
    if there.exists():
        break
    threading.Event().wait(0.01)
else:
    raise TimeoutError(f"{there} has not begun to import this module")
"""
CHANGING = """
from sanic import text

before = os.environ.get("CHANGED", "")
os.environ["CHANGED"] = "by the main process"

@app.get("/before")
async def show(request):
    return text(f"{importer != os.getpid()} {before}")
"""


def test_the_preload_process_imports_the_application_while_the_main_process_does(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(TOGETHER + APPLICATION)
    with Server.run("shop:app", "--preload=app", cwd=tmp_path, start_method="spawn") as server:
        server.wait_ready("/")
        assert [is_preloaded for _, is_preloaded, _ in answers(server)] == [True, True]


def test_an_application_that_changes_the_environment_is_imported_as_a_spawned_worker_would(
    tmp_path: Path,
) -> None:
    (tmp_path / "shop.py").write_text(APPLICATION + CHANGING)
    with Server.run("shop:app", "--preload=app", cwd=tmp_path, start_method="spawn") as server:
        server.wait_ready("/")
        assert server.request("GET", "/before").body == b"True by the main process"
