"""Names, errors and file lists of any size: one event is one short line of the log."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from support import targets
from support.running import House, errors, logged

# A line holds at most this much of it.
LIMIT = 300
MONSTER = "#" * 65_536
FILES = ",".join(f"/#/{number}\n.py" for number in range(10_000))

pytestmark = [pytest.mark.usefixtures("main_is_heard"), pytest.mark.slow]


def assert_short(lines: list[str]) -> None:
    for line in lines:
        assert "\n" not in line and "\x1b" not in line.replace("\x1b[", ""), line
        assert line.count("#") <= LIMIT and len(line) <= 2 * LIMIT, line


class Unshowable:
    """A message of 64 kB that is no command."""

    def __repr__(self) -> str:
        return f"\n{MONSTER}"


@pytest.mark.parametrize(
    ("message", "line"),
    [
        (f"{MONSTER}\n:", "Failed to restart processes: ####"),
        (",".join([MONSTER[:9_000]] * 3 + [f"\n{number}" for number in range(99)]) + ":", "and 80 more"),
        (f"__SCALE__:{MONSTER}\n", "Monitor received an invalid message: '__SCALE__:##"),
        ([MONSTER] * 100, "Monitor received an invalid message: ["),
        (Unshowable(), "Monitor received an invalid message: \\n####"),
        ((f"{MONSTER}\n", 1, {}, False, True, True, True, 1), "Monitor received an invalid message: ("),
        ((f"{MONSTER}\n", targets.nothing, {}, False, True, True, True, 65_000), "max_workers is"),
        (
            (f"{MONSTER}\n", targets.nothing, {}, True, False, True, True, 1),
            "Monitor failed to manage worker ##",
        ),
    ],
    ids=["name", "names", "text", "list", "repr", "no function", "too many", "not restartable"],
)
def test_a_command_with_long_texts_is_logged_in_one_short_line(
    message: Any, line: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "sanic.root")
    house = House(tmp_path)

    def act() -> None:
        house.said("ready")
        house.send(message)
        logged(caplog, line)

    house.run(act)
    assert len(errors(caplog)) == 1
    assert_short(caplog.messages)


def test_a_reload_of_many_files_is_logged_in_short_lines(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "sanic.root")
    house = House(tmp_path)

    def act() -> None:
        house.said("ready")
        house.send(f"__ALL_PROCESSES__:{FILES}")
        logged(caplog, "Restart finished")

    house.run(act)
    assert errors(caplog) == []
    assert_short(caplog.messages)


def test_a_long_name_of_a_managed_process_is_shortened(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "sanic.root")
    house = House(tmp_path)
    (tmp_path / "other").write_text("exits 3")
    given = f"{MONSTER}\n", targets.server, {**house.kwargs, "plan": str(tmp_path / "other")}
    house.manager.manage(*given, tracked=False)
    with pytest.raises(ValueError, match=r"^Worker ####.* already exists$") as caught:
        house.manager.manage(*given)
    assert_short([str(caught.value)])

    def act() -> None:
        house.said("ready")
        logged(caplog, "Removed worker ###")

    house.run(act)
    (line,) = errors(caplog)
    assert line.startswith("Sanic-####") and "exited with code 3" in line
    assert_short(caplog.messages)


def test_a_long_error_of_an_application_is_shortened(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    house = House(tmp_path)

    def act() -> None:
        house.said("ready")
        house.all_acked()
        house.plan(f"fails_with ImportError: {'#' * 100_000}")
        house.send("__ALL_PROCESSES__:")
        line = logged(caplog, "Keeping the previous worker; rollout aborted.")
        assert "exited with code 1 before it was ready (" in line
        assert " s): ImportError: ####" in line
        assert len(house.entry("Sanic-Server-0-0")["why"]) <= 2 * LIMIT

    house.run(act)
    assert len(errors(caplog)) == 1
    assert_short(caplog.messages)
