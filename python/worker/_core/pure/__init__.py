"""The core in plain Python, for where the native one is missing.

It decodes, frames, waits and scans with the same results. It has no table: the state of the workers is then
kept by :mod:`worker._spawn.state_process`.
"""

from __future__ import annotations

from worker._core.pure.control import LIMIT, Framer, decode, parse
from worker._core.pure.monitor import Monitor
from worker._core.pure.parent_watch import ParentWatch
from worker._core.pure.scan import Scanner

__all__ = ["LIMIT", "PROFILE", "Framer", "Monitor", "ParentWatch", "Scanner", "decode", "parse"]

PROFILE = None
