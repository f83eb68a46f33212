"""Shows the stacks of a process, also of one that is stuck."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from sanic.exceptions import BadRequest, NotFound

from worker._inspect.responses import read_state
from worker._state import schema
from worker._system.stacks import STEP, Collection
from worker.constants import NAME_LIMIT, excerpt, listed

__all__ = ["collect"]


async def collect(worker_state: Mapping[str, Any], name: Any) -> dict[str, Any]:
    """Return the stacks of a process, without its help if need be; the main process is not asked.

    Args:
        worker_state (Mapping[str, Any]): The state of all processes, name to entry.
        name (Any): The name of the process.

    Returns:
        dict[str, Any]: ``name``, ``pid``, ``way`` (``interpreter``, ``faulthandler`` or ``kernel``),
            ``debugger`` (``None`` without one) and ``text``.

    Raises:
        BadRequest: The name is no text.
        NotFound: There is no process of this name.
    """
    if not isinstance(name, str):
        raise BadRequest(f"name must be the name of a process, not {excerpt(name, NAME_LIMIT, quoted=True)}")
    entries = read_state(worker_state)
    if name not in entries:
        shown = excerpt(name, NAME_LIMIT, quoted=True)
        raise NotFound(f"name has an unknown process: {shown}; processes: {listed([*entries])}")
    pid = entries[name].get(schema.OWNER)
    found = await _stacks(worker_state, name, pid) if type(pid) is int and pid > 0 else None
    if found is None or not found.text:
        raise NotFound(f"{excerpt(name, NAME_LIMIT)} has no process at present")
    return {
        "name": name,
        "pid": pid,
        "way": found.way,
        "debugger": found.debugger or None,
        "text": found.text,
    }


async def _stacks(state: Any, name: str, pid: int) -> Any:
    collection = Collection(state, name, pid)
    # A stuck process sets no event.
    while (found := collection.step()) is None:  # noqa: ASYNC110
        await asyncio.sleep(STEP)
    return found
