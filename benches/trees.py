"""Make trees of files to scan."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from time import sleep

# Files a directory, by default.
EACH = 20
# Directories a directory.
DIRECTORIES = 4
# The age at which a scanner trusts a directory's time of change, and a little more, seconds.
SETTLED = 2.2


class Trees:
    """Trees of empty files, each made once, and old enough to be at rest when it is handed out."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made: dict[Path, list[Path]] = {}

    def paths(self, files: int, each: int) -> list[Path]:
        """Yield the files of a tree of this many, this many in each directory."""
        root = self._folder / f"{files}-{each}"
        if root not in self._made:
            self._made[root] = list(_plant(root, files, each))
            os.sync()
            sleep(SETTLED)
        return self._made[root]

    def root(self, files: int, each: int) -> Path:
        """Return the directory above all of them."""
        return self.paths(files, each)[0].parent


def _plant(root: Path, files: int, each: int) -> Iterator[Path]:
    folders = [root]
    for number in range(-(-files // each)):
        if number:
            parent = folders[(number - 1) // DIRECTORIES]
            folders.append(parent / f"package_{number % DIRECTORIES}")
        folders[number].mkdir(parents=True)
        for name in range(min(each, files - number * each)):
            path = folders[number] / f"module_{name:02}.py"
            path.touch()
            yield path
