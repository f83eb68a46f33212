"""A reloading server whose preload process is suspended; and one that is started with closed descriptors."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from signal import SIGKILL, SIGSTOP
from time import monotonic

import pytest

from .harness import Server
from .test_editing import Shop
from .tools import MODULE, free_port, wait_until

pytestmark = pytest.mark.ours

FAILING = """\
from apps.cluster import app


@app.get("/fail")
async def fail(request):
    raise ValueError("this is logged to where the state would be")
"""


@pytest.mark.soak
@pytest.mark.modes("framework")
def test_broken_code_and_a_stop_with_a_suspended_preload_process(tmp_path: Path) -> None:
    shop = Shop(tmp_path)
    with shop.server as server:
        server.wait_ready()
        server.settled(2)
        server.wait_line("^watching$")
        pid, price = shop.is_warm()
        os.kill(pid, SIGSTOP)
        since = server.mark()
        shop.edit("prices.py", "PRICE = = 1\n")
        server.wait_line("Keeping the previous worker", since=since)
        shop.serves(price)
        shop.edit("prices.py", "PRICE = 100\n")
        shop.serves(100)
        assert len(shop.lines("WARNING: The preload process .* it ", since)) == 1
        began = monotonic()
        assert server.stop() == 0
        assert monotonic() - began < 5


@pytest.mark.parametrize("closed", ["2>&-", "<&- >&- 2>&-"])
def test_a_start_with_closed_descriptors(closed: str, tmp_path: Path) -> None:
    (tmp_path / "failing.py").write_text(FAILING)
    port = free_port()
    command = [sys.executable, "-m", MODULE, "failing:app", f"--port={port}", "--workers=2", "--no-motd"]
    shell = ["sh", "-c", f'exec "$@" {closed}', "sh", *command]
    with Server(shell, cwd=tmp_path, port=port) as server:
        before = server.wait_ready().settled(2)
        for _ in range(20):
            assert server.request("GET", "/fail").status == 500
        who = server.post("/m/restart", {"zero_downtime": True})["name"]
        wait_until(lambda: server.settled(2)[who]["pid"] != before[who]["pid"], "a new worker")
        os.kill(server.table()[who]["pid"], SIGKILL)
        server.settled(2)
        assert server.stop() == 0
