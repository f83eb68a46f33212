"""The page by keyboard alone, its roles and names, and its contrast in light and dark."""

from __future__ import annotations

from typing import Any

import pytest
from support.fake_inspector import FakeInspector, operation, servers, worker

# The ratio of WCAG 2.2, AA, for text; large text is not treated apart.
CONTRAST = 4.5

# The ratio of the border of a control, and the least size of a target in pixels.
BORDER_CONTRAST, TARGET = 3, 24

LUMINANCE = """
    const numbers = (color) => color.match(/[\\d.]+/g).map(Number);
    const luminance = (color) => {
        const [r, g, b] = numbers(color).slice(0, 3).map((value) => value / 255)
            .map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const ratioOf = (one, other) => {
        const [a, b] = [one, other].map(luminance);
        return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    };
"""

# Return each control whose border has a contrast below the least one against the colour around it.
LOW_BORDERS = f"""least => {{{LUMINANCE}
    const around = getComputedStyle(document.querySelector("header")).backgroundColor;
    return [...document.querySelectorAll("header button, header input")]
        .filter((one) => ratioOf(getComputedStyle(one).borderTopColor, around) < least)
        .map((one) => one.id);
}}"""

# Return each text with a contrast below the least one: its text and its ratio.
LOW_CONTRAST = (
    "least => {"
    + LUMINANCE
    + """
    const ground = getComputedStyle(document.body).backgroundColor;
    // The colour as it is drawn: below the opacity and the loss of colour of the elements around it.
    const drawn = (node, color) => {
        let mixed = numbers(color).slice(0, 3);
        for (; node; node = node.parentElement) {
            const { opacity, filter } = getComputedStyle(node);
            if (filter === "grayscale(1)") {
                const gray = 0.2126 * mixed[0] + 0.7152 * mixed[1] + 0.0722 * mixed[2];
                mixed = [gray, gray, gray];
            }
            const below = numbers(ground);
            mixed = mixed.map((value, index) => opacity * value + (1 - opacity) * below[index]);
        }
        return `rgb(${mixed})`;
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
        const ratio = ratioOf(drawn(node, getComputedStyle(node).color), drawn(node, background(node)));
        if (ratio < least) found.push([text.trim(), ratio.toFixed(2)]);
    }
    return found;
}"""
)
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
    assert page.evaluate(LOW_BORDERS, BORDER_CONTRAST) == []
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
    expect(page.locator("#events li")).to_have_count(1)
    reached = []
    for _ in range(12):
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
        "Upgrade",
        "Stop…",
        "Restart Sanic-Server-0-0",
        "Stacks of Sanic-Server-0-0",
        "Restart Sanic-Server-1-0",
        "Stacks of Sanic-Server-1-0",
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


def test_a_small_tile_tells_why_and_its_button_is_large_enough(
    open_tab: Any, inspector: FakeInspector, expect: Any
) -> None:
    inspector.workers = servers(64)
    inspector.workers[3].update(phase="failed", why="exited with code 1 after 3.2 s")
    page = open_tab()
    page.goto(inspector.url)
    expect(page.locator("#workers > li")).to_have_count(64)
    tile = page.get_by_role("listitem", name="Sanic-Server-3-0", exact=True)
    # A screen reader reads it in the tile; everybody sees it at the focus.
    why = tile.get_by_text("exited with code 1 after 3.2 s")
    assert "exited with code 1" in tile.aria_snapshot()
    assert why.bounding_box()["width"] == 1
    page.get_by_role("button", name="Restart Sanic-Server-3-0").focus()
    expect(why).to_be_in_viewport(ratio=1)
    assert why.bounding_box()["width"] > 100
    boxes = page.get_by_role("button").evaluate_all(
        "all => all.map((one) => one.getBoundingClientRect()).map(({ width, height }) => [width, height])"
    )
    assert len(boxes) == 134
    assert min(map(min, boxes)) >= TARGET


def test_text_from_outside_does_not_turn_its_neighbours(
    page: Any, inspector: FakeInspector, expect: Any
) -> None:
    name = "\u202eyfitnuoc"
    inspector.workers += [worker(name, pid=98), worker(name, server=False, phase="ready")]
    inspector.push()
    inspector.refusals["/restart"] = (400, "a refusal")
    page.get_by_role("button", name=f"Restart {name}").click()
    expect(page.locator("#notice")).to_have_text(f"Restart of \u2068{name}\u2069: a refusal")
    shown = page.get_by_role("list", name="Other processes").get_by_role("listitem")
    expect(shown.locator(".name")).to_have_text(name)
    assert (
        shown.locator("> span").evaluate_all("all => all.map((one) => getComputedStyle(one).unicodeBidi)")
        == ["isolate"] * 3
    )
