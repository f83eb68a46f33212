"""Reads times in arguments of the command."""

from __future__ import annotations

from argparse import ArgumentTypeError

__all__ = ["seconds"]


def seconds(text: str, *, below: float = 1e9) -> float:
    """Read a number of seconds above 0.

    Args:
        text (str): The argument.
        below (float): A number that is too large. Defaults to 1e9.

    Raises:
        ArgumentTypeError: It is no such number.
    """
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 < number < below:
        raise ArgumentTypeError(f"cannot be {text!r}: it takes a number of seconds above 0")
    return number
