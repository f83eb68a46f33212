"""The stream of the page: lost and found again, and closed while the page is hidden."""

from __future__ import annotations

from typing import Any

from support.fake_inspector import FakeInspector

HIDE = """hidden => {
    Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
    document.dispatchEvent(new Event("visibilitychange"));
}"""


def test_a_lost_connection_is_shown_and_found_again(page: Any, inspector: FakeInspector, expect: Any) -> None:
    connection = page.locator("#connection")
    assert connection.get_attribute("role") == "status"
    inspector.log("process_ready", "before the loss")
    inspector.push()
    expect(page.locator("#events li")).to_have_count(1)
    inspector.stop()
    expect(connection).to_have_text("Connection lost. Trying again")
    expect(page.locator("#workers > li")).to_have_count(2)
    inspector.log("process_exited", "during the loss", "error")
    inspector.start()
    expect(connection).to_have_text("Live")
    expect(page.locator("#events li .text")).to_have_text(["during the loss", "before the loss"])
    inspector.log("process_ready", "after the loss")
    inspector.push()
    expect(page.locator("#events li")).to_have_count(3)


def test_an_action_that_does_not_arrive_is_told(page: Any, expect: Any) -> None:
    page.route("**/reload", lambda route: route.abort())
    page.get_by_role("button", name="Rolling restart").click()
    expect(page.locator("#notice")).to_have_text("Rolling restart: the inspector cannot be reached")


def test_nothing_is_sent_without_a_connection(page: Any, inspector: FakeInspector, expect: Any) -> None:
    buttons = page.locator("header button, .restart")
    expect(buttons).to_have_count(8)
    for button in buttons.all():
        expect(button).to_be_enabled()
    inspector.stop()
    expect(page).to_have_title("Connection lost · shop")
    for button in buttons.all():
        expect(button).to_be_disabled()
        button.dispatch_event("click")
    expect(page.get_by_role("dialog")).to_have_count(0)
    field = page.get_by_role("textbox", name="Number of workers")
    field.fill("7")
    field.press("Enter")
    inspector.start()
    expect(page).to_have_title("2/2 ready · shop")
    buttons.nth(2).click()
    expect(page.locator("#operations > li")).to_have_count(1)
    assert [action[:2] for action in inspector.posted] == [("/scale", {"replicas": 7})]
    expect(page.locator("#notice")).to_be_hidden()


def test_a_stop_ends_when_the_server_cannot_be_reached(
    page: Any, inspector: FakeInspector, expect: Any
) -> None:
    page.get_by_role("button", name="Stop…").click()
    page.get_by_role("button", name="Stop the server").click()
    shown = page.get_by_role("list", name="Operations").get_by_role("listitem")
    expect(shown).to_contain_text("Pending")
    inspector.stop()
    expect(shown.locator(".outcome")).to_have_text("The server has stopped")
    expect(shown.get_by_role("progressbar")).to_have_count(0)
    expect(page.locator("#announcer p")).to_have_text("The server has stopped")
    # The server was only cut off.
    inspector.start()
    expect(shown.locator(".outcome")).to_have_text("Pending")


def test_an_operation_that_ends_during_a_loss_is_shown(
    page: Any, inspector: FakeInspector, expect: Any
) -> None:
    page.get_by_role("button", name="Rolling restart").click()
    shown = page.get_by_role("list", name="Operations").get_by_role("listitem")
    expect(shown).to_contain_text("Pending")
    inspector.stop()
    expect(page.locator("#connection")).to_contain_text("Connection lost")
    inspector.end(inspector.operations[0], "done", seconds=3.0, text="2 of 2 workers replaced")
    inspector.start()
    expect(shown).to_contain_text("Done in 3.0 s: 2 of 2 workers replaced")
    expect(page.locator("#notice")).to_be_hidden()


def test_another_server_at_the_same_address_starts_anew(
    page: Any, inspector: FakeInspector, expect: Any
) -> None:
    for text in ("one", "two", "three"):
        inspector.log("process_ready", text)
    inspector.push()
    expect(page.locator("#events li")).to_have_count(3)
    inspector.stop()
    inspector.events.clear()
    inspector.server.update(pid=9_999, uptime=1.0)
    inspector.log("server_ready", "a new server")
    inspector.start()
    expect(page.locator("#about")).to_contain_text("pid 9999")
    expect(page.locator("#events li .text")).to_have_text("a new server")


def test_a_hidden_tab_has_no_stream(page: Any, inspector: FakeInspector, expect: Any) -> None:
    inspector.wait_streams(1)
    page.evaluate(HIDE, True)
    expect(page.locator("#connection")).to_have_text("Paused")
    inspector.push()
    inspector.wait_streams(0)
    inspector.log("process_ready", "while it was hidden")
    page.evaluate(HIDE, False)
    expect(page.locator("#connection")).to_have_text("Live")
    expect(page.locator("#events li")).to_have_count(1)
    inspector.wait_streams(1)


def test_a_closed_tab_has_no_stream(page: Any, inspector: FakeInspector) -> None:
    inspector.wait_streams(1)
    page.close()
    inspector.push()
    inspector.wait_streams(0)


def test_a_stream_that_falls_silent_is_opened_anew(
    open_tab: Any, inspector: FakeInspector, expect: Any
) -> None:
    page = open_tab()
    page.clock.install()
    page.goto(inspector.url)
    connection = page.locator("#connection")
    expect(connection).to_have_text("Live")
    inspector.is_silent = True
    inspector.push()
    page.clock.fast_forward(11_000)
    expect(connection).to_contain_text("no message for 10 s")
    inspector.is_silent = False
    page.clock.run_for(2_000)
    expect(connection).to_have_text("Live")
