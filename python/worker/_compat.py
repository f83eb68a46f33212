"""Hides the differences between the supported releases of Sanic from the other modules."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar, cast

P = ParamSpec("P")
R = TypeVar("R")


def accept_newer_keywords(method: Callable[P, R]) -> Callable[P, R]:
    """Let a method that names a worker ``ident`` accept the keywords of releases from 24.12 on.

    In these, ``name`` is the worker's name, and ``ident`` is the short label before its log lines. The method
    itself receives the name as ``ident`` and the label, if there is one, as ``label``.
    """

    @wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        named = "name" in kwargs
        if "ident" in kwargs and (named or len(args) > 1):
            kwargs["label"] = kwargs.pop("ident")
        if named:
            kwargs["ident"] = kwargs.pop("name")
        return cast(Callable[..., Any], method)(*args, **kwargs)

    return cast(Callable[P, R], call)
