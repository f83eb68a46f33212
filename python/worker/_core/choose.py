"""Chooses the core; the only module that imports either of them.

``WORKER_CORE`` in the environment chooses: ``auto`` (the default: the native core where it was
built, else the pure one), ``native`` or ``pure``. Both decode, frame, wait and scan with the same results;
the native one alone has a ``Table`` and ``Questions``.
"""

from __future__ import annotations

import os
from types import ModuleType
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from worker._native import LIMIT, Framer, Monitor, ParentWatch, Questions, Scanner, Table, decode, parse

__all__ = [
    "IS_NATIVE",
    "LIMIT",
    "CoreInfo",
    "Framer",
    "Monitor",
    "ParentWatch",
    "Questions",
    "Scanner",
    "Table",
    "core_info",
    "decode",
    "parse",
]

_VARIABLE = "WORKER_CORE"
_CHOICES = ("auto", "native", "pure")
_NATIVE = "worker._native"


class CoreInfo(NamedTuple):
    """The core in use.

    ``version`` is that of the installed distribution (``"unknown"`` for a source tree that is not
    installed). ``profile`` is that of the compiled native core, ``None`` for the pure one.
    """

    core: Literal["native", "pure"]
    version: str
    profile: Literal["release", "debug"] | None


def _choose() -> ModuleType:
    wanted = os.environ.get(_VARIABLE, "auto")
    if wanted not in _CHOICES:
        raise ImportError(f"{_VARIABLE}={wanted!r} is no core: choose one of {', '.join(_CHOICES)}")
    # Import statements: a tool that freezes a program reads only those, and runs no code.
    if wanted != "pure":
        try:
            # The native core imports it by name; a frozen program has only what static imports lead to.
            import worker._core.codec  # noqa: F401
            import worker._native as native

            return native
        except ModuleNotFoundError as exc:
            # An extension that exists and does not load is an error. Falling back would only hide it.
            if exc.name != _NATIVE:
                raise
            if wanted == "native":
                raise ImportError(
                    f"{_VARIABLE}=native, but {_NATIVE} was never built: install a wheel of this platform, "
                    f"run `maturin develop --release` in the source tree, or set {_VARIABLE}=pure",
                    name=_NATIVE,
                ) from None
    import worker._core.pure as pure

    return pure


_chosen = _choose()

IS_NATIVE: bool = _chosen.PROFILE is not None
"""Whether the native core was chosen."""

if not TYPE_CHECKING:
    LIMIT = _chosen.LIMIT
    Framer = _chosen.Framer
    ParentWatch = _chosen.ParentWatch
    Monitor = _chosen.Monitor
    Questions = getattr(_chosen, "Questions", None)
    Scanner = _chosen.Scanner
    Table = getattr(_chosen, "Table", None)
    decode = _chosen.decode
    parse = _chosen.parse


def core_info() -> CoreInfo:
    """Return the core that was chosen when this module was imported."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        installed = version("sanic-worker")
    except PackageNotFoundError:
        installed = "unknown"
    return CoreInfo("native" if IS_NATIVE else "pure", installed, _chosen.PROFILE)
