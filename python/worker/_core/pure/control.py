"""The frames, the pickles and the grammar of the control channel, in plain Python.

The stub of the native core documents the public names; the comments in this file give reasons.
"""

from __future__ import annotations

import math
import re
import struct
from typing import NamedTuple, final

from worker._core.messages import Command, Invalid, Opaque, Restart, Scale, Stop, Terminate
from worker.constants import RestartOrder

__all__ = ["LIMIT", "MAX_PENDING", "Fault", "Framer", "decode", "parse"]

LIMIT = 16 * 1024 * 1024
# The largest size of the unfinished frames of all senders together, bytes.
MAX_PENDING = 4 * LIMIT

# ------------------------------------------------------------------------------------- the grammar

_SCALE = "__SCALE__"
_STARTUP_FIRST = "STARTUP_FIRST"
_NUMBER = re.compile(r"[ \t-\r]*([+-]?)([0-9]+)[ \t-\r]*")
_SCALE_SHAPE = "__SCALE__ wants a colon and a whole number, as in '__SCALE__:4'"
_SCALE_RANGE = "__SCALE__ wants a number that fits in 64 bits"
# Far more than the processes of one server, and far fewer than fit into a message.
_NAMES = 10_000
_TOO_MANY = "a restart names at most 10,000 processes"
# The constructor of a record is slow. The most frequent class is made as `copy` does it.
_new = object.__new__
_set_names, _set_files, _set_order = (vars(Restart)[name].__set__ for name in Restart.__match_args__)


def parse(text: str) -> Command:
    # The verbs begin with an underscore. Names of processes hardly ever do.
    if text[:1] in ("", "_") and (verb := _verb(text)) is not None:
        return verb
    head, colon, rest = text.partition(":")
    if "," not in head:
        names: tuple[str, ...] = (head.strip(),)
    elif head.count(",") < _NAMES:
        names = tuple([name.strip() for name in head.split(",")])
    else:
        return Invalid(text, _TOO_MANY)
    restart = _new(Restart)
    _set_names(restart, None if "__ALL_PROCESSES__" in names else names)
    if rest and (rest == _STARTUP_FIRST or rest.endswith(":" + _STARTUP_FIRST)):
        _set_files(restart, rest.removesuffix(":" + _STARTUP_FIRST))
        _set_order(restart, RestartOrder.STARTUP_FIRST)
    else:
        _set_files(restart, rest if colon else None)
        _set_order(restart, RestartOrder.SHUTDOWN_FIRST)
    return restart


def _verb(text: str) -> Command | None:
    if not text:
        return Stop()
    if text == "__TERMINATE__":
        return Terminate()
    if text == "__TERMINATE_EARLY__":
        return Terminate(True)
    return _scale(text) if text.startswith(_SCALE) else None


def _scale(text: str) -> Scale | Invalid:
    colon, number = text[len(_SCALE) : len(_SCALE) + 1], text[len(_SCALE) + 1 :]
    match = _NUMBER.fullmatch(number)
    if colon != ":" or match is None:
        return Invalid(text, _SCALE_SHAPE)
    digits = match[2].lstrip("0") or "0"
    # The digits are counted first: int() refuses thousands of them.
    if len(digits) > 19 or not -(1 << 63) <= (wanted := int(match[1] + digits)) < 1 << 63:
        return Invalid(text, _SCALE_RANGE)
    return Scale(wanted)


# --------------------------------------------------------------------------------------- the pickle

_PROTO, _FRAME, _STOP, _NONE = 0x80, 0x95, 0x2E, 0x4E
_SIZED = {0x8C: 1, 0x58: 4, 0x8D: 8}  # SHORT_BINUNICODE, BINUNICODE, BINUNICODE8
_MEMO = {0x94: 1, 0x71: 2, 0x72: 5}  # MEMOIZE, BINPUT, LONG_BINPUT: the opcode and its argument
# The usual form of a text: \x80 4 \x95 <size of the rest> \x8c <length> text \x94, or X in place of \x8c.
_USUAL = struct.Struct("<3sQBB")
_USUAL_BEGIN, _USUAL_END = (b"\x80\x04\x95", b"\x80\x05\x95"), b"\x94."


class _OtherPickleError(Exception):
    """Not a pickled ``None`` or ``str``."""


def decode(payload: bytes) -> Command | Opaque:
    try:
        text = _unpickled(payload)
    except (_OtherPickleError, UnicodeDecodeError):
        return Opaque(payload)
    return Stop() if text is None else parse(text)


def _unpickled(payload: bytes) -> str | None:
    size = len(payload)
    if size >= 15 and payload.endswith(_USUAL_END):
        begin, framed, opcode, length = _USUAL.unpack_from(payload)
        if framed == size - 11 and begin in _USUAL_BEGIN:
            if opcode == 0x8C and length == size - 15:
                return str(payload[13:-2], "utf-8", "surrogatepass")
            if opcode == 0x58 and int.from_bytes(payload[12:16], "little") == size - 18:
                return str(payload[16:-2], "utf-8", "surrogatepass")
    if size < 4 or payload[0] != _PROTO or not 2 <= payload[1] <= 5 or payload[-1] != _STOP:
        raise _OtherPickleError
    at = 2
    if payload[at] == _FRAME:
        if int.from_bytes(payload[3:11], "little") != size - 11:
            raise _OtherPickleError
        at = 11
    opcode = payload[at]
    if opcode == _NONE:
        text, end = None, at + 1
    elif opcode in _SIZED:
        start = at + 1 + _SIZED[opcode]
        end = start + int.from_bytes(payload[at + 1 : start], "little")
        text = str(payload[start:end], "utf-8", "surrogatepass")
    else:
        raise _OtherPickleError
    if end < size - 1:
        end += _MEMO.get(payload[end], 0)
    if end != size - 1:
        raise _OtherPickleError
    return text


# ---------------------------------------------------------------------------------------- the frames

_SHORT, _LONG = struct.Struct("!i"), struct.Struct("!iQ")
_SHORTEST = 4  # b"\x80\x04N."
_PROBE = _SHORT.size + 2  # enough to recognise a plausible frame: its length and the begin of a pickle
_SAMPLE = 64


class Fault(NamedTuple):
    """Bytes that were dropped: the reason, and the first of them."""

    reason: str
    sample: bytes


@final
class Framer:
    """Bytes in, whole payloads out.

    While ``_out_of_sync``, a frame may begin at the start of the buffer. ``_skip`` bytes of a dropped frame
    are still to come.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        if limit < 1:
            raise ValueError(f"the limit of a frame must be positive, not {limit}")
        self._limit = limit
        self._buffer = bytearray()
        self._out_of_sync = False
        self._skip = 0
        self._faults: list[Fault] = []

    @property
    def pending(self) -> int:
        return len(self._buffer)

    @property
    def is_idle(self) -> bool:
        """Whether the next byte begins a frame."""
        return not (self._buffer or self._skip or self._out_of_sync)

    def feed(self, chunk: bytes) -> list[bytes]:
        items = self.cut(chunk)
        self._faults += [item for item in items if isinstance(item, Fault)]
        return [item for item in items if isinstance(item, bytes)]

    def faults(self) -> list[tuple[str, bytes]]:
        faults, self._faults = self._faults, []
        return [(fault.reason, fault.sample) for fault in faults]

    def finish(self) -> None:
        if (fault := self.abandon()) is not None:
            self._faults.append(fault)

    def cut(self, chunk: bytes, enough: float = math.inf) -> list[bytes | Fault]:
        """Return the payloads and faults that ``chunk`` completes, in order.

        After ``enough`` of them, the rest is left for the next call.
        """
        if self._skip:
            skipped = min(self._skip, len(chunk))
            self._skip -= skipped
            chunk = chunk[skipped:]
        kept = self._buffer
        if kept:
            kept += chunk
        data = kept or chunk
        items, done = self._cut(data, enough)
        if data is kept:
            del kept[:done]
        else:
            self._buffer += chunk[done:]
        return items

    def _cut(self, data: bytes | bytearray, enough: float) -> tuple[list[bytes | Fault], int]:
        """Return the complete payloads and faults in ``data``, and how many bytes they take."""
        items: list[bytes | Fault] = []
        at = 0
        if self._out_of_sync:
            at, self._out_of_sync = _search(data, at, self._limit)
        while not self._out_of_sync and len(items) < enough and (header := _header(data, at)) is not None:
            start, size = header
            if not 0 <= size <= self._limit:
                reason = f"a header announces {size} bytes, a frame has 0 to {self._limit}"
                found, self._out_of_sync = _search(data, at + 1, self._limit)
                # The bytes from `found` on may be a frame. The sample always shows the refused header.
                dropped = data[at : max(found, start)]
                items.append(Fault(reason, bytes(dropped[:_SAMPLE])))
                at = found
            elif start + size <= len(data):
                at = start + size
                items.append(bytes(memoryview(data)[start:at]))
            else:
                break
        return items, at

    def abandon(self) -> Fault | None:
        """Drop the unfinished frame. Bytes dropped while out of sync were reported before."""
        self._skip = 0
        out_of_sync, self._out_of_sync = self._out_of_sync, False
        return self._empty(out_of_sync, "its writer is gone")

    def skip(self) -> Fault | None:
        """Drop the unfinished frame, and the rest of it when it comes: there is no room."""
        out_of_sync, header = self._out_of_sync, _header(self._buffer, 0)
        if header is None or out_of_sync:
            # The end of the frame is unknown.
            self._out_of_sync = True
        else:
            self._skip = sum(header) - len(self._buffer)
        return self._empty(out_of_sync, f"unfinished frames may take {MAX_PENDING} bytes together")

    def _empty(self, out_of_sync: bool, why: str) -> Fault | None:
        data, self._buffer = self._buffer, bytearray()
        if not data or (out_of_sync and len(data) < _PROBE):
            return None
        sample = bytes(data[:_SAMPLE])
        if (header := _header(data, 0)) is None:
            return Fault(f"{len(data)} bytes of an unfinished header; {why}", sample)
        start, size = header
        have = len(data) - start
        return Fault(f"{have} bytes of an unfinished frame of {size} bytes; {why}", sample)


def _search(data: bytes | bytearray, at: int, limit: int) -> tuple[int, bool]:
    """Return the first place from ``at`` on where a frame may begin, and whether that is still uncertain."""
    while (mark := data.find(_PROTO, at + _SHORT.size)) >= 0:
        at = mark - _SHORT.size
        if at + _PROBE > len(data):
            return at, True
        (size,) = _SHORT.unpack_from(data, at)
        if 2 <= data[mark + 1] <= 5 and _SHORTEST <= size <= limit:
            if mark + size > len(data):
                return at, True
            if data[mark + size - 1] == _STOP:
                return at, False
        at += 1
    return max(at, len(data) - _SHORT.size), True


def _header(data: bytes | bytearray, at: int) -> tuple[int, int] | None:
    """Return begin and size of the payload of the frame at ``at``; ``None`` without a whole header."""
    if at + 4 > len(data):
        return None
    (size,) = _SHORT.unpack_from(data, at)
    if size != -1:
        return at + 4, size
    if at + 12 > len(data):
        return None
    return at + 12, _LONG.unpack_from(data, at)[1]
