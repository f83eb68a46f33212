"""Checks the arguments of the built-in actions. Each message names the value and those that are allowed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from sanic.exceptions import BadRequest

from worker.constants import MAIN_NAME, NAME_LIMIT, WORKER_PREFIX, excerpt, listed, prefixed

__all__ = ["names", "num_servers", "order", "replicas"]

State = Mapping[str, Mapping[str, Any]]

# The manager's own processes, which no restart may name.
OWN = frozenset(prefixed(WORKER_PREFIX, f"{ident}-0") for ident in ("Inspector", "Reloader", "Health"))


def order(zero_downtime: Any) -> str:
    """Return the end of the command of a restart.

    Raises:
        BadRequest: ``zero_downtime`` is no boolean.
    """
    if not isinstance(zero_downtime, bool):
        raise BadRequest(f"zero_downtime must be true or false, not {_shown(zero_downtime)}")
    return ":STARTUP_FIRST" if zero_downtime else ""


def names(value: Any, state: State) -> list[str]:
    """Return the names of workers, each once, from a list or from text with commas.

    Raises:
        BadRequest: It is neither, or a worker is unknown or cannot be restarted.
    """
    # These characters end a name in the command.
    known = [name for name in state if name not in (MAIN_NAME, *OWN) and {*":,"}.isdisjoint(name)]
    found = [name.strip() for name in value.split(",")] if isinstance(value, str) else value
    if not isinstance(found, (list, tuple)) or not found:
        raise BadRequest(f"names must be a list of names, not {_shown(value)}; workers: {listed(known)}")
    for name in found:
        if name not in known:
            fault = "a process that no restart may name" if name in [*OWN] else "an unknown worker"
            raise BadRequest(f"names has {fault}: {_shown(name)}; workers: {listed(known)}")
    return [*dict.fromkeys(found)]


def replicas(value: Any, least: int, most: int, setting: str, current: Callable[[], int]) -> int:
    """Return the number of servers that a scaling asks for. 0 and an empty value stand for 1.

    Args:
        value (Any): The number, also as text or as a whole float; or, as text with a sign, the change of it.
        least (int): The smallest number that is allowed.
        most (int): The largest one.
        setting (str): The setting that limits it.
        current (Callable): Returns the present number, if it is needed.

    Raises:
        BadRequest: It is no such number, or out of range.
    """
    number = None if value else 1
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if value and isinstance(value, (int, str)) and not isinstance(value, bool):
        with suppress(ValueError):
            number = int(value)
            if isinstance(value, str) and value.strip()[0] in "+-":
                number += current()
            elif number == 0:
                number = 1
    if number is None or not least <= number <= most:
        raise BadRequest(
            f"replicas must be a whole number from {least} on, at most {most} ({setting}), or a change such "
            f"as '+1', not {_shown(value)}"
        )
    return number


def num_servers(state: State) -> int:
    """Return the number of servers that are to run."""
    return sum(entry.get("server") is True and entry.get("phase") != "stopping" for entry in state.values())


def _shown(value: Any) -> str:
    return excerpt(value, NAME_LIMIT, quoted=True)
