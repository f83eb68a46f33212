"""A module whose import takes until the test opens a pipe, the file that a variable names, for writing."""

from __future__ import annotations

import os

GATE = "BLOCKING_IMPORT"

if GATE in os.environ:
    open(os.environ[GATE]).close()
