"""``Framer``: payloads are whole wherever the stream is cut, and bytes that are no frame are reported and
dropped.
"""

from __future__ import annotations

import pickle
import struct
from types import ModuleType
from typing import Any

import pytest
from support.processes import frame

HI = pickle.dumps("hi:", 4)
LIMIT = 1000


def feed(framer: Any, stream: bytes, size: int) -> list[bytes]:
    return [
        payload
        for start in range(0, len(stream), size)
        for payload in framer.feed(stream[start : start + size])
    ]


def long_frame(payload: bytes) -> bytes:
    return struct.pack("!iQ", -1, len(payload)) + payload


def test_payloads_are_whole_for_any_chunks(core: ModuleType) -> None:
    stream = frame(HI) + frame(b"") + long_frame(b"abc") + frame(b"any bytes") + long_frame(b"") + frame(HI)
    wanted = [HI, b"", b"abc", b"any bytes", b"", HI]
    for cut in range(len(stream) + 1):
        framer = core.Framer()
        assert framer.feed(stream[:cut]) + framer.feed(stream[cut:]) == wanted
        assert framer.pending == 0
        assert framer.faults() == []
    for size in range(1, len(stream)):
        assert feed(core.Framer(), stream, size) == wanted


def test_a_partial_frame_is_kept(core: ModuleType) -> None:
    framer = core.Framer()
    assert framer.pending == 0
    assert framer.feed(b"") == []
    assert framer.feed(frame(HI)[:3]) == []
    assert framer.pending == 3
    assert framer.feed(frame(HI)[3:] + b"\0") == [HI]
    assert framer.pending == 1


def test_the_limit_is_inclusive(core: ModuleType) -> None:
    framer = core.Framer(5)
    assert framer.feed(frame(b"12345") + long_frame(b"12345")) == [b"12345", b"12345"]
    assert framer.faults() == []
    assert framer.feed(frame(b"123456")) == []
    assert len(framer.faults()) == 1


def test_the_default_limit_is_16_mib(core: ModuleType) -> None:
    assert core.LIMIT == 16 * 1024 * 1024
    framer = core.Framer()
    framer.feed(struct.pack("!i", core.LIMIT))
    assert framer.faults() == []
    framer = core.Framer(limit=core.LIMIT)
    framer.feed(struct.pack("!i", core.LIMIT + 1))
    assert len(framer.faults()) == 1


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_must_be_positive(core: ModuleType, limit: int) -> None:
    with pytest.raises(ValueError, match=f"^the limit of a frame must be positive, not {limit}$"):
        core.Framer(limit)


BAD = [
    (struct.pack("!i", LIMIT + 1), LIMIT + 1),
    (struct.pack("!i", 2**31 - 1), 2**31 - 1),
    (struct.pack("!i", -2), -2),
    (struct.pack("!i", -(2**31)), -(2**31)),
    (struct.pack("!iQ", -1, LIMIT + 1), LIMIT + 1),
    (struct.pack("!iQ", -1, 2**64 - 1), 2**64 - 1),
]

# Bytes that may be dropped with a bad header: each looks like a frame, but for one detail.
JUNK = [
    b"",
    b"\x80",
    b"words of no meaning",
    b"\x80\x80\x80\x80\x80\x80",
    b"\0\0\0\x04\x80\x04N!",
    b"\0\0\0\x04\x81\x04N.",
    b"\0\0\0\x04\x80\x01N.",
    b"\0\0\0\x04\x80\x06N.",
    b"\0\0\0\x03\x80\x04.",
    struct.pack("!i", LIMIT + 1) + b"\x80\x04",
    b"\xff\xff\xff\xff\x80\x04",
]


@pytest.mark.parametrize(("header", "size"), BAD, ids=[str(size) for _, size in BAD])
@pytest.mark.parametrize("junk", JUNK)
def test_after_a_bad_header_the_next_frame_is_found(
    core: ModuleType, header: bytes, size: int, junk: bytes
) -> None:
    stream = frame(HI) + header + junk + frame(HI) + frame(b"x") + frame(HI)
    for chunk in range(1, len(stream) + 1):
        framer = core.Framer(LIMIT)
        assert feed(framer, stream, chunk) == [HI, HI, b"x", HI], f"in chunks of {chunk}"
        [(reason, sample)] = framer.faults()
        assert reason == f"a header announces {size} bytes, a frame has 0 to {LIMIT}"
        assert (header + junk).startswith(sample)
        assert sample.startswith(header)
        assert framer.pending == 0
        assert framer.faults() == []


def test_a_stray_byte_costs_no_frame(core: ModuleType) -> None:
    framer = core.Framer(LIMIT)
    assert framer.feed(b"\xff" + frame(HI)) == [HI]
    assert framer.faults() == [
        (f"a header announces {-0x1000000} bytes, a frame has 0 to {LIMIT}", b"\xff\0\0\0")
    ]


def test_each_invalid_range_is_one_fault(core: ModuleType) -> None:
    framer = core.Framer(LIMIT)
    stream = b"\xff\xff\xff\0junk" + frame(HI) + b"\xee\xee\xee\xee" + frame(HI)
    assert framer.feed(stream) == [HI, HI]
    assert [sample for _, sample in framer.faults()] == [b"\xff\xff\xff\0junk", b"\xee\xee\xee\xee"]


def test_a_sample_has_64_bytes_at_most(core: ModuleType) -> None:
    framer = core.Framer(LIMIT)
    framer.feed(b"\xff" * 200 + frame(HI))
    assert [sample for _, sample in framer.faults()] == [b"\xff" * 64]
    framer.feed(struct.pack("!i", 500) + b"y" * 200)
    framer.finish()
    assert [sample for _, sample in framer.faults()] == [struct.pack("!i", 500) + b"y" * 60]


def test_skipped_bytes_are_not_kept(core: ModuleType) -> None:
    framer = core.Framer(LIMIT)
    for _ in range(50):
        framer.feed(b"\xff" * 10_000)
        assert framer.pending < 6
    assert len(framer.faults()) == 1
    framer.finish()
    assert (framer.pending, framer.faults()) == (0, [])


def test_a_possible_frame_after_invalid_data_is_completed(core: ModuleType) -> None:
    framer = core.Framer(LIMIT)
    assert framer.feed(b"\xff\xff\xff\0" + frame(HI)[:-1]) == []
    assert framer.pending == len(frame(HI)) - 1
    assert framer.feed(frame(HI)[-1:]) == [HI]


def test_a_frame_inside_an_invalid_frame_is_found(core: ModuleType) -> None:
    hidden = struct.pack("!i", 40) + b"\x80\x04" + frame(HI) + b"z" * 60
    for chunk in range(1, len(hidden)):
        framer = core.Framer(LIMIT)
        assert feed(framer, b"\xff\xff\xff\0" + hidden + frame(HI), chunk)[0] == HI


@pytest.mark.parametrize(
    ("left", "reason"),
    [
        (b"\0", "1 bytes of an unfinished header"),
        (b"\xff\xff\xff\xff\0\0\0\0\0\0\0", "11 bytes of an unfinished header"),
        (b"\0\0\0\x05", "0 bytes of an unfinished frame of 5 bytes"),
        (b"\0\0\0\x05abcd", "4 bytes of an unfinished frame of 5 bytes"),
        (long_frame(b"abcd")[:-1], "3 bytes of an unfinished frame of 4 bytes"),
    ],
)
def test_an_unfinished_frame_is_a_fault_at_the_end(core: ModuleType, left: bytes, reason: str) -> None:
    framer = core.Framer(LIMIT)
    assert framer.feed(left) == []
    framer.finish()
    assert framer.pending == 0
    assert framer.faults() == [(f"{reason}; its writer is gone", left)]
    assert framer.feed(frame(HI)) == [HI]


def test_no_fault_at_the_end_after_whole_frames(core: ModuleType) -> None:
    framer = core.Framer()
    framer.feed(frame(HI))
    framer.finish()
    assert framer.faults() == []


def test_the_end_after_invalid_data_reports_only_a_possible_frame(core: ModuleType) -> None:
    framer = core.Framer(LIMIT)
    framer.feed(b"\xff\xff\xff\0" + frame(HI)[:-1])
    framer.faults()
    framer.finish()
    assert framer.faults() == [
        (
            f"{len(HI) - 1} bytes of an unfinished frame of {len(HI)} bytes; its writer is gone",
            frame(HI)[:-1],
        )
    ]
    assert framer.feed(frame(b"no pickle")) == [b"no pickle"], "the framer is not lost any more"


@pytest.mark.timeout(30)
def test_the_cost_does_not_grow_with_the_pending_bytes(core: ModuleType) -> None:
    # If each chunk copied or searched the whole tail, these would take minutes.
    framer = core.Framer()
    payload = b"\x80\x04" + b"\x80" * (core.LIMIT - 3) + b"."
    assert feed(framer, frame(payload), 1024) == [payload]
    assert feed(framer, b"\xff\xff\xff\0" + frame(payload), 1024) == [payload]
    assert feed(framer, b"\xff\xff\xff\0" + b"\0\0\0\x08\x80\x04!!" * 200_000 + frame(HI), 1024) == [HI]
