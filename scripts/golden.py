"""Make the golden frames anew: the bytes that each CPython writes for a value.

``golden.py`` writes ``tests/core/golden/cpython-<version>.jsonl`` with each CPython found here, and from
these files the seeds of the fuzzer. A file whose CPython is not found is left as it is.

A line is one value. ``text`` is the value as Python writes it, with ``times`` if it is repeated. ``opaque``
describes a value that is neither ``None`` nor a ``str``. ``frames`` has the written bytes, deflated and in
base64, under all writers that wrote them: ``c`` or ``python`` for the pickler, and the protocol.
"""

from __future__ import annotations

import _pickle
import json
import pickle
import shutil
import subprocess
import sys
import zlib
from base64 import b64decode, b64encode
from collections.abc import Iterator
from io import BytesIO
from multiprocessing.connection import Connection
from os import dup
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from environments import ROOT
from matrix import find_python

GOLDEN = ROOT / "tests" / "core" / "golden"
SEEDS = ROOT / "fuzz" / "seeds"
MINORS = range(10, 14)
PROTOCOLS = range(2, 6)
WRITE = "--write"


class Text(str):
    """Carries an attribute beside its text."""

    __slots__ = ()


FUNCTION = print  # a reference in the pickle: a module and a name
TEXTS: list[tuple[str | None, int]] = [
    (None, 1),
    ("", 1),
    ("a", 1),
    ("Sanic-Server-0-0", 1),
    ("Sanic-Server-0-0:", 1),
    ("Sanic-Server-0-0,Sanic-Server-1-0:/app/a b.py", 1),
    ("Sanic-Server-0-0::STARTUP_FIRST", 1),
    ("__TERMINATE__", 1),
    ("__TERMINATE_EARLY__", 1),
    ("__SCALE__:4", 1),
    ("__SCALE__:9223372036854775808", 1),
    ("__SCALE__", 1),
    ("__ALL_PROCESSES__:", 1),
    ("__ALL_PROCESSES__:a.py,b.py", 1),
    ("__ALL_PROCESSES__:a.py,b.py:STARTUP_FIRST", 1),
    ("\xfc:/\xe9.py", 1),
    ("\u20ac\u3000:\u2003", 1),
    ("\U0001f600:\U0010ffff", 1),
    ("\ud800", 1),
    ("\udcff/\ud83d\ude00:", 1),
    ("x", 255),
    ("x", 256),
    ("\xe9", 127),
    ("\xe9", 128),
    ("x", 300),
    # The longest text that is written inside a frame of the pickle, and the shortest that is not.
    ("x", 65_535),
    ("x", 65_536),
    ("\u20ac", 30_000),
]
OPAQUE: dict[str, object] = {
    "an int": 4,
    "False": False,
    "bytes": b"Sanic-Server-0-0:",
    "a list of a str": ["Sanic-Server-0-0:"],
    "a tuple of None": (None,),
    "a str subclass": Text("Sanic-Server-0-0:"),
    "an 8-tuple with a function": ("Sanic-Task", FUNCTION, {"sep": ""}, False, None, True, True, 1),
}


def pickled(pickler: Any, value: object, protocol: int) -> bytes:
    """Return the pickle of a value by a class of picklers."""
    buffer = BytesIO()
    pickler(buffer, protocol).dump(value)
    return buffer.getvalue()


def framed(payload: bytes) -> bytes:
    """Return the frame that :mod:`multiprocessing.connection` writes for a payload."""
    with TemporaryFile() as file:
        with Connection(dup(file.fileno()), readable=False) as connection:
            connection.send_bytes(payload)
        file.seek(0)
        return file.read()


def frames_of(value: object) -> dict[str, str]:
    """Return, in base64, the frame that each writer of this CPython makes of a value."""
    picklers = {"c": _pickle.Pickler, "python": getattr(pickle, "_Pickler")}  # noqa: B009 (not in typeshed)
    return {
        f"{name}{protocol}": b64encode(framed(pickled(pickler, value, protocol))).decode()
        for protocol in PROTOCOLS
        for name, pickler in picklers.items()
    }


def written_here() -> Iterator[dict[str, Any]]:
    """Yield the lines of the CPython that runs this, before equal frames are merged."""
    for text, times in TEXTS:
        # Not as JSON writes it: it makes one character of two surrogates.
        named = {"text": ascii(text)} if times == 1 else {"text": ascii(text), "times": times}
        yield named | {"frames": frames_of(text and text * times)}
    for words, value in OPAQUE.items():
        yield {"opaque": words, "frames": frames_of(value)}


def compacted(frames: dict[str, str]) -> dict[str, str]:
    """Merge the writers that agree, and deflate their frames."""
    writers: dict[str, list[str]] = {}
    for writer, frame in frames.items():
        writers.setdefault(frame, []).append(writer)
    return {
        " ".join(names): b64encode(zlib.compress(b64decode(frame), 9)).decode()
        for frame, names in writers.items()
    }


def golden(minor: int) -> Path:
    """Return the path of the frames of CPython 3.``minor``."""
    return GOLDEN / f"cpython-3.{minor}.jsonl"


def make_golden(path: Path, interpreter: str) -> None:
    """Write the file of one CPython."""
    output = subprocess.check_output([interpreter, __file__, WRITE], text=True)
    lines = [json.loads(line) for line in output.splitlines()]
    compact = [line | {"frames": compacted(line["frames"])} for line in lines]
    path.write_text("".join(json.dumps(line) + "\n" for line in compact))


def make_seeds(path: Path) -> None:
    """Write the seeds of the fuzzer: short payloads for the decoder, streams for the framer."""
    shutil.rmtree(SEEDS, ignore_errors=True)
    for target in ("decoder", "framer"):
        (SEEDS / target).mkdir(parents=True)
    writers = [f"c{protocol}" for protocol in PROTOCOLS]
    streams = dict.fromkeys(writers, b"")
    for number, line in enumerate(map(json.loads, path.read_text().splitlines())):
        # One form of each value in turn: the forms are too much alike to have them all.
        writer = writers[number % len(writers)]
        deflated = next(frame for names, frame in line["frames"].items() if writer in names.split())
        frame = zlib.decompress(b64decode(deflated))
        if len(frame) < 400:
            streams[writer] += frame
            (SEEDS / "decoder" / f"{number:02}-{writer}").write_bytes(frame[4:])
    # The layout that fuzz/fuzz_targets/framer.rs reads: the limit less one, the number of chunk sizes, the
    # sizes.
    for limit, (writer, stream) in zip((20, 60, 100, 255), streams.items(), strict=True):
        (SEEDS / "framer" / writer).write_bytes(bytes([limit, 3, 1, 9, 40]) + stream)


def main() -> int:
    """Make all files; return the exit code."""
    if sys.argv[1:] == [WRITE]:
        for line in written_here():
            print(json.dumps(line))
        return 0
    GOLDEN.mkdir(exist_ok=True)
    for minor in MINORS:
        interpreter = find_python(minor)
        if interpreter is None:
            print(f"CPython 3.{minor}: not found here, left as it is")
        else:
            make_golden(golden(minor), interpreter)
    make_seeds(golden(MINORS[-1]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
