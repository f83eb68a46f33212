"""What the reloader does not watch: patterns, as ``.gitignore`` has them."""

from __future__ import annotations

import re
from collections.abc import Iterable

from worker.settings import compile_patterns

__all__ = ["DEFAULTS", "rules"]

# Something escaped, or a class of characters: what ends one does not if it comes first.
_CLASS = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]")

DEFAULTS = (
    # What Python and its tools keep.
    *("__pycache__", "*.py[co]", "*.egg-info", "*.dist-info", ".eggs", ".venv", "venv", ".tox", ".nox"),
    *(".mypy_cache", ".pytest_cache", ".ruff_cache", ".hypothesis", ".coverage", ".coverage.*"),
    # What others keep.
    *(".git", ".hg", ".svn", ".cache", ".idea", ".vscode", ".ipynb_checkpoints", "node_modules"),
    # What editors, sync tools and file systems put beside a file while it is edited or saved.
    *("*~", "*.sw[j-px]", "[#]*[#]", ".[#]*", "4913", "*___jb_tmp___", "*___jb_old___", ".goutputstream-*"),
    *("*.kate-swp", ".*.kak.*", "flycheck_*", "*.bak", "*.bck", "*.tmp", ".~lock.*", "._*", ".DS_Store"),
    *(".nfs*", ".fuse_hidden*"),
    # What a running application writes.
    *("*.log", "*.log.*", "*.out", "*.pid", "*.sock", "*.db", "*.db-*", "*.sqlite", "*.sqlite-*"),
    *("*.sqlite3", "*.sqlite3-*"),
)
"""What is ignored before the setting ``reload_ignore`` adds to it, or takes from it."""


def rules(patterns: Iterable[str]) -> list[tuple[str, bool]]:
    """Patterns as rules for a :class:`worker._core.Scanner`: regular expressions with their verdicts.

    Args:
        patterns (Iterable[str]): As in a ``.gitignore`` (https://git-scm.com/docs/gitignore).

    Raises:
        ValueError: One of them is no pattern.
    """
    return [
        (_portable(pattern.regex.pattern), pattern.include)
        for pattern in compile_patterns(patterns)
        if pattern.regex is not None and pattern.include is not None
    ]


def _portable(expression: str) -> str:
    """An expression as both cores read it: no names of groups, and in a class no sets that are nested."""

    def plain(found: re.Match[str]) -> str:
        text = found[0]
        if not text.startswith("["):
            return text
        return "[" + re.sub(r"\\.|[\[&~]|(?<=-)-", _escaped, text[1:-1]) + "]"

    return _CLASS.sub(plain, re.sub(r"\?P<\w+>", "?:", expression))


def _escaped(found: re.Match[str]) -> str:
    return found[0] if found[0].startswith("\\") else "\\" + found[0]
