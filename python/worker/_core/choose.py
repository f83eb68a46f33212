"""The boundary: which core does the work, and the one place that imports either of them.

``WORKER_CORE`` in the environment chooses: ``auto`` (the default: the native core where it was
built, else the pure one), ``native`` or ``pure``. Both decode, frame, wait and scan with the same results;
the native one alone has a ``Table``.
"""

from __future__ import annotations

import os
from types import ModuleType
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from worker._native import LIMIT, Framer, Lifeline, Monitor, Scanner, Table, decode, parse

__all__ = [
    "IS_NATIVE",
    "LIMIT",
    "CoreInfo",
    "Framer",
    "Lifeline",
    "Monitor",
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
    """Which core is at work.

    ``version`` is that of the installed distribution (``"unknown"`` for a source tree that is not
    installed), ``profile`` how the native core was compiled, ``None`` for the pure one.
    """

    core: Literal["native", "pure"]
    version: str
    profile: Literal["release", "debug"] | None


def _choose() -> ModuleType:
    wanted = os.environ.get(_VARIABLE, "auto")
    if wanted not in _CHOICES:
        raise ImportError(f"{_VARIABLE}={wanted!r} is no core: choose one of {', '.join(_CHOICES)}")
    # Statements, as what freezes a program looks for those, and runs nothing.
    if wanted != "pure":
        try:
            # The native core imports it by name; a frozen program has only what static imports lead to.
            import worker._core.codec  # noqa: F401
            import worker._native as native

            return native
        except ModuleNotFoundError as exc:
            # An extension that is there and does not load is a fault to be seen, not a reason to be slow.
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
    Lifeline = _chosen.Lifeline
    Monitor = _chosen.Monitor
    Scanner = _chosen.Scanner
    Table = getattr(_chosen, "Table", None)
    decode = _chosen.decode
    parse = _chosen.parse


def core_info() -> CoreInfo:
    """Tell which core was chosen when this module was imported."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        installed = version("sanic-worker")
    except PackageNotFoundError:
        installed = "unknown"
    return CoreInfo("native" if IS_NATIVE else "pure", installed, _chosen.PROFILE)
