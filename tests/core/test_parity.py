"""The two cores agree on any input."""

from __future__ import annotations

import os
import pickle
import struct
from importlib import import_module
from itertools import cycle
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.cores import CORES
from support.processes import frame

pytestmark = [pytest.mark.skipif(len(CORES) < 2, reason="one core alone is asked for"), pytest.mark.slow]

LIMIT = 60
EXAMPLES = int(os.environ.get("PARITY_EXAMPLES", "300"))

anything = st.characters(codec=None, exclude_categories=()) | st.sampled_from("\ud800\udfff\x1c\x85\u2003")
VERBS = ["__SCALE__", "__TERMINATE__", "__TERMINATE_EARLY__", "__ALL_PROCESSES__", "STARTUP_FIRST"]
SIZES = ["9223372036854775807", "9223372036854775808"]
words = st.sampled_from([*VERBS, *SIZES, *":,+-0123456789 \t\n", "/a.py", "name"])
texts = st.lists(words | st.text(anything, max_size=4), max_size=8).map("".join)


@st.composite
def pickles(draw: st.DrawFn) -> bytes:
    """A pickle that is, or almost is, that of a text."""
    text = draw(texts.map(lambda text: text.encode("utf-8", "surrogatepass")) | st.binary(max_size=20))
    width, opcode = draw(st.sampled_from([("<B", b"\x8c"), ("<I", b"X"), ("<Q", b"\x8d")]))
    size = max(0, len(text) + draw(st.sampled_from([0, 0, 0, 0, -1, 1])))
    value = draw(st.just(opcode + struct.pack(width, size % 256) + text) | st.just(b"N"))
    memo = draw(st.sampled_from([b"", b"\x94", b"q\0", b"r\0\0\0\0", b"q", b"0"]))
    body = value + memo + draw(st.sampled_from([b".", b".", b".", b"", b".."]))
    framed = struct.pack("<Q", max(0, len(body) + draw(st.sampled_from([0, 0, 0, -1, 1]))))
    return (
        b"\x80"
        + draw(st.sampled_from([b"\2", b"\3", b"\4", b"\5", b"\1", b"\6"]))
        + draw(st.sampled_from([b"", b"\x95" + framed]))
        + body
    )


pieces = st.one_of(
    st.builds(frame, st.binary(max_size=LIMIT + 5)),
    st.builds(frame, pickles()),
    st.builds(frame, texts.map(pickle.dumps)),
    st.builds(lambda payload: struct.pack("!iQ", -1, len(payload)) + payload, st.binary(max_size=20)),
    st.integers(-(2**31), 2**31 - 1).map(lambda size: struct.pack("!i", size)),
    st.integers(0, 2**64 - 1).map(lambda size: struct.pack("!iQ", -1, size)),
    st.integers(0, LIMIT + 2).map(lambda size: struct.pack("!i", size) + b"\x80\x04"),
    st.binary(max_size=10),
    st.lists(st.sampled_from([b"\x80", b"\0", b"\x04", b"\xff", b"."]), max_size=12).map(b"".join),
)
streams = st.lists(pieces, max_size=8).map(b"".join)


@pytest.fixture(scope="module")
def both() -> tuple[ModuleType, ModuleType]:
    return import_module("worker._native"), import_module("worker._core.pure")


@settings(max_examples=EXAMPLES, deadline=None)
@given(text=texts | st.text(anything))
def test_parse_agrees(both: tuple[ModuleType, ModuleType], text: str) -> None:
    native, pure = both
    assert native.parse(text) == pure.parse(text)


@settings(max_examples=EXAMPLES, deadline=None)
@given(payload=pickles() | st.binary() | st.builds(pickle.dumps, texts, st.integers(0, 5)))
def test_decode_agrees(both: tuple[ModuleType, ModuleType], payload: bytes) -> None:
    native, pure = both
    assert native.decode(payload) == pure.decode(payload)


def state(framer: Any, fed: list[bytes]) -> tuple[Any, ...]:
    return fed, framer.faults(), framer.pending


@settings(max_examples=EXAMPLES, deadline=None)
@given(stream=streams, sizes=st.lists(st.integers(1, 12) | st.integers(1, 200), min_size=1, max_size=5))
def test_framer_agrees(both: tuple[ModuleType, ModuleType], stream: bytes, sizes: list[int]) -> None:
    native, pure = (core.Framer(LIMIT) for core in both)
    for size in cycle(sizes):
        chunk, stream = stream[:size], stream[size:]
        assert state(native, native.feed(chunk)) == state(pure, pure.feed(chunk))
        if not stream:
            break
    native.finish()
    pure.finish()
    assert state(native, []) == state(pure, [])


@settings(max_examples=EXAMPLES, deadline=None)
@given(stream=streams)
def test_framers_agree_for_every_cut_of_a_stream(both: tuple[ModuleType, ModuleType], stream: bytes) -> None:
    whole = both[0].Framer(LIMIT)
    wanted = whole.feed(stream), [reason for reason, _ in whole.faults()], whole.pending
    for at in range(len(stream) + 1):
        native, pure = (
            (
                framer.feed(stream[:at]),
                framer.faults(),
                framer.feed(stream[at:]),
                framer.faults(),
                framer.pending,
            )
            for framer in (core.Framer(LIMIT) for core in both)
        )
        assert native == pure
        first, faults, second, more_faults, pending = native
        assert (first + second, [reason for reason, _ in faults + more_faults], pending) == wanted


def test_the_cores_have_the_same_api(both: tuple[ModuleType, ModuleType]) -> None:
    native, pure = both
    assert set(pure.__all__) <= set(dir(native))
    for name in ("Framer", "Monitor"):
        offered = [
            {attribute for attribute in dir(getattr(core, name)) if not attribute.startswith("_")}
            for core in both
        ]
        assert offered[0] == offered[1] - {"cut", "abandon", "is_idle", "skip"}
