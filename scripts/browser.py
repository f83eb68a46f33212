"""Install Debian's Chromium for the tests in ``tests/browser``, if it is missing.

That takes root and ``apt-get``. Otherwise the script says so, and these tests are skipped; it never fails.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from debian import install
from support.chromium import path  # type: ignore[import-not-found]

if not path():
    install("Chromium", "chromium", "The tests in tests/browser are skipped.")
