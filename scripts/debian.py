"""Install a package of Debian for tests that need it. Without root or ``apt-get`` say so; never fail."""

from __future__ import annotations

import os
import shutil
import subprocess

__all__ = ["install"]


def install(name: str, package: str, skipped: str) -> None:
    """Install a package that is missing.

    Args:
        name (str): The name of the missing program.
        package (str): The package that has it.
        skipped (str): A sentence about the tests that are skipped without it.
    """
    apt = shutil.which("apt-get")
    if apt is None or os.geteuid() != 0:
        print(f"{name} is missing, and is installed only by root with apt-get. {skipped}")
        return
    print(f"{name} is missing: installing Debian's package {package} with apt-get", flush=True)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    command = [apt, "install", "--quiet", "--yes", "--no-install-recommends", package]
    for one in ([apt, "update", "--quiet"], command):
        code = subprocess.run(one, check=False, env=environment, stdout=subprocess.DEVNULL).returncode
        if code != 0:
            print(f"{' '.join(one)} ended with {code}. {skipped}")
            break
