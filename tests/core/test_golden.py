"""Frames of CPython 3.10 to 3.13, held as files (``scripts/golden.py`` makes them), are decoded."""

from __future__ import annotations

import json
import pickle
import zlib
from ast import literal_eval
from base64 import b64decode
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
from support.processes import frame

from worker._core.messages import Opaque, Restart, Scale, Stop, Terminate
from worker.constants import RestartOrder

FOLDER = Path(__file__).parent / "golden"
VERSIONS = ["3.10", "3.11", "3.12", "3.13"]
WRITERS = sorted(f"{pickler}{protocol}" for pickler in ("c", "python") for protocol in (2, 3, 4, 5))
SERVER = "Sanic-Server-0-0"
FIRST = RestartOrder.STARTUP_FIRST

# The meaning of the most frequent values, in full; `parse` gives that of the other texts.
MEANINGS = {
    None: Stop(),
    "": Stop(),
    "__TERMINATE__": Terminate(),
    "__TERMINATE_EARLY__": Terminate(early=True),
    "__SCALE__:4": Scale(4),
    SERVER: Restart((SERVER,)),
    f"{SERVER}:": Restart((SERVER,), ""),
    f"{SERVER}::STARTUP_FIRST": Restart((SERVER,), "", FIRST),
    f"{SERVER},Sanic-Server-1-0:/app/a b.py": Restart((SERVER, "Sanic-Server-1-0"), "/app/a b.py"),
    "__ALL_PROCESSES__:": Restart(None, ""),
    "__ALL_PROCESSES__:a.py,b.py": Restart(None, "a.py,b.py"),
    "__ALL_PROCESSES__:a.py,b.py:STARTUP_FIRST": Restart(None, "a.py,b.py", FIRST),
    "\xfc:/\xe9.py": Restart(("\xfc",), "/\xe9.py"),
    "\u20ac\u3000:\u2003": Restart(("\u20ac",), "\u2003"),
    "\U0001f600:\U0010ffff": Restart(("\U0001f600",), "\U0010ffff"),
    "\ud800": Restart(("\ud800",)),
    "\udcff/\ud83d\ude00:": Restart(("\udcff/\ud83d\ude00",), ""),
    "x" * 255: Restart(("x" * 255,)),
    "x" * 256: Restart(("x" * 256,)),
    "x" * 300: Restart(("x" * 300,)),
    "x" * 65_535: Restart(("x" * 65_535,)),
    "x" * 65_536: Restart(("x" * 65_536,)),
    "\u20ac" * 30_000: Restart(("\u20ac" * 30_000,)),
}
LEFT_TO_PICKLE = {
    "an int",
    "False",
    "bytes",
    "a list of a str",
    "a tuple of None",
    "a str subclass",
    "an 8-tuple with a function",
}


class Value(NamedTuple):
    """A value and its frames: writers of CPython -> the frame that they all wrote."""

    text: str | None
    opaque: str | None
    frames: dict[str, bytes]


@cache
def values(version: str) -> list[Value]:
    read = []
    for line in (FOLDER / f"cpython-{version}.jsonl").read_text().splitlines():
        held: dict[str, Any] = json.loads(line)
        frames = {by: zlib.decompress(b64decode(deflated)) for by, deflated in held["frames"].items()}
        text = literal_eval(held.get("text", "None"))
        read.append(Value(text and text * held.get("times", 1), held.get("opaque"), frames))
    return read


def texts(version: str) -> Iterator[tuple[str | None, str, bytes]]:
    """Yield each ``None`` and ``str``, with the writers and the frame."""
    for value in values(version):
        if value.opaque is None:
            for writers, framed in value.frames.items():
                yield value.text, writers, framed[4:]


@pytest.mark.parametrize("version", VERSIONS)
def test_the_files_hold_every_value_by_every_writer(version: str) -> None:
    held = values(version)
    assert MEANINGS.keys() <= {value.text for value in held if value.opaque is None}
    assert {value.opaque for value in held} == {*LEFT_TO_PICKLE, None}
    assert [value[:2] for value in held] == [value[:2] for value in values(VERSIONS[-1])]
    for value in held:
        assert sorted(" ".join(value.frames).split()) == WRITERS


@pytest.mark.parametrize("version", VERSIONS)
def test_the_files_contain_valid_pickles(version: str) -> None:
    for text, writers, payload in texts(version):
        loaded = pickle.loads(payload)
        assert (type(loaded), loaded) == (type(text), text), writers
        assert {int(writer[-1]) for writer in writers.split()} == {payload[1]}


@pytest.mark.slow
def test_a_frame_is_parsed_at_once_and_byte_by_byte(core: ModuleType) -> None:
    # A frame that several versions wrote alike is decoded once.
    frames = {framed for version in VERSIONS for value in values(version) for framed in value.frames.values()}
    framer = core.Framer()
    for framed in frames:
        payload = framed[4:]
        assert framed == frame(payload)
        assert framer.feed(framed) == [payload]
        fed = [framer.feed(framed[at : at + 1]) for at in range(len(framed))]
        assert fed.pop() == [payload]
        assert not any(fed)
        assert framer.pending == 0
    assert framer.faults() == []
    assert frames


@pytest.mark.parametrize("version", VERSIONS)
def test_frames_in_one_stream_keep_their_order(core: ModuleType, version: str) -> None:
    frames = [framed for value in values(version) for framed in value.frames.values()]
    assert core.Framer().feed(b"".join(frames)) == [framed[4:] for framed in frames]


@pytest.mark.parametrize("version", VERSIONS)
def test_every_text_is_decoded(core: ModuleType, version: str) -> None:
    for text, writers, payload in texts(version):
        wanted = MEANINGS[text] if text in MEANINGS else core.parse(text)
        decoded = core.decode(payload)
        assert type(decoded) is not Opaque, (text, writers)
        assert decoded == wanted, (text, writers)


@pytest.mark.parametrize("version", VERSIONS)
def test_other_values_are_left_to_pickle(core: ModuleType, version: str) -> None:
    for value in values(version):
        if value.opaque is not None:
            for writers, framed in value.frames.items():
                assert core.decode(framed[4:]) == Opaque(framed[4:]), (value.opaque, writers)


@pytest.mark.parametrize("version", VERSIONS)
def test_texts_from_64_kib_have_no_pickle_frame(version: str) -> None:
    # The form of the largest texts has no frame, although the protocol knows them.
    for text, writers, payload in texts(version):
        if text and payload[1] >= 4:
            large = len(text.encode("utf-8", "surrogatepass")) >= 65_536
            assert (payload[2:3] != b"\x95") is large, (len(text), writers)
