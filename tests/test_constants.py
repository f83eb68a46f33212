"""Names that all releases of Sanic share, one that differs, and names in the log."""

from __future__ import annotations

import subprocess
import sys
from multiprocessing import get_context

import pytest
from support.targets import nothing

from worker.constants import NAME_LIMIT, excerpt, listed
from worker.process import Worker
from worker.serve import _is_server_process


def test_the_prefix_matches_the_installed_release() -> None:
    stock = "from sanic.worker.process import Worker; print(Worker.WORKER_PREFIX)"
    ended = subprocess.run([sys.executable, "-c", stock], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == Worker.WORKER_PREFIX


@pytest.mark.parametrize("prefix", ["Sanic-", "Sanic"])
def test_process_names_are_equal_for_all_releases(prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Worker, "WORKER_PREFIX", prefix)
    worker = Worker("Server-0", nothing, {}, get_context("fork"), {}, num=2)
    assert {process.name for process in worker.processes} == {"Sanic-Server-0-0", "Sanic-Server-0-1"}
    for name, is_server in (("Sanic-Server-0-1", True), ("Sanic-MyServer-0", False), ("", False)):
        monkeypatch.setenv("SANIC_WORKER_NAME", name)
        assert _is_server_process() is is_server


class Hostile(str):
    """A text none of whose own conversions work."""

    __slots__ = ()

    def __str__(self) -> str:
        raise SystemExit("no")

    __repr__ = __str__


class TestExcerpts:
    @pytest.mark.parametrize(
        ("value", "shown"),
        [
            ("", ""),
            ("Sanic-Server-0-0", "Sanic-Server-0-0"),
            ("größer", "größer"),
            ("one\ntwo\r\x1b[31m\u2028\udcff", r"one\ntwo\r\x1b[31m\u2028\udcff"),
            (ValueError("one\ntwo"), r"one\ntwo"),
            (ValueError(), ""),
            (b"\xff\n", r"b'\xff\n'"),
            (12, "12"),
            (["a", "b"], "['a', 'b']"),
            (Hostile("a"), "<Hostile whose repr fails>"),
            (ValueError(Hostile("a")), "<ValueError whose repr fails>"),
        ],
        ids=[str(number) for number in range(11)],
    )
    def test_are_on_one_line(self, value: object, shown: str) -> None:
        assert excerpt(value) == shown

    def test_a_text_is_quoted_on_request(self) -> None:
        assert excerpt("a\n", quoted=True) == r"'a\n'"

    @pytest.mark.parametrize("limit", [NAME_LIMIT, 200])
    @pytest.mark.parametrize("character", ["x", "\n", "\U0010ffff"])
    def test_are_cut_in_the_middle(self, character: str, limit: int) -> None:
        shown = excerpt(f"from {character * 100_000} to", limit)
        assert len(shown) == limit
        assert shown.startswith("from ") and "..." in shown and shown.endswith(" to")

    @pytest.mark.parametrize("value", [["x" * 100] * 100_000, {"x" * 100_000: 1}, b"x" * 100_000], ids=type)
    def test_of_large_objects_are_short(self, value: object) -> None:
        assert len(excerpt(value)) <= 200

    def test_a_text_within_the_limit_is_whole(self) -> None:
        assert excerpt("x" * 200) == "x" * 200
        assert len(excerpt("x" * 201)) == 200

    def test_lists_of_names_are_short(self) -> None:
        assert listed(["a", "b\n"]) == r"a, b\n"
        assert listed([f"n{number}" for number in range(21)]).endswith("n18, n19 and 1 more")
        assert len(listed(["x" * 65_536] * 10_000)) <= 300
