"""The name of the command in its messages."""

from __future__ import annotations

__all__ = ["PROGRAM"]

PROGRAM = "sanic-worker"
