"""The event log of the server: one line an event, and new ones as they come."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from http.client import HTTPException
from threading import Event as Pause
from time import monotonic
from typing import Any

from worker.cli.inspect.client import Client
from worker.cli.inspect.exits import CommandError, ExitCode
from worker.cli.inspect.operations import PAUSE, RECONNECT
from worker.cli.inspect.text import one_line, parse_time

__all__ = ["Since", "follow", "line", "parse_since", "read", "short_line", "style"]

AGO = re.compile(r"(\d+(?:\.\d+)?)([smhd])")
UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
STYLES = {"error": "red", "warning": "yellow", "debug": "dim"}

Event = dict[str, Any]
# The events after this one, by number, or from this time on.
Since = int | datetime


def parse_since(text: str) -> Since:
    """Return the start of a range of events: ``10m`` ago, after a number, or from a time on.

    Raises:
        ValueError: It is none of these.
    """
    if text.isascii() and text.isdigit():
        return int(text)
    try:
        if ago := AGO.fullmatch(text):
            return datetime.now(timezone.utc) - timedelta(**{UNITS[ago[2]]: float(ago[1])})
        return parse_time(text)
    except OverflowError:
        raise ValueError(f"{text} is before the first year") from None


def read(client: Client, since: Since, limit: int | None = None) -> dict[str, Any]:
    """Return ``{"events": [...], "last": <number>}``, the oldest event first.

    Args:
        client (Client): Sends the request.
        since (Since): The start of the range.
        limit (int | None): The largest number of events, the last ones; ``None`` for all.
    """
    number = since if isinstance(since, int) else 0
    found: dict[str, Any] = client.get(f"/events?since={number}")
    if isinstance(since, datetime):
        found["events"] = [event for event in found["events"] if parse_time(event["time"]) >= since]
    if limit is not None:
        found["events"] = found["events"][max(0, len(found["events"]) - limit) :]
    return found


def follow(client: Client, since: Since, limit: int | None = None) -> Iterator[Event]:
    """Yield events, and new ones as they come, over a restart of the inspector too.

    Raises:
        CommandError: The inspector has not answered for 10 s, or it refuses the request.
    """
    found = read(client, since, limit)
    yield from found["events"]
    last: int = found["last"]
    pause, deadline = Pause(), monotonic() + RECONNECT
    while True:
        try:
            stream = client.stream(f"/events?since={last}")
            try:
                # Another server may listen there now, whose events begin anew. Asked after the stream was
                # opened: a server that comes later ends it.
                if client.get("/events?limit=1")["last"] < last:
                    last = 0
                    continue
                for message in stream:
                    last = message.data["seq"]
                    yield message.data
            except (OSError, HTTPException):
                # The inspector was stopped; its event log is kept.
                pass
            finally:
                # A stream that was cut may end like one that is complete, long after its last event.
                deadline = monotonic() + RECONNECT
                stream.release()
        except CommandError as error:
            if error.code is not ExitCode.UNREACHABLE or monotonic() > deadline:
                raise
        pause.wait(PAUSE)


def line(event: Event) -> str:
    """Return an event as one line: number, local time, level, text."""
    date = parse_time(event["time"]).strftime("%Y-%m-%d")
    return f"{event['seq']:>5}  {date} {short_line(event)}"


def short_line(event: Event) -> str:
    """Return an event as one line without its number and date."""
    time = parse_time(event["time"]).strftime("%H:%M:%S")
    return f"{time}  {one_line(event['level']):<7}  {one_line(event['text'])}"


def style(event: Event) -> str:
    """Return the style of an event in a terminal, by its level."""
    return STYLES.get(event.get("level", ""), "")
