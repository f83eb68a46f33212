"""Install Debian's systemd for ``tests/operations/test_systemd.py``, if it is missing; nothing is booted."""

from __future__ import annotations

from pathlib import Path

from debian import install

if not Path("/lib/systemd/systemd").exists():
    install("systemd", "systemd", "The tests in tests/operations/test_systemd.py are skipped.")
