"""Hides the differences between the supported releases of Sanic from the other modules."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import wraps
from importlib import import_module
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


def label_log() -> None:
    """Let the log lines of this process begin with its label, if another process imported the formatter."""
    formatters = sys.modules.get("sanic.logging.formatter")
    if formatters is not None:
        formatters.AutoFormatter.IDENT = os.environ.get("SANIC_WORKER_IDENTIFIER") or "Main "


def setup_logging(app: Any) -> None:
    """Configure the log output of a worker, as Sanic 24.12 and later do."""
    try:
        module = import_module("sanic.logging.setup")
    except ModuleNotFoundError:
        return
    module.setup_logging(app.state.is_debug, app.config.NO_COLOR, app.config.LOG_EXTRA)
