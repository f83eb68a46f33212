"""The patterns of files that the reloader ignores, in the syntax of ``.gitignore``."""

from __future__ import annotations

import re
from collections.abc import Iterable

from worker.settings.values import compile_patterns

__all__ = ["DEFAULTS", "rules"]

# An escaped character, or a class of characters: a "]" that comes first does not end the class.
_CLASS = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]")

DEFAULTS = (
    # Python and its tools.
    *("__pycache__", "*.py[co]", "*.egg-info", "*.dist-info", ".eggs", ".venv", "venv", ".tox", ".nox"),
    *(".mypy_cache", ".pytest_cache", ".ruff_cache", ".hypothesis", ".coverage", ".coverage.*"),
    # Other tools.
    *(".git", ".hg", ".svn", ".cache", ".idea", ".vscode", ".ipynb_checkpoints", "node_modules"),
    # Files that editors, sync tools and file systems make beside a file while it is edited or saved.
    *("*~", "*.sw[j-px]", "[#]*[#]", ".[#]*", "4913", "*___jb_tmp___", "*___jb_old___", ".goutputstream-*"),
    *("*.kate-swp", ".*.kak.*", "flycheck_*", "*.bak", "*.bck", "*.tmp", ".~lock.*", "._*", ".DS_Store"),
    *(".nfs*", ".fuse_hidden*"),
    # Output of a running application.
    *("*.log", "*.log.*", "*.out", "*.pid", "*.sock", "*.db", "*.db-*", "*.sqlite", "*.sqlite-*"),
    *("*.sqlite3", "*.sqlite3-*"),
)
"""The patterns that are always used; those of the setting ``reload_ignore`` come after them."""


def rules(patterns: Iterable[str]) -> list[tuple[str, bool]]:
    """Return patterns as rules for a :class:`worker._core.Scanner`: pairs of an expression and a verdict.

    Args:
        patterns (Iterable[str]): As in a ``.gitignore`` (https://git-scm.com/docs/gitignore).

    Raises:
        ValueError: One of them is not a valid pattern.
    """
    return [
        (_portable(pattern.regex.pattern), pattern.include)
        for pattern in compile_patterns(patterns)
        if pattern.regex is not None and pattern.include is not None
    ]


def _portable(expression: str) -> str:
    """Return an expression that both cores accept: without names of groups, and without nested sets."""

    def plain(found: re.Match[str]) -> str:
        text = found[0]
        if not text.startswith("["):
            return text
        return "[" + re.sub(r"\\.|[\[&~]|(?<=-)-", _escaped, text[1:-1]) + "]"

    return _CLASS.sub(plain, re.sub(r"\?P<\w+>", "?:", expression))


def _escaped(found: re.Match[str]) -> str:
    return found[0] if found[0].startswith("\\") else "\\" + found[0]
