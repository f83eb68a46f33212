"""Install Debian's Chromium, and a font of usual width, for the tests in ``tests/browser``.

If one is missing, that takes root and ``apt-get``. Otherwise the script says so, and the tests that need it
are skipped; it never fails.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from debian import install
from support.chromium import has_font, path  # type: ignore[import-not-found]

if not path():
    install("Chromium", "chromium", "The tests in tests/browser are skipped.")
if not has_font():
    install("Liberation Sans", "fonts-liberation", "The test whether all workers fit on a screen is skipped.")
