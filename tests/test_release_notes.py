"""A release has the version of the package and a section of the changelog, or is refused."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "scripts" / "release_notes.py"
MANIFEST = '[package]\nname = "x"\nversion = "1.2.0"\n\n[dependencies]\nother = { version = "3" }\n'
NOTES = "### Added\n\n- This,\n[linked](https://example.org/).\n"
CHANGELOG = f"""# Changelog

## [Unreleased]

## [1.2.0] - 2026-12-01

{NOTES}
## [1.1.0] - 2026-11-01

- That.

[1.2.0]: https://example.org/
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / "scripts").mkdir()
    shutil.copy(SCRIPT, tmp_path / "scripts")
    (tmp_path / "Cargo.toml").write_text(MANIFEST)
    (tmp_path / "CHANGELOG.md").write_text(CHANGELOG)
    return tmp_path


def run(checkout: Path, tag: str) -> subprocess.CompletedProcess[str]:
    script = checkout / "scripts" / SCRIPT.name
    return subprocess.run([sys.executable, script, tag], capture_output=True, text=True)


def test_the_notes_are_the_section_of_the_version(checkout: Path) -> None:
    done = run(checkout, "v1.2.0")
    assert (done.returncode, done.stdout, done.stderr) == (0, NOTES, "")


def test_the_last_section_ends_before_the_link_definitions(checkout: Path) -> None:
    (checkout / "Cargo.toml").write_text(MANIFEST.replace("1.2.0", "1.1.0"))
    assert run(checkout, "v1.1.0").stdout == "- That.\n"


@pytest.mark.parametrize("tag", ["1.2.0", "v1.1.0", "v1.2", "v1.2.0rc1"])
def test_a_tag_of_another_version_is_refused(checkout: Path, tag: str) -> None:
    done = run(checkout, tag)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"the tag {tag} does not fit version 1.2.0 of Cargo.toml: expected v1.2.0\n"


@pytest.mark.parametrize("changed", [("[1.2.0] -", "[1x2.0] -"), (NOTES, "")])
def test_a_version_without_notes_is_refused(checkout: Path, changed: tuple[str, str]) -> None:
    (checkout / "CHANGELOG.md").write_text(CHANGELOG.replace(*changed))
    done = run(checkout, "v1.2.0")
    assert (done.returncode, done.stdout) == (1, "")
    assert "CHANGELOG.md has no text under '## [1.2.0]'" in done.stderr
