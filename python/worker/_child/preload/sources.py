"""Keeps the source code of the methods that Sanic rewrites when a server starts."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from sanic.touchup.schemes import base
from sanic.touchup.service import TouchUp

__all__ = ["keep"]


def keep() -> None:
    """Read these sources now, for the children.

    A child would read and tokenize the files, which is a quarter of its start. After an update of Sanic, they
    would not belong to the code that it was forked with.
    """
    module: Any = base
    read: Callable[[Any], str] = module.getsource
    kept: dict[Any, str] = {}
    for owner, name in TouchUp._registry:
        method = getattr(owner, name)
        with suppress(OSError):
            kept[method] = read(method)

    def source(method: Any) -> str:
        return kept[method] if method in kept else read(method)

    module.getsource = source
