"""A reloading server whose fork server is stopped."""

from __future__ import annotations

import os
from pathlib import Path
from signal import SIGSTOP
from time import monotonic

import pytest

from .test_editing import Shop

pytestmark = pytest.mark.ours


def test_a_broken_save_and_a_stop_while_the_fork_server_is_stopped(tmp_path: Path) -> None:
    shop = Shop(tmp_path)
    with shop.server as server:
        server.wait_ready()
        server.settled(2)
        server.wait_line("^watching$")
        pid, price = shop.is_warm()
        os.kill(pid, SIGSTOP)
        since = server.mark()
        shop.edit("prices.py", "PRICE = = 1\n")
        server.wait_line("its predecessor stays", since=since)
        shop.serves(price)
        shop.edit("prices.py", "PRICE = 100\n")
        shop.serves(100)
        assert len(shop.lines("WARNING: The fork server has failed: it gave no answer", since)) == 1
        began = monotonic()
        assert server.stop() == 0
        assert monotonic() - began < 5
