"""`sanic-worker check` on each supported release of Sanic. `tests/operations` has the many ways to fail."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from .tools import run_python

pytestmark = [pytest.mark.ours, pytest.mark.operations]

APPLICATION = """
from sanic import Sanic, text

app = Sanic("shop")
other = Sanic("other")
other.prepare(port=1)

@app.get("/")
@other.get("/")
async def root(request):
    return text(request.ip)

@app.get("/boom")
async def boom(request):
    raise ValueError("boom")
"""
STEPS = """
settings import prepare main_process_start main_process_ready start_of_the_worker import_(worker) routes
before_server_start after_server_start ready GET_/ before_server_stop after_server_stop main_process_stop
"""


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_an_application_is_started_and_stopped(tmp_path: Path, method: str) -> None:
    (tmp_path / "shop.py").write_text(f"{APPLICATION}\nSanic.start_method = {method!r}\n")
    done = run_python("-m", "worker", "check", "shop:app", "--get", "/", "--json", cwd=tmp_path)
    assert done.returncode == 0, done
    report = json.loads(done.stdout)
    steps = [step["name"].replace(" ", "_") for step in report["steps"]]
    assert [step for step in steps if not step.endswith("_(other)")] == STEPS.split()
    assert {"routes_(other)", "before_server_start_(other)", "after_server_start_(other)"} <= {*steps}
    (request,) = report["requests"]
    assert (request["status"], request["bytes"]) == (200, len("127.0.0.1"))


def test_a_failed_listener_and_a_failed_request_are_named(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(APPLICATION)
    done = run_python("-m", "worker", "check", "shop:app", "--get", "/boom", cwd=tmp_path)
    assert done.returncode == 1
    assert re.search(
        r"(?m)^FAIL  GET /boom .* status 500 instead of one below 400: ValueError: boom \(shop", done.stdout
    )
    listener = "\n@app.after_server_start\nasync def fails(*_): raise RuntimeError('no database')\n"
    (tmp_path / "shop.py").write_text(APPLICATION + listener)
    done = run_python("-m", "worker", "check", "shop:app", cwd=tmp_path)
    assert done.returncode == 1
    last = done.stdout.splitlines()[-1]
    assert re.fullmatch(
        r"sanic-worker: shop:app fails in after_server_start: RuntimeError: no database \(shop\.py:\d+\)",
        last,
    )
