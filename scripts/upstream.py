"""Run the tests that the supported lines of Sanic have for their own manager on this package.

``upstream.py [--stock] [--release VERSION] [-- pytest arguments]``: with ``--stock`` they run on Sanic's own
manager, to see its results.

The sdists are fetched once into ``.cache/upstream`` and nothing of them is kept in the repository. Their
tests run in place, once with each core. ``tests/upstream/plugin.py`` puts the package's modules in place of
Sanic's, and lists the tests that are not meant to pass.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from environments import DEPENDENCIES, INTERPRETER, ROOT, Environment, cores

# The latest release of each line when it was added, and the hash of its sdist.
RELEASES = {
    "23.12.2": "4d909aa8a1cb39b0c42a5ec9fe6eb128013cc822bcf4c554326304b9ac427117",
    "24.12.0": "09c23aa917616c1e60e44c66dfd7582cb9fd6503f78298c309945909f5839836",
    "25.12.1": "7b51bf608e4030f06a6c002cd08fed2872e4936527e63c9a8a97d5cd06a2b47f",
}
CACHE = ROOT / ".cache" / "upstream"
PLUGIN = ROOT / "tests" / "upstream"
REQUIREMENTS = [*DEPENDENCIES, "pytest>=8.3", "pytest-timeout>=2.3", "sanic-testing"]
# The options of this project do not apply to them; they have a mark that it does not know.
PYTEST = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "addopts=", "--timeout=120", "tests/worker"]


def fetch(version: str) -> Path:
    """Return the folder of the unpacked sdist; the first time, download it and check its hash."""
    source = CACHE / f"sanic-{version}"
    if source.exists():
        return source
    CACHE.mkdir(parents=True, exist_ok=True)
    pinned = CACHE / "requirements.txt"
    pinned.write_text(f"sanic=={version} --hash=sha256:{RELEASES[version]}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
    subprocess.run([*command, "--require-hashes", "--dest", CACHE, "--requirement", pinned], check=True)
    subprocess.run(["tar", "-xzf", f"sanic-{version}.tar.gz"], cwd=CACHE, check=True)
    return source


def runs(version: str, stock: bool, arguments: list[str]) -> Iterator[int]:
    """Run the tests of one release, with each core or on Sanic's own manager; yield the exit codes."""
    source = fetch(version)
    environment = Environment(f"upstream-{version}", INTERPRETER, [*REQUIREMENTS, f"sanic=={version}"])
    if stock:
        print(f"=== the tests of Sanic {version} on its own manager", flush=True)
        yield environment.run_python(*PYTEST, *arguments, cwd=source)
        return
    environment.install_wheel()
    for core in cores():
        print(f"=== the tests of Sanic {version} on the {core} core", flush=True)
        variables = {"WORKER_CORE": core, "PYTHONPATH": str(PLUGIN)}
        yield environment.run_python(*PYTEST, "-p", "plugin", *arguments, cwd=source, variables=variables)


def main() -> int:
    """Run all releases; return the first exit code that is not 0, else 0."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stock", action="store_true", help="run them on Sanic's own manager")
    parser.add_argument("--release", choices=RELEASES, action="append", help="run those of one line only")
    parser.add_argument("pytest", nargs="*")
    arguments = parser.parse_args()
    releases = arguments.release or RELEASES
    codes = [code for one in releases for code in runs(one, arguments.stock, arguments.pytest)]
    return next(filter(None, codes), 0)


if __name__ == "__main__":
    sys.exit(main())
