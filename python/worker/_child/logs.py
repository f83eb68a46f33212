"""Sets up the log of a child as the installed Sanic does."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Any

__all__ = ["label_log", "setup_logging"]


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
