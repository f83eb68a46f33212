"""What differs between the supported releases of Sanic, and is no business of the rest."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import wraps
from importlib import import_module
from typing import Any, ParamSpec, TypeVar, cast

P = ParamSpec("P")
R = TypeVar("R")


def later_names(method: Callable[P, R]) -> Callable[P, R]:
    """Let a method that names a worker ``ident`` be called as releases from 24.12 on have it.

    There the worker's name is ``name``, and ``ident`` is the short label that stands before its log
    lines. What the method itself sees is ``ident`` (the name) and, where a label was given,
    ``label``.
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


def label_log() -> None:
    """Have the log lines of this process bear its label, where it was imported by another one."""
    formatters = sys.modules.get("sanic.logging.formatter")
    if formatters is not None:
        formatters.AutoFormatter.IDENT = os.environ.get("SANIC_WORKER_IDENTIFIER") or "Main "


def setup_logging(app: Any) -> None:
    """Configure the log output of a worker, where Sanic (24.12 and later) does it in the worker."""
    try:
        module = import_module("sanic.logging.setup")
    except ModuleNotFoundError:
        return
    module.setup_logging(app.state.is_debug, app.config.NO_COLOR, app.config.LOG_EXTRA)
