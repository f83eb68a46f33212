"""``decode`` decodes some pickles without executing them."""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable, Iterator
from io import BytesIO
from multiprocessing.reduction import ForkingPickler
from types import ModuleType

import pytest

from worker._core.messages import Opaque, Stop


def by_c(value: object, protocol: int) -> bytes:
    return pickle.dumps(value, protocol)


def by_python(value: object, protocol: int) -> bytes:
    buffer = BytesIO()
    pickle._Pickler(buffer, protocol).dump(value)  # type: ignore[attr-defined]
    return buffer.getvalue()


def by_forking_pickler(value: object, protocol: int) -> bytes:
    return bytes(ForkingPickler.dumps(value, protocol))


def loaded(payload: bytes) -> object:
    """Unpickle in Python, because a large index does not blow up the memo there."""
    return pickle._Unpickler(BytesIO(payload)).load()  # type: ignore[attr-defined]


PICKLERS = [by_c, by_python, by_forking_pickler]
TEXTS = [
    "",
    "a",
    "Sanic-Server-0-0:",
    "__ALL_PROCESSES__:/a b.py:STARTUP_FIRST",
    "__SCALE__:3",
    "\u00fc\u20ac\U0001f600",
    "\ud800",
    "\udcff/\ud83d\ude00",
    "x" * 255,
    "x" * 256,
    "\u20ac" * 100_000,
]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("pickler", PICKLERS)
@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_texts_are_decoded(core: ModuleType, text: str, pickler: Callable[..., bytes], protocol: int) -> None:
    assert core.decode(pickler(text, protocol)) == core.parse(text)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("pickler", PICKLERS)
def test_none_is_a_stop(core: ModuleType, pickler: Callable[..., bytes], protocol: int) -> None:
    assert core.decode(pickler(None, protocol)) == Stop()


class Text(str):
    """A ``str`` with an attribute of its own."""

    __slots__ = ()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize(
    "value",
    [0, False, b"a", (), [], {}, 1.5, ("a",), ["a"], Text("a"), ("i", print, {}, False, None, True, True, 1)],
)
def test_other_values_are_left_to_pickle(core: ModuleType, value: object, protocol: int) -> None:
    payload = by_c(value, protocol)
    decoded = core.decode(payload)
    assert decoded == Opaque(payload)
    assert decoded.payload is payload


@pytest.mark.parametrize("protocol", [0, 1])
@pytest.mark.parametrize("value", [None, "a"])
def test_old_protocols_are_left_to_pickle(core: ModuleType, value: object, protocol: int) -> None:
    payload = by_c(value, protocol)
    assert core.decode(payload) == Opaque(payload)


def forms(text: bytes) -> Iterator[bytes]:
    """Yield every form that the pickle of a text can have."""
    values = [b"X" + struct.pack("<I", len(text)) + text, b"\x8d" + struct.pack("<Q", len(text)) + text]
    if len(text) < 256:
        values.append(b"\x8c" + bytes([len(text)]) + text)
    for value in values:
        for memo in (b"", b"\x94", b"q\x00", b"q\xff", b"r\x00\x01\x00\x00", b"r...."):
            body = value + memo + b"."
            for version in (2, 3, 4, 5):
                yield bytes([0x80, version]) + body
                yield bytes([0x80, version, 0x95]) + struct.pack("<Q", len(body)) + body


def test_every_pickled_form_of_a_text_is_decoded(core: ModuleType) -> None:
    for text in ("", "a:", "\u20ac\ud800", "y" * 300):
        for payload in forms(text.encode("utf-8", "surrogatepass")):
            assert loaded(payload) == text
            assert core.decode(payload) == core.parse(text), payload


def test_incomplete_and_trailing_data_are_left_to_pickle(core: ModuleType) -> None:
    for payload in forms(b"name:"):
        for cut in range(len(payload)):
            assert core.decode(payload[:cut]) == Opaque(payload[:cut])
        for tail in (b".", b"\0", b"N.", payload):
            assert core.decode(payload + tail) == Opaque(payload + tail)


def test_decoded_texts_equal_those_of_pickle(core: ModuleType) -> None:
    understood = 0
    for payload in forms("n\u20ac:".encode()):
        for at in range(len(payload)):
            for byte in (0, 1, 4, 5, 6, 0x2E, 0x4E, 0x58, 0x71, 0x72, 0x8C, 0x8D, 0x94, 0x95, 0xFF):
                changed = payload[:at] + bytes([byte]) + payload[at + 1 :]
                decoded = core.decode(changed)
                if type(decoded) is not Opaque:
                    assert decoded == core.parse(loaded(changed)), changed
                    understood += 1
    assert understood > 1000


@pytest.mark.parametrize(
    "text", [b"\xff", b"\xc0\x80", b"\xe2\x82", b"\xed\xa0", b"\xf4\x90\x80\x80", b"a\x80"]
)
def test_invalid_utf8_is_left_to_pickle(core: ModuleType, text: bytes) -> None:
    for payload in forms(text):
        assert core.decode(payload) == Opaque(payload)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b".",
        b"\x80",
        b"\x80\x04",
        b"\x80\x04.",
        b"N.",
        b"\x80\x01N.",
        b"\x80\x06N.",
        b"\x80\x04\x80\x04N.",
        b"\x80\x04NN.",
        b"\x80\x04\x94N.",
        b"\x80\x04\x95\x02\0\0\0\0\0\0\0\x95\x02\0\0\0\0\0\0\0N.",
        b"\x80\x04\x95\x01\0\0\0\0\0\0\0N.",
        b"\x80\x04\x95\x03\0\0\0\0\0\0\0N.",
        b"\x80\x04\x95\x02\0\0\0\0\0\0\x80N.",
        b"\x80\x04\x95" + b"." * 8,
        b"\x80\x04X\xff\xff\xff\xffa.",
        b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\xffa.",
        b"\x80\x04\x8c\x01a\x94\x94.",
        b"\x80\x04\x8c\x01aq.",
        b"\x80\x04\x8c\x01a0.",
        b"\x80\x04\x8c\x02.",
        b"cos\nsystem\n(S'true'\ntR.",
    ],
)
def test_malformed_pickles_are_left_to_pickle(core: ModuleType, payload: bytes) -> None:
    assert core.decode(payload) == Opaque(payload)


def test_none_may_be_framed_and_memoized(core: ModuleType) -> None:
    for payload in (b"\x80\x05\x95\x02\0\0\0\0\0\0\0N.", b"\x80\x02N\x94.", b"\x80\x02Nq\0."):
        assert loaded(payload) is None
        assert core.decode(payload) == Stop()


def test_the_payload_is_not_shown(core: ModuleType) -> None:
    assert "secret" not in repr(core.decode(by_c(b"secret", 4)))
