"""An operator who watches a server all the time: its page in a browser, and ``top`` in a terminal."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from support import chromium
from support.terminals import Tmux

# The machine is busy, and the inspector may just have been killed.
TIMEOUT = 60.0


class Watchers:
    """The page and ``top`` of one server; each ``None`` on a machine without a browser, or without tmux.

    Attributes:
        page: The tab of the browser.
        terminal: The terminal in which ``top`` runs.
    """

    def __init__(self, page: Any, terminal: Tmux | None) -> None:
        self.page = page
        self.terminal = terminal

    def see(self, ready: int) -> list[str]:
        """Wait until all that watch show this number of ready workers; return their names."""
        seen = []
        if self.page is not None:
            self.page.locator("#connection").get_by_text("Live").wait_for()
            self.page.get_by_text(f"{ready} of {ready}", exact=True).first.wait_for()
            seen.append("page")
        if self.terminal is not None:
            self.terminal.shows(f"workers {ready}/{ready} ready", timeout=TIMEOUT)
            seen.append("top")
        return seen


@contextmanager
def watching(port: int, folder: Path) -> Iterator[Watchers]:
    """Watch the server of the inspector on this port, in the body."""
    with ExitStack() as stack:
        page = terminal = None
        if not chromium.missing():
            from playwright.sync_api import sync_playwright

            browser = chromium.launch(stack.enter_context(sync_playwright()))
            stack.callback(browser.close)
            page = browser.new_page()
            page.set_default_timeout(TIMEOUT * 1000)
            page.goto(f"http://127.0.0.1:{port}/")
        if shutil.which("tmux"):
            terminal = stack.enter_context(Tmux(folder, columns=120))
            terminal.type(f"{sys.executable} -m worker top -p {port}", "Enter")
        yield Watchers(page, terminal)
