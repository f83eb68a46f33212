"""Run the tests that Sanic 23.12.2 has for its own manager on ours.

The sdist is fetched once into ``.cache/upstream`` and nothing of it is kept in the repository. Its tests
run where they lie, once with each core; ``tests/upstream/plugin.py`` puts our modules in place of theirs.
``upstream.py [--stock] [-- pytest arguments]``: with ``--stock`` they run on Sanic's own manager, to see
what they say of that.
"""

from __future__ import annotations

import argparse
import subprocess
import sys

from environments import DEPENDENCIES, INTERPRETER, ROOT, Environment, cores

VERSION = "23.12.2"
SHA256 = "4d909aa8a1cb39b0c42a5ec9fe6eb128013cc822bcf4c554326304b9ac427117"
CACHE = ROOT / ".cache" / "upstream"
SOURCE = CACHE / f"sanic-{VERSION}"
PLUGIN = ROOT / "tests" / "upstream"
REQUIREMENTS = [*DEPENDENCIES, f"sanic=={VERSION}", "pytest>=8.3", "pytest-timeout>=2.3", "sanic-testing"]
PYTEST = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "--timeout", "120", "tests/worker"]


def fetch() -> None:
    """Download the sdist, hold it to its hash, and unpack it, unless that was done before."""
    if SOURCE.exists():
        return
    CACHE.mkdir(parents=True, exist_ok=True)
    pinned = CACHE / "requirements.txt"
    pinned.write_text(f"sanic=={VERSION} --hash=sha256:{SHA256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
    subprocess.run([*command, "--require-hashes", "--dest", CACHE, "--requirement", pinned], check=True)
    subprocess.run(["tar", "-xzf", f"sanic-{VERSION}.tar.gz"], cwd=CACHE, check=True)


def main() -> int:
    """Run them; return the exit code of the first run that failed, else 0."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stock", action="store_true", help="run them on Sanic's own manager")
    parser.add_argument("pytest", nargs="*")
    arguments = parser.parse_args()
    fetch()
    environment = Environment("upstream", INTERPRETER, REQUIREMENTS)
    if arguments.stock:
        return environment.run_python(*PYTEST, *arguments.pytest, cwd=SOURCE)
    environment.install_wheel()
    command = [*PYTEST, "-p", "plugin", *arguments.pytest]
    for core in cores():
        print(f"=== the tests of Sanic {VERSION} on the {core} core", flush=True)
        variables = {"WORKER_CORE": core, "PYTHONPATH": str(PLUGIN)}
        code = environment.run_python(*command, cwd=SOURCE, variables=variables)
        if code:
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
