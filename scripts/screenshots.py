"""Take the screenshots of the inspector's page: ``screenshots.py docs/images``.

The page shows the data of a fake inspector, drawn from a fixed seed. It needs Chromium and Playwright.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any, Literal

from PIL import Image
from playwright.sync_api import Browser, ViewportSize, expect, sync_playwright

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from support.chromium import launch  # type: ignore[import-not-found]  # noqa: E402
from support.fake_inspector import (  # type: ignore[import-not-found]  # noqa: E402
    FakeInspector,
    operation,
    servers,
    worker,
)

Scheme = Literal["light", "dark"]

SEED = 7
SECONDS = 62
CRASH = SECONDS - 3
# Requests a second of each worker, over that time.
LOAD = [200, 210, 240, 300, 330, 310, 250, 190, 180, 200]
UPTIME = "3 h 13 min"
DESKTOP: ViewportSize = {"width": 1440, "height": 900}
PHONE: ViewportSize = {"width": 390, "height": 844}


# The values that a slot without a process does not have.
MEASURED = ("pid", "uptime", "requests", "in_flight", "loop_lag_p99", "rss_bytes", "pss_bytes", "cpu_seconds")


def advance(fake: Any, load: float) -> None:
    """Let one second pass: each worker serves about ``load`` requests."""
    fake.server["uptime"] += 1
    for one in fake.workers:
        if one["pid"] is None:
            continue
        one["uptime"] += 1
        one["cpu_seconds"] += 0.001
        if not one["server"]:
            continue
        served = max(0.0, random.gauss(1, 0.12)) * load
        one["requests"] += round(served)
        one["in_flight"] = round(served / 90 + random.random())
        one["connections"] = 12 + one["pid"] % 7
        hiccup = 4 if random.random() < 0.04 else 1
        one["loop_lag_p99"] = abs(random.gauss(0.0011, 0.0004)) * hiccup
        one["cpu_seconds"] += served / 1800
        one["rss_bytes"] += random.randrange(60_000)
    fake.push()


def shop(size: int) -> Any:
    """Return an inspector of that many workers, up for hours."""
    random.seed(SEED)
    fake = FakeInspector()
    fake.server |= {"uptime": 11_524.0, "restarts": 5}
    fake.workers = servers(size)
    for one in fake.workers:
        one["rss_bytes"] += random.randrange(9 * 2**20)
    for name, pid in ("Sanic-Reloader-0", 4240), ("Sanic-Inspector-0", 4241):
        fake.workers.append(worker(name, server=False, pid=pid, in_flight=None, connections=None))
    for one in fake.workers:
        one["uptime"] = 11_520.0
    fake.log("server_ready", f"Server ready: {size} workers accept connections after 0.4 s.")
    fake.log("restart_requested", "Restart of all workers requested by signal SIGHUP.")
    fake.log("operation_ended", f"Restart finished: {size} of {size} workers replaced in 1.6 s.")
    fake.log("process_killed", "Sanic-Inspector-0 [4238] was killed: no heartbeat for 30 s.", "warning")
    fake.operations.append(
        operation(
            "done",
            id="done",
            by="signal SIGHUP",
            text=f"{size} of {size} workers replaced",
            seconds=1.6,
            requested_at="2026-03-01T09:12:06+00:00",
        )
    )
    return fake


def break_one(fake: Any) -> None:
    """Make one worker exit again and again, and a rollout begin."""
    size = sum(one["server"] for one in fake.workers)
    fake.worker("Sanic-Server-5-0").update(
        dict.fromkeys(MEASURED),
        phase="backoff",
        restarts=4,
        why="exited with code 1 after 3.2 s: ConnectionError: cannot reach the database",
        next_restart_in=3.4,
    )
    fake.worker("Sanic-Server-2-0")["phase"] = "replacing"
    for pid, seconds in (4255, 1), (4263, 2), (4271, 4):
        text = f"Sanic-Server-5-0 [{pid}] exited with code 1 after 3.2 s: ConnectionError: cannot reach the "
        fake.log("process_exited", f"{text}database. Restarting it in {seconds} s.", "error")
    fake.log("restart_requested", "Restart of all workers requested by inspector 127.0.0.1.")
    for done, pid in (1, 4280), (2, 4281):
        fake.worker(f"Sanic-Server-{done - 1}-0").update(pid=pid, uptime=0.4, restarts=1)
        fake.log("process_ready", f"Sanic-Server-{done - 1}-0 [{pid}] ready after 0.2 s.")
    text = f"2 of {size} workers replaced"
    fake.operations.insert(0, operation(id="running", done=2, total=size, text=text))


def take(browser: Browser, fake: Any, path: Path, scheme: Scheme, size: ViewportSize = DESKTOP) -> None:
    """Watch a minute of the inspector's time, and take one screenshot."""
    random.seed(SEED)
    context = browser.new_context(
        viewport=size, color_scheme=scheme, locale="en-GB", timezone_id="UTC", reduced_motion="reduce"
    )
    fake.start()
    try:
        with context, context.new_page() as page:
            page.goto(fake.url)
            expect(page.locator("#connection")).to_have_text("Live")
            for second in range(SECONDS):
                if second == CRASH:
                    break_one(fake)
                advance(fake, LOAD[second * len(LOAD) // SECONDS])
            expect(page.locator("#about")).to_contain_text(f"up {UPTIME}")
            page.screenshot(path=path)
    finally:
        fake.stop()
    # A palette is enough for it, and makes a small file.
    with Image.open(path) as image:
        image.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path}: {path.stat().st_size // 1000} kB")


def main() -> int:
    """Take all screenshots into the folder that ``sys.argv[1]`` names; return the exit code."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = launch(playwright)
        take(browser, shop(8), folder / "page-light.png", "light")
        take(browser, shop(8), folder / "page-dark.png", "dark")
        take(browser, shop(64), folder / "page-64.png", "dark")
        take(browser, shop(8), folder / "page-phone.png", "light", PHONE)
        browser.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
