"""Messages that the main process must survive, by name."""

from __future__ import annotations

from typing import Any

from .journal import note


def nothing() -> None:
    """Do nothing: the function of a managed process."""
    note("nothing")


MESSAGES: dict[str, Any] = {
    "None": None,
    "empty text": "",
    "zero": 0,
    "empty list": [],
    "scale to zero": "__SCALE__:0",
    "scale below zero": "__SCALE__:-1",
    "scale to text": "__SCALE__:abc",
    "scale to nothing": "__SCALE__",
    "scale over the ceiling": "__SCALE__:1000000",
    "five": ("Five", nothing, {}, False, None),
    "manage without anything": (None,) * 8,
    "a number": 7,
}
