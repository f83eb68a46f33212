"""Patterns as in a .gitignore mean the same to both cores as to git."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pathspec import GitIgnoreSpec

from worker._reload.ignore import DEFAULTS, rules
from worker.settings import checked

NAMES = ["a", "b.py", "a[b", "a]b", "a&b", "a~b", "a-b", "a\\b", "a b", "a^b", "a!b", "#a#", "é", "new\nline"]
patterns = st.lists(st.text("ab[]!^-&~\\*?/.# é", min_size=1, max_size=8), min_size=1, max_size=3)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("ignored")
    for name in NAMES:
        (root / name).touch()
        (root / "below" / name).mkdir(parents=True)
        (root / "below" / name / "a").touch()
    return root


def seen(core: ModuleType, root: Path, given: list[str]) -> set[str]:
    """Return the files that a scanner finds with these patterns: all of them are recent."""
    scanner = core.Scanner([root], rules(given), since=0.0)
    return {os.path.relpath(path, root) for path in scanner.scan()}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(given=patterns)
def test_patterns_match_like_git(core: ModuleType, root: Path, given: list[str]) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            rules(given)
    except ValueError:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        spec = GitIgnoreSpec.from_lines(given)
    everything = {*NAMES, *(f"below/{name}/a" for name in NAMES)}
    # git does not look into an ignored directory.
    parents = {path: [*map(str, Path(path).parents)][:-1] for path in everything}
    wanted = {
        path
        for path, above in parents.items()
        if "\n" not in path
        and not spec.match_file(path)
        and not any(spec.match_file(f"{folder}/") for folder in above)
    }
    assert {path for path in seen(core, root, given) if "\n" not in path} == wanted


def test_default_patterns(core: ModuleType, root: Path) -> None:
    """Only the editor's pattern matches names like these."""
    everything = {*NAMES, *(f"below/{name}/a" for name in NAMES)}
    assert everything - seen(core, root, [*DEFAULTS]) == {"#a#", "below/#a#/a"}


@pytest.mark.parametrize(
    ("given", "patterns"),
    [
        ("", ()),
        (" a , b,", ("a", "b")),
        ("a,b\nc d\n", ("a,b", "c d")),
        ("\na\n", ("a",)),
        (["a,b", " c "], ("a,b", "c")),
        (("#comment", "!a"), ("#comment", "!a")),
    ],
)
def test_accepted_forms_of_the_setting(given: str | list[str], patterns: tuple[str, ...]) -> None:
    assert checked("reload_ignore", given, "a test") == patterns
