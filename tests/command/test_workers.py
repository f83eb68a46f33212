"""The data behind ``ps`` and ``top``: rates, orders, texts, keys, and the state of the screen."""

from __future__ import annotations

from typing import Any

import pytest
from support.fake_inspector import status, worker

from worker.cli.inspect.terminal import keys_in
from worker.cli.inspect.text import duration, one_line, short_number, size
from worker.cli.inspect.view import ADD, REMOVE, ROLL, View
from worker.cli.inspect.workers import SORT_KEYS, Row, rows, sorted_rows, totals


class TestRates:
    def test_they_follow_from_two_statuses(self) -> None:
        before = status(worker(requests=1000, cpu_seconds=12.0), second=1)
        after = status(worker(requests=1500, cpu_seconds=13.0), second=3)
        (row,) = rows(after, before)
        assert (row.rate, row.cpu) == (250.0, 0.5)

    def test_one_status_has_none(self) -> None:
        (row,) = rows(status(worker()))
        assert (row.rate, row.cpu) == (None, None)
        assert (row.requests, row.cpu_seconds) == (1000, 12.5)

    def test_a_new_process_begins_anew(self) -> None:
        before = status(worker(requests=1000), worker("B"), second=1)
        after = status(worker(requests=3, pid=5000), worker("B"), worker("C"), second=2)
        assert [row.rate for row in rows(after, before)] == [None, 0.0, None]

    def test_two_statuses_of_one_time_have_none(self) -> None:
        one = status(worker(), second=1)
        assert rows(one, one)[0].rate is None

    def test_unknown_values_stay_unknown(self) -> None:
        one = worker(requests=None, cpu_seconds=None, phase=None, state=None, pid=None, rss_bytes=None)
        (row,) = rows(status(one, second=2), status(one, second=1))
        assert (row.rate, row.cpu, row.phase, row.pid, row.memory) == (None, None, "", None, None)

    def test_the_note_has_the_next_start_and_the_reason(self) -> None:
        found = rows(
            status(
                worker(why="exit code 1", next_restart_in=2.54),
                worker(next_restart_in=1.0),
                worker(why="line\nbreak\x1b[2J"),
                worker(why="Sanic-Server-0-0 [4242] exited with code 1"),
            )
        )
        assert [row.note for row in found] == [
            "next start in 2.5 s; exit code 1",
            "next start in 1.0 s",
            "line break\\x1b[2J",
            "exited with code 1",
        ]

    def test_totals_are_of_known_values(self) -> None:
        found = rows(status(worker(in_flight=2), worker("B", in_flight=3), worker("C", in_flight=None)))
        assert totals(found).in_flight == 5
        assert totals(found).rate is None
        assert totals([]).memory is None


class TestOrder:
    FOUND = rows(
        status(
            worker("S-10-0", in_flight=3, phase="ready"),
            worker("S-2-0", in_flight=None, phase="backoff"),
            worker("S-1-0", in_flight=7, phase="ready"),
        )
    )

    @pytest.mark.parametrize(
        ("attribute", "inverted", "expected"),
        [
            ("name", False, "S-1-0 S-2-0 S-10-0"),
            ("name", True, "S-10-0 S-2-0 S-1-0"),
            ("in_flight", False, "S-1-0 S-10-0 S-2-0"),
            ("in_flight", True, "S-10-0 S-1-0 S-2-0"),
            ("phase", False, "S-2-0 S-10-0 S-1-0"),
        ],
    )
    def test_numbers_descend_and_names_ascend(self, attribute: str, inverted: bool, expected: str) -> None:
        found = sorted_rows(self.FOUND, attribute, inverted=inverted)
        assert " ".join(row.name for row in found) == expected

    def test_servers_come_before_other_workers(self) -> None:
        found = rows(status(worker("Inspector", server=False), worker("S-1-0"), worker("S-0-0")))
        assert [row.name for row in sorted_rows(found, "name")] == ["S-0-0", "S-1-0", "Inspector"]

    def test_every_sort_key_is_an_attribute(self) -> None:
        assert set(SORT_KEYS.values()) <= set(Row._fields)
        assert all(len(sorted_rows(self.FOUND, attribute)) == 3 for attribute in SORT_KEYS.values())


@pytest.mark.parametrize(
    ("function", "value", "expected"),
    [
        (duration, None, "-"),
        (duration, 0.0004, "0 ms"),
        (duration, 0.0034, "3 ms"),
        (duration, 0.9996, "1.0 s"),
        (duration, 1.24, "1.2 s"),
        (duration, 9.96, "10 s"),
        (duration, 59.6, "1m00s"),
        (duration, 245, "4m05s"),
        (duration, 3600 * 3 + 240, "3h04m"),
        (duration, 86400 * 12 + 3600 * 3, "12d03h"),
        (size, None, "-"),
        (size, 512, "512 B"),
        (size, 1000, "1.0 KiB"),
        (size, 48 << 20, "48.0 MiB"),
        (size, 345 << 20, "345 MiB"),
        (size, 5 << 50, "5120 TiB"),
        (short_number, None, "-"),
        (short_number, 0, "0"),
        (short_number, 0.25, "0.2"),
        (short_number, 17.4, "17"),
        (short_number, 9999, "9999"),
        (short_number, 12_345, "12.3k"),
        (short_number, 123_456, "123k"),
        (short_number, 4_500_000, "4.5M"),
        (one_line, "a\n b\tc", "a b c"),
        (one_line, "\x1b]0;x\x07", "\\x1b]0;x\\x07"),
    ],
)
def test_values_as_text(function: Any, value: Any, expected: str) -> None:
    assert function(value) == expected


@pytest.mark.parametrize(
    ("data", "keys"),
    [
        (b"q", ["q"]),
        (b"jjR", ["j", "j", "R"]),
        (b"\x1b[A\x1b[B\x1bOA\x1bOB", ["up", "down", "up", "down"]),
        (b"\x1b[5~\x1b[6~\x1b[H\x1b[F", ["page up", "page down", "home", "end"]),
        (b"\x1b[1~\x1b[4~\x1bOH\x1bOF\x1b[7~\x1b[8~", ["home", "end"] * 3),
        (b"\x1b", ["escape"]),
        (b"\r\n", ["enter", "enter"]),
        (b"\x1b[1;5Dq", ["q"]),
        (b"\x1b[15~q", ["q"]),
        (b"\x1b[", []),
        (b"\xc3\xa4", ["\xc3", "\xa4"]),
        (b"", []),
    ],
)
def test_keys_of_a_terminal(data: bytes, keys: list[str]) -> None:
    assert keys_in(data) == keys


class TestView:
    @pytest.fixture
    def view(self) -> View:
        view = View()
        view.show(rows(status(worker("A", in_flight=1), worker("B"), worker("C", in_flight=9))))
        return view

    def test_the_first_worker_is_selected(self, view: View) -> None:
        assert view.selected == "A"

    @pytest.mark.parametrize(
        ("keys", "selected"),
        [
            (["down"], "B"),
            (["j", "j", "k"], "B"),
            (["up"], "A"),
            (["page down"], "C"),
            (["end", "up"], "B"),
            (["end", "home"], "A"),
        ],
    )
    def test_keys_move_the_selection(self, view: View, keys: list[str], selected: str) -> None:
        assert [view.press(key) for key in keys] == [None] * len(keys)
        assert view.selected == selected

    def test_the_selection_stays_on_its_worker(self, view: View) -> None:
        view.press("down")
        view.press("i")
        assert [row.name for row in view.rows] == ["C", "B", "A"]
        assert view.selected == "B"
        view.press("f")
        assert (view.sort, view.inverted, view.selected) == ("in_flight", False, "B")
        assert view.rows[0].name == "C"

    def test_the_selection_stays_at_its_place_when_its_worker_is_gone(self, view: View) -> None:
        view.press("end")
        view.show(rows(status(worker("A"), worker("B"))))
        assert view.selected == "B"

    def test_a_view_without_workers_has_no_selection(self, view: View) -> None:
        view.show([])
        assert [view.press(key) for key in ("down", "end", "R")] == [None, None, None]
        assert view.question is None

    @pytest.mark.parametrize("key", ["R", "Z", "-"])
    def test_a_request_that_stops_a_process_is_confirmed(self, view: View, key: str) -> None:
        assert view.press(key) is None
        question = view.question
        assert question is not None
        assert view.press("n") is None
        assert view.question is None
        view.press(key)
        assert view.press("y") == question

    def test_any_other_key_is_a_no_and_has_no_effect_of_its_own(self, view: View) -> None:
        view.press("-")
        assert view.press("q") is None
        assert not view.is_over

    def test_the_requests_of_the_keys(self, view: View) -> None:
        view.press("R")
        restart = view.press("y")
        assert restart is not None
        assert (restart.name, restart.arguments) == ("restart", {"names": ["A"], "zero_downtime": True})
        view.show(rows(status(worker("B", server=False))))
        view.press("R")
        assert view.question is not None
        assert view.question.arguments == {"names": ["B"], "zero_downtime": False}
        view.press("n")
        assert view.press("+") is ADD
        assert (ADD.name, ADD.arguments) == ("scale", {"replicas": "+1"})
        assert (REMOVE.name, REMOVE.arguments) == ("scale", {"replicas": "-1"})
        assert (ROLL.name, ROLL.arguments) == ("reload", {"zero_downtime": True})

    def test_help_and_quit(self, view: View) -> None:
        view.press("?")
        assert view.helps
        view.press("escape")
        assert not view.helps
        view.press("q")
        assert view.is_over
