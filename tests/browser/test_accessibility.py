"""The page by keyboard alone, its roles and names, and its contrast in light and dark."""

from __future__ import annotations

from typing import Any

import pytest
from support.fake_inspector import FakeInspector, operation, worker

# The ratio of WCAG 2.2, AA, for text; large text is not treated apart.
CONTRAST = 4.5

# Return each text with a contrast below the least one: its text and its ratio.
LOW_CONTRAST = """least => {
    const numbers = (color) => color.match(/[\\d.]+/g).map(Number);
    const luminance = (color) => {
        const [r, g, b] = numbers(color).slice(0, 3).map((value) => value / 255)
            .map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const background = (node) => {
        for (; node; node = node.parentElement) {
            const color = getComputedStyle(node).backgroundColor;
            if ((numbers(color)[3] ?? 1) === 1) return color;
        }
        return "rgb(255, 255, 255)";
    };
    const found = [];
    for (const node of document.querySelectorAll("body *")) {
        const text = [...node.childNodes].filter((one) => one.nodeType === 3).map((one) => one.data).join("");
        const box = node.getBoundingClientRect();
        if (!(text.trim() || node.value) || !box.width || node.closest("script, template")) continue;
        const [a, b] = [getComputedStyle(node).color, background(node)].map(luminance);
        const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        if (ratio < least) found.push([text.trim(), ratio.toFixed(2)]);
    }
    return found;
}"""
PHASES = ["starting", "ready", "replacing", "draining", "backoff", "failed", "stopping", "stopped"]


@pytest.fixture
def busy(inspector: FakeInspector) -> FakeInspector:
    """Return an inspector that shows all that there is to be seen."""
    inspector.workers = [
        worker(f"Sanic-Server-{number}-0", phase=phase, why="a reason") for number, phase in enumerate(PHASES)
    ]
    inspector.workers.append(worker("Sanic-Reloader-0", server=False))
    for level in ("info", "warning", "error"):
        inspector.log("process_exited", f"an event of level {level}", level)
    inspector.operations += [
        operation(id="1"),
        operation("failed", id="2", reason="a reason"),
        operation("done", id="3"),
    ]
    return inspector


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_has_contrast(open_tab: Any, busy: FakeInspector, expect: Any, scheme: str) -> None:
    page = open_tab(color_scheme=scheme)
    page.goto(busy.url)
    expect(page.locator("#connection")).to_have_text("Live")
    expect(page.locator("#operations > li")).to_have_count(3)
    busy.refusals["/reload"] = (400, "a refusal")
    page.get_by_role("button", name="Rolling restart").click()
    expect(page.locator("#notice")).to_be_visible()
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0]")
    assert (int(ground) > 128) is (scheme == "light")
    assert page.evaluate(LOW_CONTRAST, CONTRAST) == []
    page.get_by_role("button", name="Stop…").click()
    expect(page.get_by_role("dialog")).to_be_visible()
    assert page.evaluate(LOW_CONTRAST, CONTRAST) == []
    page.keyboard.press("Escape")
    busy.stop()
    expect(page.locator("#connection")).to_contain_text("Connection lost")
    assert page.evaluate(LOW_CONTRAST, CONTRAST) == []


def test_the_test_of_contrast_finds_a_low_one(page: Any) -> None:
    page.evaluate("document.querySelector('h1').style.color = '#bbb'")
    assert [text for text, _ in page.evaluate(LOW_CONTRAST, CONTRAST)] == ["shop"]


def test_landmarks_roles_and_names(page: Any, busy: FakeInspector, expect: Any) -> None:
    busy.push()
    for role, name in {
        "banner": None,
        "main": None,
        "complementary": "Activity",
        "region": "Events",
        "group": "Actions",
    }.items():
        expect(page.get_by_role(role, name=name) if name else page.get_by_role(role)).to_have_count(1)
    for name in ("Workers", "Other processes", "Operations", "Events"):
        expect(page.get_by_role("heading", level=2, name=name, exact=True)).to_have_count(1)
        expect(page.get_by_role("list", name=name, exact=True)).to_have_count(1)
    expect(page.get_by_role("progressbar")).to_have_accessible_name("Restart")
    for one in busy.workers[:-1]:
        shown = page.get_by_role("listitem", name=one["name"], exact=True)
        expect(shown.get_by_text(one["phase"], exact=True)).to_be_visible()
    unnamed = """all => all.filter((one) => !one.ariaLabel && !one.textContent.trim()).length"""
    assert page.locator("button, [role=list]").evaluate_all(unnamed) == 0
    assert page.evaluate("document.documentElement.lang") == "en"


def test_all_of_it_is_reached_by_the_keyboard(page: Any, inspector: FakeInspector, expect: Any) -> None:
    inspector.log("process_ready", "an event")
    inspector.push()
    reached = []
    for _ in range(9):
        page.keyboard.press("Tab")
        focused = page.evaluate(
            """() => {
                const one = document.activeElement;
                const style = getComputedStyle(one);
                return [one.ariaLabel ?? one.textContent.trim(), style.outlineStyle, style.outlineWidth];
            }"""
        )
        reached.append(focused[0])
        assert focused[1:] == ["solid", "2px"], focused
    assert reached == [
        "One worker less",
        "Number of workers",
        "One worker more",
        "Scale",
        "Rolling restart",
        "Stop…",
        "Restart Sanic-Server-0-0",
        "Restart Sanic-Server-1-0",
        page.locator("#events").text_content().strip(),
    ]


def test_a_server_is_steered_by_the_keyboard_alone(page: Any, inspector: FakeInspector, expect: Any) -> None:
    def tab_to(name: str) -> None:
        button = page.get_by_role("button", name=name, exact=True)
        for _ in range(20):
            page.keyboard.press("Tab")
            if button.evaluate("one => one === document.activeElement"):
                return
        raise AssertionError(f"the focus does not come to {name}")

    tab_to("Rolling restart")
    page.keyboard.press("Enter")
    tab_to("Restart Sanic-Server-1-0")
    page.keyboard.press("Space")
    tab_to("One worker more")
    page.keyboard.press("Enter")
    tab_to("Stop…")
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_role("button", name="Cancel")).to_be_focused()
    # The focus stays in the dialog, or goes to the window around the page.
    for key in ("Tab", "Tab", "Tab", "Shift+Tab", "Shift+Tab"):
        page.keyboard.press(key)
        inside = "(one => one === document.body || one.closest('dialog') !== null)(document.activeElement)"
        assert page.evaluate(inside)
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    expect(page.get_by_role("button", name="Stop…")).to_be_focused()
    with inspector.changed:
        assert inspector.changed.wait_for(lambda: len(inspector.operations) == 3, 15)
    assert sorted(path for path, _, _ in inspector.posted) == ["/reload", "/restart", "/scale"]


def test_the_focus_survives_an_update(page: Any, inspector: FakeInspector, expect: Any) -> None:
    button = page.get_by_role("button", name="Restart Sanic-Server-1-0")
    button.focus()
    inspector.workers.insert(0, worker("Sanic-Server-9-0", phase="starting"))
    inspector.push()
    expect(page.locator("#workers > li")).to_have_count(3)
    expect(button).to_be_focused()
