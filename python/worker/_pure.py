"""The core in plain Python: the reference that the native core is held to, and its stand-in."""

from __future__ import annotations

from worker._pure_lifeline import Lifeline
from worker._pure_messages import LIMIT, Framer, decode, parse
from worker._pure_monitor import Monitor
from worker._pure_scan import Scanner
from worker._pure_table import Table

__all__ = ["LIMIT", "PROFILE", "Framer", "Lifeline", "Monitor", "Scanner", "Table", "decode", "parse"]

PROFILE = None
