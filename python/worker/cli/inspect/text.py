"""Values as text for an operator; an unknown one is a dash."""

from __future__ import annotations

from datetime import datetime
from typing import Any

__all__ = ["UNKNOWN", "duration", "harmless", "one_line", "parse_time", "short_number", "size"]

UNKNOWN = "-"
# Seconds.
MINUTE, HOUR, DAY = 60, 3600, 86400


def one_line(value: Any) -> str:
    """Return text from a server on one line, without characters that could steer a terminal."""
    return harmless(" ".join(str(value).split()))


def harmless(text: str) -> str:
    """Return text from a server, its lines kept, without characters that could steer a terminal."""
    return "".join(char if char.isprintable() or char in "\n\t" else ascii(char)[1:-1] for char in text)


def duration(seconds: float | None) -> str:
    """Return a time in at most six characters: ``3 ms``, ``1.2 s``, ``4m05s``, ``3h04m``, ``12d03h``."""
    if seconds is None:
        return UNKNOWN
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < MINUTE:
        return f"{whole} s"
    if whole < HOUR:
        return f"{whole // MINUTE}m{whole % MINUTE:02}s"
    if whole < DAY:
        return f"{whole // HOUR}h{whole % HOUR // MINUTE:02}m"
    return f"{whole // DAY}d{whole % DAY // HOUR:02}h"


def size(count: float | None) -> str:
    """Return a number of bytes: ``512 B``, ``23.4 MiB``."""
    if count is None:
        return UNKNOWN
    units = ["B", "KiB", "MiB", "GiB", "TiB"]
    while count >= 1000 and len(units) > 1:
        count /= 1024
        del units[0]
    return f"{count:.0f} {units[0]}" if units[0] == "B" or count >= 100 else f"{count:.1f} {units[0]}"


def short_number(value: float | None) -> str:
    """Return a number in at most five characters: ``0.3``, ``17``, ``9999``, ``12.3k``, ``4.5M``."""
    if value is None:
        return UNKNOWN
    if value < 9.95 and value != int(value):
        return f"{value:.1f}"
    if value < 9999.5:
        return f"{value:.0f}"
    units = ["k", "M", "G"]
    value /= 1000
    while value >= 999.5 and len(units) > 1:
        value /= 1000
        del units[0]
    return f"{value:.1f}{units[0]}" if value < 99.95 else f"{value:.0f}{units[0]}"


def parse_time(text: str) -> datetime:
    """Return a time in ISO 8601 with a zone; one without a zone is local.

    Raises:
        ValueError: It is no such time.
    """
    # Python 3.10 does not know the Z.
    return datetime.fromisoformat(text[:-1] + "+00:00" if text[-1:] in "Zz" else text).astimezone()
