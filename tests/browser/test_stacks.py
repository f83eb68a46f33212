"""The stacks of a worker in a dialog: by the mouse and by the keyboard, to be read and to be copied."""

from __future__ import annotations

from typing import Any

import pytest
from support.fake_inspector import STACKS, FakeInspector, servers, worker

NAME = "Sanic-Server-1-0"


def button(page: Any, name: str = NAME) -> Any:
    return page.get_by_role("button", name=f"Stacks of {name}", exact=True)


@pytest.fixture
def dialog(page: Any, expect: Any) -> Any:
    """Return the dialog, opened for one worker."""
    button(page).click()
    found = page.get_by_role("dialog", name=f"Stacks of \u2068{NAME}\u2069")
    expect(found.locator("pre")).to_be_visible()
    return found


def test_it_asks_for_the_stacks_of_that_worker(dialog: Any, inspector: FakeInspector, expect: Any) -> None:
    assert inspector.posted == [("/stacks", {"name": NAME}, "")]
    expect(dialog.locator("pre")).to_have_text(STACKS)
    expect(dialog.get_by_role("status")).to_have_text("pid 4250 · as its interpreter tells")


@pytest.mark.parametrize(
    ("answer", "shown"),
    [
        ({"way": "faulthandler"}, "as faulthandler tells: C code holds the GIL"),
        ({"way": "kernel"}, "as the kernel tells: the process answers no questions"),
        ({"debugger": "debugpy"}, "a debugger is at work in it: debugpy"),
    ],
)
def test_it_tells_where_they_come_from(
    page: Any, inspector: FakeInspector, expect: Any, answer: dict[str, Any], shown: str
) -> None:
    inspector.stacks.update(answer)
    button(page).click()
    expect(page.get_by_role("dialog").get_by_role("status")).to_contain_text(shown)


def test_a_refusal_is_shown_in_the_dialog(page: Any, inspector: FakeInspector, expect: Any) -> None:
    inspector.refusals["/stacks"] = (404, f"{NAME} has no process at present")
    button(page).click()
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_role("status")).to_have_text(f"{NAME} has no process at present")
    expect(dialog.locator("pre")).to_be_hidden()
    expect(dialog.get_by_role("button", name="Copy")).to_have_attribute("aria-disabled", "true")


def test_the_text_is_copied(open_tab: Any, inspector: FakeInspector, expect: Any) -> None:
    page = open_tab(permissions=["clipboard-read", "clipboard-write"])
    page.goto(inspector.url)
    button(page).click()
    dialog = page.get_by_role("dialog")
    expect(dialog.locator("pre")).to_be_visible()
    dialog.get_by_role("button", name="Copy").click()
    expect(dialog.get_by_role("status")).to_have_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()") == STACKS


def test_without_a_clipboard_the_text_is_copied_as_a_selection(page: Any, expect: Any) -> None:
    page.evaluate("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
    button(page).click()
    dialog = page.get_by_role("dialog")
    expect(dialog.locator("pre")).to_be_visible()
    dialog.get_by_role("button", name="Copy").click()
    expect(dialog.get_by_role("status")).to_have_text("Copied")
    assert page.evaluate("getSelection().toString()") == STACKS.strip()


def test_it_is_used_by_the_keyboard_alone(page: Any, expect: Any) -> None:
    button(page).focus()
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog")
    expect(dialog.locator("pre")).to_be_visible()
    expect(dialog.get_by_role("button", name="Close")).to_be_focused()
    page.keyboard.press("Shift+Tab")
    expect(dialog.get_by_role("button", name="Copy")).to_be_focused()
    page.keyboard.press("Shift+Tab")
    # A long text is scrolled by the arrow keys.
    expect(dialog.locator("pre")).to_be_focused()
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    expect(button(page)).to_be_focused()


def test_a_late_answer_is_not_shown_for_another_worker(
    page: Any, inspector: FakeInspector, expect: Any
) -> None:
    page.evaluate(
        """() => {
            const send = window.fetch;
            window.held = [];
            window.fetch = (path, options) => path !== "stacks" || window.held.length
                ? send(path, options)
                : new Promise((over) => window.held.push(async () => {
                    const answer = await send(path, options);
                    over(answer.clone());
                    await answer.text();
                }));
        }"""
    )
    button(page).click()
    page.keyboard.press("Escape")
    inspector.stacks["text"] = "of the other"
    button(page, "Sanic-Server-0-0").click()
    text = page.get_by_role("dialog").locator("pre")
    expect(text).to_have_text("of the other")
    inspector.stacks["text"] = "of the first"
    # The answer has come when that returns.
    page.evaluate("window.held[0]()")
    expect(text).to_have_text("of the other")


def test_text_of_a_process_is_never_html(page: Any, inspector: FakeInspector, expect: Any) -> None:
    inspector.stacks["text"] = "<img src=x onerror=alert(1)>"
    button(page).click()
    expect(page.get_by_role("dialog").locator("pre")).to_have_text("<img src=x onerror=alert(1)>")
    assert page.locator("img").count() == 0


def test_other_processes_have_the_button_too(page: Any, inspector: FakeInspector, expect: Any) -> None:
    inspector.workers.append(worker("Mine-0", server=False))
    inspector.push()
    button(page, "Mine-0").click()
    expect(page.get_by_role("dialog").locator("pre")).to_be_visible()
    assert inspector.posted[-1][:2] == ("/stacks", {"name": "Mine-0"})


def test_a_small_tile_shows_the_button_at_the_focus(page: Any, inspector: FakeInspector, expect: Any) -> None:
    inspector.workers = servers(64)
    inspector.push()
    expect(page.locator("#workers > li")).to_have_count(64)
    small = button(page, "Sanic-Server-3-0")
    assert small.evaluate("one => getComputedStyle(one).clipPath") == "inset(50%)"
    small.focus()
    expect(small).to_have_css("clip-path", "none")
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog").locator("pre")).to_be_visible()


def test_without_a_connection_it_has_no_effect(page: Any, inspector: FakeInspector, expect: Any) -> None:
    inspector.stop()
    expect(page.locator("#connection")).to_contain_text("Connection lost")
    expect(button(page)).to_have_attribute("aria-disabled", "true")
    button(page).click(force=True)
    expect(page.get_by_role("dialog")).to_be_hidden()
