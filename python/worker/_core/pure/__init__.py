"""The core in plain Python, used where the native one is missing.

It decodes, frames, waits and scans with the same results. It has no table: :mod:`worker._spawn.state_process`
then keeps the shared state.
"""

from __future__ import annotations

from worker._core.pure.control import LIMIT, Framer, decode, parse
from worker._core.pure.monitor import Monitor
from worker._core.pure.parent_watch import ParentWatch
from worker._core.pure.scan import Scanner

__all__ = ["LIMIT", "PROFILE", "Framer", "Monitor", "ParentWatch", "Scanner", "decode", "parse"]

PROFILE = None
