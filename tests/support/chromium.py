"""The browser of the tests: the machine's own Chromium, without a window, steered by Playwright."""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")


def path() -> str | None:
    """Return the path of Chromium, or of its like; ``None`` without one."""
    return next(filter(None, map(shutil.which, NAMES)), None)


def missing() -> str:
    """Return the reason why there is no browser to be steered; empty if there is one."""
    if find_spec("playwright") is None:
        return "Playwright is not installed (group `browser` of pyproject.toml)"
    return "" if path() else f"none of {', '.join(NAMES)} is installed: run scripts/browser.py as root"


def has_font() -> bool:
    """Return whether Liberation Sans is installed: with a wider font, less fits on a screen."""
    return any(Path("/usr/share/fonts").rglob("LiberationSans-Regular.*"))


def launch(playwright: Any) -> Any:
    """Start the browser, a ``playwright.sync_api.Browser``; without its sandbox, which root cannot use."""
    return playwright.chromium.launch(executable_path=path(), chromium_sandbox=False)
