"""The boundary to the core: the native one in Rust, or its fallback in plain Python."""

from worker._core.choose import (
    IS_NATIVE,
    LIMIT,
    CoreInfo,
    Framer,
    Monitor,
    ParentWatch,
    Questions,
    Scanner,
    Table,
    core_info,
    decode,
    parse,
)

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
