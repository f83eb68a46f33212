"""``parse`` turns a text of the control channel into a command."""

from __future__ import annotations

from types import ModuleType

import pytest

from worker._core.messages import Invalid, Restart, Scale, Stop, Terminate
from worker.constants import RestartOrder

FIRST = RestartOrder.STARTUP_FIRST
SHAPE = "__SCALE__ wants a colon and a whole number, as in '__SCALE__:4'"
RANGE = "__SCALE__ wants a number that fits in 64 bits"
FLAG = "\ud83c\uddea"  # two surrogates, as a careless decoder makes them


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", Stop()),
        ("__TERMINATE__", Terminate(False)),
        ("__TERMINATE_EARLY__", Terminate(True)),
        ("__SCALE__:4", Scale(4)),
        ("__SCALE__:0", Scale(0)),
        ("__SCALE__:-1", Scale(-1)),
        ("__SCALE__:+3", Scale(3)),
        ("__SCALE__: \t\n\v\f\r0012\r\n", Scale(12)),
        ("__SCALE__:-0", Scale(0)),
        (f"__SCALE__:{'0' * 5000}7", Scale(7)),
        (f"__SCALE__:{2**63 - 1}", Scale(2**63 - 1)),
        (f"__SCALE__:{-(2**63)}", Scale(-(2**63))),
    ],
)
def test_verbs_are_parsed(core: ModuleType, text: str, wanted: object) -> None:
    assert core.parse(text) == wanted


@pytest.mark.parametrize(
    ("tail", "reason"),
    [
        ("", SHAPE),
        (":", SHAPE),
        (": ", SHAPE),
        (":abc", SHAPE),
        (":-", SHAPE),
        (":+-1", SHAPE),
        (":- 1", SHAPE),
        (":1.0", SHAPE),
        (":1_0", SHAPE),
        (":0x1", SHAPE),
        (":1 2", SHAPE),
        (":1:STARTUP_FIRST", SHAPE),
        ("4", SHAPE),
        ("::4", SHAPE),
        (" :4", SHAPE),
        (":\u0664", SHAPE),
        (":\xa04", SHAPE),
        (":\x1c4", SHAPE),
        (":\ud800", SHAPE),
        (f":{2**63}", RANGE),
        (f":{-(2**63) - 1}", RANGE),
        (f":{'9' * 5000}", RANGE),
        (f":-{'9' * 5000}", RANGE),
    ],
)
def test_a_malformed_scale_is_invalid_with_a_hint(core: ModuleType, tail: str, reason: str) -> None:
    assert core.parse("__SCALE__" + tail) == Invalid("__SCALE__" + tail, reason)


def test_a_restart_names_at_most_10000_processes(core: ModuleType) -> None:
    names = tuple(map(str, range(10_000)))
    text = ",".join(names)
    assert core.parse(text + ":a,b") == Restart(names, "a,b")
    for much in (text + ",:", "," * 10_000):
        assert core.parse(much) == Invalid(much, "a restart names at most 10,000 processes")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Sanic-Server-0-0", Restart(("Sanic-Server-0-0",))),
        ("Sanic-Server-0-0:", Restart(("Sanic-Server-0-0",), "")),
        ("a,b:", Restart(("a", "b"), "")),
        (" a , b :x", Restart(("a", "b"), "x")),
        ("a,,:", Restart(("a", "", ""), "")),
        (":", Restart(("",), "")),
        (",", Restart(("", ""))),
        (" ", Restart(("",))),
        ("__ALL_PROCESSES__:", Restart(None, "")),
        ("__ALL_PROCESSES__", Restart(None)),
        ("a, __ALL_PROCESSES__ :", Restart(None, "")),
        ("__ALL_PROCESSES__:/a.py,/b.py", Restart(None, "/a.py,/b.py")),
        ("__ALL_PROCESSES__::STARTUP_FIRST", Restart(None, "", FIRST)),
        ("__ALL_PROCESSES__:/a.py:STARTUP_FIRST", Restart(None, "/a.py", FIRST)),
        ("a:STARTUP_FIRST", Restart(("a",), "STARTUP_FIRST", FIRST)),
        ("a:C:\\x.py,D:\\y.py", Restart(("a",), "C:\\x.py,D:\\y.py")),
        ("a:C:\\x.py:STARTUP_FIRST", Restart(("a",), "C:\\x.py", FIRST)),
        ("a:STARTUP_FIRST:STARTUP_FIRST", Restart(("a",), "STARTUP_FIRST", FIRST)),
        ("a:XSTARTUP_FIRST", Restart(("a",), "XSTARTUP_FIRST")),
        ("a:x:SHUTDOWN_FIRST", Restart(("a",), "x:SHUTDOWN_FIRST")),
        ("a:x:STARTUP_FIRST ", Restart(("a",), "x:STARTUP_FIRST ")),
        ("__TERMINATE__:", Restart(("__TERMINATE__",), "")),
        (" __SCALE__:4", Restart(("__SCALE__",), "4")),
        ("x__ALL_PROCESSES__:", Restart(("x__ALL_PROCESSES__",), "")),
        ("a\0b:c\0d", Restart(("a\0b",), "c\0d")),
        (f"\udcff{FLAG}:\udc80/\u00e9", Restart((f"\udcff{FLAG}",), "\udc80/\u00e9")),
        ("\U0001f600,\u00fc:", Restart(("\U0001f600", "\u00fc"), "")),
    ],
)
def test_restarts_are_parsed(core: ModuleType, text: str, wanted: Restart) -> None:
    assert core.parse(text) == wanted


def test_names_are_stripped_like_str_strip(core: ModuleType) -> None:
    for code in range(0x10000):
        name = f"{chr(code)}a{chr(code)}b{chr(code)}"
        if name.isascii() and chr(code) in ",:":
            continue
        assert core.parse(name).names == (name.strip(),), hex(code)


def test_commands_are_instances_of_the_python_classes(core: ModuleType) -> None:
    restart = core.parse("a:b:STARTUP_FIRST")
    assert type(restart) is Restart
    assert restart.order is FIRST
    assert core.parse("a").order is RestartOrder.SHUTDOWN_FIRST
    assert type(core.parse("__SCALE__:1").num_workers) is int
