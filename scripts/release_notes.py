"""Print the notes of a release, and refuse a tag that does not fit the version.

``release_notes.py TAG``: the tag is ``v`` and the version in ``Cargo.toml``, and ``CHANGELOG.md`` has a
section of that version. The section is printed without its heading.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def version(manifest: str) -> str:
    """Return the version of the package, from the text of ``Cargo.toml``."""
    (first, *_) = re.findall(r'^version = "(.*)"$', manifest, re.MULTILINE)
    return str(first)


def notes(changelog: str, release: str) -> str:
    """Return the section of a release, from the text of ``CHANGELOG.md``; empty if there is none."""
    for section in re.split(r"^## ", changelog, flags=re.MULTILINE):
        heading, _, text = section.partition("\n")
        if heading.startswith(f"[{release}]"):
            # Link definitions end a changelog, and so its last section.
            return re.sub(r"^\[[^]]+\]: \S+$", "", text, flags=re.MULTILINE).strip()
    return ""


def main() -> int:
    """Check the tag in ``sys.argv[1]``; print its notes; return the exit code."""
    tag = sys.argv[1]
    release = version((ROOT / "Cargo.toml").read_text())
    if tag != f"v{release}":
        raise SystemExit(f"the tag {tag} does not fit version {release} of Cargo.toml: expected v{release}")
    text = notes((ROOT / "CHANGELOG.md").read_text(), release)
    if not text:
        raise SystemExit(f"CHANGELOG.md has no text under '## [{release}]': move that of Unreleased there")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
