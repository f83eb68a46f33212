"""The buttons of the page, the way of an operation to its end, and the key."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from support.fake_inspector import FakeInspector, operation, servers

KEY = "clé ключ"
REASON = "Sanic-Server-0-0 did not become ready: SyntaxError: invalid syntax (shop.py, line 12)"


def press(name: str) -> Callable[[Any], None]:
    """Return a function that presses the button of that name."""
    return lambda page: page.get_by_role("button", name=name, exact=True).click()


def scale_to(number: str) -> Callable[[Any], None]:
    """Return a function that types a number of workers, and presses Enter."""

    def steer(page: Any) -> None:
        field = page.get_by_role("textbox", name="Number of workers")
        field.fill(number)
        field.press("Enter")

    return steer


def wait_action(inspector: FakeInspector) -> tuple[str, Any, str]:
    """Return the one action, once its operation has begun: path, body and preference."""
    with inspector.changed:
        assert inspector.changed.wait_for(lambda: inspector.operations, 15)
    (action,) = inspector.posted
    return action


@pytest.mark.parametrize(
    ("steer", "action", "data"),
    [
        (press("Rolling restart"), "/reload", {"zero_downtime": True}),
        (press("Upgrade"), "/upgrade", None),
        (press("One worker more"), "/scale", {"replicas": "+1"}),
        (press("One worker less"), "/scale", {"replicas": "-1"}),
        (scale_to("12"), "/scale", {"replicas": 12}),
        (
            press("Restart Sanic-Server-1-0"),
            "/restart",
            {"names": ["Sanic-Server-1-0"], "zero_downtime": True},
        ),
    ],
)
def test_each_button_sends_its_action(
    page: Any, inspector: FakeInspector, expect: Any, steer: Callable[[Any], None], action: str, data: Any
) -> None:
    steer(page)
    assert wait_action(inspector) == (action, data, "respond-async")
    shown = page.get_by_role("list", name="Operations").get_by_role("listitem")
    expect(shown).to_contain_text("Pending")
    expect(shown.get_by_role("progressbar")).to_be_visible()
    inspector.end(inspector.operations[0], "done", seconds=0.4, text="2 of 2 workers replaced")
    expect(shown).to_contain_text("Done in 400 ms: 2 of 2 workers replaced")
    expect(page.locator("#announcer")).to_contain_text("Done in 400 ms")


def test_a_stop_takes_a_confirmation(page: Any, inspector: FakeInspector, expect: Any) -> None:
    dialog = page.get_by_role("dialog", name="Stop the server?")
    press("Stop…")(page)
    expect(dialog).to_be_visible()
    expect(dialog.get_by_role("button", name="Cancel")).to_be_focused()
    press("Cancel")(page)
    expect(dialog).to_be_hidden()
    press("Stop…")(page)
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    assert inspector.posted == []
    press("Stop…")(page)
    press("Stop the server")(page)
    assert wait_action(inspector) == ("/shutdown", None, "respond-async")


def test_fewer_workers_by_number_take_a_confirmation(
    page: Any, inspector: FakeInspector, expect: Any
) -> None:
    inspector.workers = servers(12)
    inspector.push()
    field = page.get_by_role("textbox", name="Number of workers")
    expect(field).to_have_value("12")
    dialog = page.get_by_role("dialog", name="Scale down from 12 to 1?")
    scale_to("1")(page)
    expect(dialog).to_contain_text("11 workers will end.")
    expect(dialog.get_by_role("button", name="Cancel")).to_be_focused()
    page.keyboard.press("Enter")
    expect(dialog).to_be_hidden()
    # It can be corrected.
    expect(field).to_have_value("1")
    expect(field).to_be_focused()
    assert inspector.posted == []
    field.press("Enter")
    press("Scale down")(page)
    assert wait_action(inspector) == ("/scale", {"replicas": 1}, "respond-async")


def test_a_roll_that_fails_shows_the_reason(page: Any, inspector: FakeInspector, expect: Any) -> None:
    press("Rolling restart")(page)
    wait_action(inspector)
    inspector.end(
        inspector.operations[0],
        "failed",
        seconds=2.5,
        reason=REASON,
        rolled_back=["Sanic-Server-0-0"],
    )
    shown = page.get_by_role("list", name="Operations").get_by_role("listitem")
    expect(shown).to_contain_text(f"Failed after 2.5 s: {REASON}")
    expect(shown).to_contain_text("serves on: Sanic-Server-0-0")
    expect(page.locator("#announcer")).to_contain_text(REASON)


def test_an_operation_that_has_ended_at_once_is_announced(
    page: Any, inspector: FakeInspector, expect: Any
) -> None:
    inspector.steps = [operation("failed", seconds=0.0, reason=REASON)]
    press("Rolling restart")(page)
    expect(page.locator("#operations")).to_contain_text(REASON)
    expect(page.locator("#announcer p")).to_have_count(1)
    expect(page.locator("#announcer")).to_contain_text(REASON)


def test_operations_before_the_page_was_opened_are_not_announced(
    open_tab: Any, inspector: FakeInspector, expect: Any
) -> None:
    inspector.operations += [operation("done", id=str(number)) for number in range(5)]
    page = open_tab()
    page.goto(inspector.url)
    expect(page.locator("#operations > li")).to_have_count(3)
    # Neither are they once the operations are read again.
    inspector.steps = [operation("done", seconds=1.0, text="a new one")]
    inspector.log("operation_ended", "An operation ended.")
    inspector.push()
    press("Rolling restart")(page)
    expect(page.locator("#announcer p")).to_have_text(["Reload: Done in 1.0 s: a new one"])


def test_an_action_that_is_refused_is_told(page: Any, inspector: FakeInspector, expect: Any) -> None:
    message = "replicas must be a whole number from 1 on, at most 64, not 400"
    inspector.refusals["/scale"] = (400, message)
    scale_to("400")(page)
    notice = page.get_by_role("alert").filter(has_text=message)
    expect(notice).to_have_text(f"Scale: {message}")
    inspector.refusals.clear()
    press("Rolling restart")(page)
    expect(notice).to_be_hidden()


@pytest.mark.parametrize("answer", [None, "done", {}])
def test_an_answer_without_an_operation_is_told(page: Any, expect: Any, answer: Any) -> None:
    page.route("**/reload", lambda route: route.fulfill(json={"meta": {}, "result": answer}))
    press("Rolling restart")(page)
    expect(page.locator("#notice")).to_have_text(
        "Rolling restart: sent. The answer names no operation, so the outcome is not known"
    )
    expect(page.locator("#operations > li")).to_have_count(0)


@pytest.mark.parametrize("number", ["", "0", "00", "-3", "many", "1.5"])
def test_a_wrong_number_is_not_sent(page: Any, inspector: FakeInspector, expect: Any, number: str) -> None:
    scale_to(number)(page)
    assert page.evaluate("document.querySelector('#scale').matches(':invalid')")
    press("Rolling restart")(page)
    assert wait_action(inspector)[0] == "/reload"


def test_a_typed_number_stays_until_it_is_sent_or_given_up(
    page: Any, inspector: FakeInspector, expect: Any
) -> None:
    def update(uptime: float, shown: str) -> None:
        inspector.server["uptime"] = uptime
        inspector.push()
        expect(page.locator("#about")).to_contain_text(shown)

    field = page.get_by_role("textbox", name="Number of workers")
    expect(field).to_have_value("2")
    field.fill("17")
    update(100_000.0, "up 1 d 3 h")
    expect(field).to_have_value("17")
    # It also stays on the way to the button.
    page.keyboard.press("Tab")
    update(200_000.0, "up 2 d 7 h")
    expect(field).to_have_value("17")
    field.press("Escape")
    expect(field).to_have_value("2")
    scale_to("18")(page)
    assert wait_action(inspector)[1] == {"replicas": 18}
    update(300_000.0, "up 3 d 11 h")
    expect(field).to_have_value("2")


def test_the_last_worker_cannot_be_taken_away(page: Any, inspector: FakeInspector, expect: Any) -> None:
    fewer = page.get_by_role("button", name="One worker less")
    expect(fewer).to_be_enabled()
    fewer.focus()
    del inspector.workers[1]
    inspector.push()
    expect(fewer).to_be_disabled()
    expect(fewer).to_be_focused()
    fewer.dispatch_event("click")
    press("Rolling restart")(page)
    assert wait_action(inspector)[0] == "/reload"


def test_the_key_is_asked_for_once_and_kept_for_the_tab(
    open_tab: Any, inspector: FakeInspector, expect: Any
) -> None:
    inspector.key = KEY
    page = open_tab()
    page.goto(inspector.url)
    dialog = page.get_by_role("dialog", name="API key")
    expect(dialog).to_be_visible()
    field = dialog.get_by_label("Key", exact=True)
    expect(field).to_be_focused()
    page.keyboard.press("Escape")
    page.keyboard.press("Escape")
    expect(dialog).to_be_visible()
    field.fill("wrong")
    field.press("Enter")
    expect(dialog.get_by_role("alert")).to_have_text("The key was refused: Bad API key")
    expect(page.locator("#workers > li")).to_have_count(0)
    inspector.stop()
    field.press("Enter")
    expect(dialog.get_by_role("alert")).to_have_text("Try again: the inspector cannot be reached")
    inspector.start()
    field.fill(KEY)
    field.press("Enter")
    expect(dialog).to_be_hidden()
    expect(page.locator("#connection")).to_have_text("Live")
    press("Rolling restart")(page)
    wait_action(inspector)
    page.reload()
    expect(page.locator("#connection")).to_have_text("Live")
    expect(page.locator("#workers > li")).to_have_count(2)
    # Neither another tab nor the document has it.
    other = open_tab()
    other.goto(inspector.url)
    expect(other.get_by_role("dialog", name="API key")).to_be_visible()
    assert KEY not in page.content()


def test_a_key_that_is_no_longer_right_is_asked_for_again(
    open_tab: Any, inspector: FakeInspector, expect: Any
) -> None:
    inspector.key = "old"
    page = open_tab()
    page.goto(inspector.url)
    page.get_by_label("Key", exact=True).fill("old")
    page.keyboard.press("Enter")
    expect(page.locator("#connection")).to_have_text("Live")
    inspector.key = "new"
    page.reload()
    dialog = page.get_by_role("dialog", name="API key")
    expect(dialog.get_by_role("alert")).to_have_text("The key was refused: Bad API key")
    page.get_by_label("Key", exact=True).fill("new")
    page.keyboard.press("Enter")
    expect(page.locator("#connection")).to_have_text("Live")
