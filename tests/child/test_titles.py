"""The titles of processes."""

from __future__ import annotations

import pytest

from worker._child.titles import title_of


@pytest.mark.parametrize(
    ("name", "application", "title"),
    [
        ("Sanic-Server-0-0", "shop:app", "sanic-worker: Sanic-Server-0-0 shop:app"),
        ("Sanic-Server-0-0", "", "sanic-worker: Sanic-Server-0-0"),
        ("Cron\n", "\x1b[2Jsh\u00f6p", "sanic-worker: Cron\\n \\x1b[2Jsh\u00f6p"),
    ],
)
def test_a_title_is_one_line_of_printable_characters(name: str, application: str, title: str) -> None:
    assert title_of(name, application) == title
