"""Install Debian's Chromium for the tests in ``tests/browser``, if it is missing.

That takes root and ``apt-get``. Otherwise the script says so, and these tests are skipped; it never fails.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from support.chromium import path  # type: ignore[import-not-found]

PACKAGE = "chromium"
SKIPPED = "The tests in tests/browser are skipped."


def main() -> int:
    """Install it; return the exit code."""
    if path():
        return 0
    apt = shutil.which("apt-get")
    if apt is None or os.geteuid() != 0:
        print(f"Chromium is missing, and is installed only by root with apt-get. {SKIPPED}")
        return 0
    print(f"Chromium is missing: installing Debian's package {PACKAGE} with apt-get", flush=True)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    install = [apt, "install", "--quiet", "--yes", "--no-install-recommends", PACKAGE]
    for command in ([apt, "update", "--quiet"], install):
        code = subprocess.run(command, check=False, env=environment, stdout=subprocess.DEVNULL).returncode
        if code != 0:
            print(f"{' '.join(command)} ended with {code}. {SKIPPED}")
            break
    return 0


if __name__ == "__main__":
    sys.exit(main())
