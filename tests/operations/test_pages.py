"""The examples of docs/operations.md are run, and the links of the pages for operators lead to headings."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from signal import SIGINT

import pytest
from integration.harness import Server
from integration.tools import free_port

pytestmark = [pytest.mark.operations, pytest.mark.slow]

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "operations.md").read_text()
# As far as the shell would take them for arguments. A server alone: `check` has tests of its own.
EXAMPLES = re.findall(r"^\$ sanic-worker (shop:app[^#;\n]*)", PAGE, re.MULTILINE)
PAGES = [DOCS / "operations.md", *sorted((DOCS / "deploy").glob("*.md"))]

SHOP = """
from sanic import Sanic, text

app = Sanic("shop")

@app.get("/whoami")
async def whoami(request):
    return text("shop")
"""


def test_the_page_has_examples() -> None:
    assert len(EXAMPLES) >= 7
    assert "app:app" not in PAGE.replace("shop:app", "")


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_runs(example: str, tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(SHOP)
    args = ["" if word == "8081" else word for word in shlex.split(example)]
    port = free_port()
    command = [sys.executable, "-m", "worker", *(word or str(free_port()) for word in args)]
    # A step that is slow only because the machine is busy is no finding here.
    env = {"SANIC_WORKER_SLOW_LOOP_WARNING": "off"}
    command += ["--host=127.0.0.1", f"--port={port}"]
    with Server(command, cwd=tmp_path, env=env, port=port) as server:
        server.wait_ready()
        server.wait_line("sanic-worker .* runs")
        assert server.stop(SIGINT) == 0
        # There is no memory limit here, and a warning says so.
        lines = [line for line in server.log().splitlines() if "max_memory_percent" not in line]
        assert not re.search("WARNING|ERROR", "\n".join(lines))


def headings(text: str) -> set[str]:
    """Return the anchors of the headings of a page, as GitHub makes them."""
    found = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_pages_and_headings(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), target
        assert not anchor or anchor in headings(there.read_text()), target
