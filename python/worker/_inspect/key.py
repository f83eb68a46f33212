"""Finds the key of the inspector as the operator wrote it."""

from __future__ import annotations

from os import environ
from typing import Any

__all__ = ["key_text"]


def key_text(given: Any) -> str:
    """Return the key as text; empty for none.

    Sanic converts what it reads from the environment: ``0123456`` becomes 123456, ``off`` becomes ``False``.
    The text itself counts then.

    Args:
        given (Any): The value of Sanic's setting ``INSPECTOR_API_KEY``.
    """
    is_number = isinstance(given, (int, float))
    if is_number and (text := environ.get("SANIC_INSPECTOR_API_KEY")):
        return text
    # A number that the application sets is a key, also 0.
    return str(given) if given or (is_number and given is not False) else ""
