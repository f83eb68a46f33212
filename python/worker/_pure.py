"""The core in plain Python, for where the native one is missing.

It decodes, frames, waits and scans with the same results. It has no table: :mod:`worker.state_process` keeps
the state of the workers then.
"""

from __future__ import annotations

from worker._pure_lifeline import Lifeline
from worker._pure_messages import LIMIT, Framer, decode, parse
from worker._pure_monitor import Monitor
from worker._pure_scan import Scanner

__all__ = ["LIMIT", "PROFILE", "Framer", "Lifeline", "Monitor", "Scanner", "decode", "parse"]

PROFILE = None
