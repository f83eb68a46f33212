"""Fixtures of the browser tests: one Chromium for all of them, and a tab and a fake inspector for each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from support import chromium
from support.fake_inspector import FakeInspector

# A machine that is busy with other tests may be slow to draw.
TIMEOUT_MS = 15_000

OpenTab = Callable[..., Any]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "browser" in item.path.parts:
            item.add_marker(pytest.mark.browser)
            item.add_marker(pytest.mark.timeout(180))


# While Playwright runs, this thread has an event loop: the tests of other folders could not run one.
@pytest.fixture(scope="package")
def browser() -> Iterator[Any]:
    if reason := chromium.missing():
        pytest.skip(reason)
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=TIMEOUT_MS)
    with sync_playwright() as playwright:
        browser = chromium.launch(playwright)
        yield browser
        browser.close()


@pytest.fixture
def expect() -> Any:
    """Return Playwright's ``expect``: an assertion that waits until it holds."""
    from playwright.sync_api import expect

    return expect


@pytest.fixture
def problems() -> Iterator[list[str]]:
    """Return the errors of all tabs: a script failed, or the browser refused it something. The test fails."""
    found: list[str] = []
    yield found
    assert not found


@pytest.fixture
def open_tab(browser: Any, problems: list[str]) -> Iterator[OpenTab]:
    """Return a function that opens a tab; its options are those of a browser context."""

    def note(message: Any) -> None:
        # A status from 400 on, or a lost connection, is an error of the console, too.
        if message.type == "error" and not message.text.startswith("Failed to load resource"):
            problems.append(message.text)

    with ExitStack() as stack:

        def open_tab(**options: Any) -> Any:
            size = {"width": 1440, "height": 900}
            context = browser.new_context(**{"viewport": size, "reduced_motion": "reduce", **options})
            stack.callback(context.close)
            context.set_default_timeout(TIMEOUT_MS)
            tab = context.new_page()
            tab.on("console", note)
            tab.on("pageerror", lambda error: problems.append(str(error)))
            return tab

        yield open_tab


@pytest.fixture
def inspector() -> Iterator[FakeInspector]:
    with FakeInspector() as inspector:
        yield inspector


@pytest.fixture
def page(inspector: FakeInspector, open_tab: OpenTab, expect: Any) -> Any:
    """Return a tab that shows the fake inspector, and is connected to it."""
    tab = open_tab()
    # The last request of a page that opens. Later changes are news to it.
    with tab.expect_response("**/events?limit=*"):
        tab.goto(inspector.url)
    expect(tab.locator("#connection")).to_have_text("Live")
    return tab
