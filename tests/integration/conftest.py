"""Define the fixtures and the reporting of the integration tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from .harness import Server
from .tools import STOCK


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "ours: what only this package has, and the stock manager has not")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if STOCK and item.get_closest_marker("ours"):
            item.add_marker(pytest.mark.skip(reason="the stock manager has nothing of the kind"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    report = yield
    if report.failed:
        for name, value in getattr(item, "funcargs", {}).items():
            if isinstance(value, Server):
                report.sections.append((f"log of {name}", value.log()[-20_000:]))
    return report


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """`Server.run` in a directory of the test's own; the server is checked and ended after the test."""
    with ExitStack() as stack:

        def start(target: str, *args: str, **options: Any) -> Server:
            return stack.enter_context(Server.run(target, *args, cwd=tmp_path, **options))

        yield start
