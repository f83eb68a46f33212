"""Measure the coverage of the tests: the branches of ``python/`` and the lines of ``src/``.

The tests run on an instrumented build of the native core, once with each core, in an environment of its own;
child processes count. ``measure.py [pytest arguments]`` prints both reports and fails below 95 % for Python.
The counters of Rust are read by llvm_profparser, which ``cargo install`` builds on the first run. Unlike
llvm-cov it need not be of rustc's own LLVM release.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from environments import DEPENDENCIES, INTERPRETER, ROOT, TEST_GROUP, Environment, cores

MINIMUM = 95
TOOLS = ROOT / ".cache" / "tools"
READER = TOOLS / "bin" / "cov"
READER_CRATE = "llvm_profparser@0.15.0"
TARGET = ROOT / "target" / "coverage"
COUNTERS = TARGET / "counters"
# One file a binary; each process adds its counts to it under a lock.
INSTRUMENTED = {
    "RUSTFLAGS": "-C instrument-coverage",
    "CARGO_TARGET_DIR": str(TARGET),
    "LLVM_PROFILE_FILE": str(COUNTERS / "%m.profraw"),
    "COVERAGE_FILE": str(COUNTERS / "python"),
}
COUNTED_LINE = re.compile(r" *(\d+)\| *(\d+)\|")


def output_of(*command: str | Path) -> str:
    """Run a command in the instrumented setting; return its output; fail if it does."""
    return str(subprocess.check_output(command, cwd=ROOT, env=os.environ | INSTRUMENTED, text=True))


def build() -> Path:
    """Build the instrumented wheel, with debug assertions on; return its path."""
    folder = TARGET / "wheel"
    shutil.rmtree(folder, ignore_errors=True)
    output_of(Path(sys.executable).parent / "maturin", "build", "--quiet", "--locked", "--out", folder)
    return next(folder.glob("*.whl"))


def test_python(environment: Environment, arguments: list[str]) -> int:
    """Run the tests of the package with each core; return 0, or the exit code of a run that failed."""
    result = 0
    for core in cores():
        print(f"=== the tests on the {core} core", flush=True)
        command = ["-m", "coverage", "run", "-m", "pytest", "-q", *arguments]
        result = environment.run_python(*command, variables=INSTRUMENTED | {"WORKER_CORE": core}) or result
    return result


def report_python(environment: Environment) -> int:
    """Print the coverage of the package; return nonzero below the minimum."""
    environment.run_python("-m", "coverage", "combine", "--quiet", variables=INSTRUMENTED)
    for torn in COUNTERS.glob("python.*"):
        torn.unlink()  # the process was killed as it wrote
    command = ["-m", "coverage", "report", f"--fail-under={MINIMUM}"]
    return environment.run_python(*command, variables=INSTRUMENTED)


def instrumented_binaries(environment: Environment) -> Iterator[Path]:
    """Yield the counted binaries: the extension module, and the test programs of the crate."""
    yield from environment.path.glob("lib/python*/site-packages/worker/_native*.so")
    for path in (TARGET / "debug" / "deps").iterdir():
        if path.is_file() and not path.suffix and os.access(path, os.X_OK):
            yield path


def count_lines(listing: str) -> dict[str, dict[int, int]]:
    """Return the counts that the reader prints: file of ``src/`` -> line of code -> times run."""
    counts: dict[str, dict[int, int]] = {}
    current: dict[int, int] = {}
    for line in listing.splitlines():
        if line.startswith("/"):
            path = Path(line)
            ours = path.is_relative_to(ROOT / "src")
            current = counts.setdefault(str(path.relative_to(ROOT)), {}) if ours else {}
        elif counted := COUNTED_LINE.match(line):
            current[int(counted[1])] = int(counted[2])
    return counts


def report_rust(environment: Environment) -> None:
    """Print, for each file of ``src/``, the share of its lines of code that were run, and the others."""
    if not READER.exists():
        print("=== building the reader of Rust's counters", flush=True)
        output_of("cargo", "install", "--quiet", "--locked", "--root", TOOLS, READER_CRATE)
    options = [f"--instr-profile={path}" for path in COUNTERS.glob("*.profraw")]
    options += [f"--object={path}" for path in instrumented_binaries(environment)]
    total = run = 0
    print(f"{'Name':32} {'Lines':>6} {'Missed':>6} {'Cover':>6}   Missing")
    for name, lines in sorted(count_lines(output_of(READER, "show", *options)).items()):
        missed = [str(number) for number, times in lines.items() if times == 0]
        total += len(lines)
        run += len(lines) - len(missed)
        share = 1 - len(missed) / len(lines)
        print(f"{name:32} {len(lines):6} {len(missed):6} {share:6.1%}   {', '.join(missed)}")
    print(f"{'TOTAL':32} {total:6} {total - run:6} {run / max(total, 1):6.1%}")


def main() -> int:
    """Build, run, report; return the exit code."""
    shutil.rmtree(COUNTERS, ignore_errors=True)
    COUNTERS.mkdir(parents=True)
    environment = Environment("coverage", INTERPRETER, [*DEPENDENCIES, *TEST_GROUP])
    environment.pip("install", "--no-index", "--no-deps", "--force-reinstall", str(build()))
    print(output_of("cargo", "test", "--quiet", "--locked", "--no-default-features"), flush=True)
    failed = test_python(environment, sys.argv[1:])
    low = report_python(environment)
    report_rust(environment)
    return failed or low


if __name__ == "__main__":
    sys.exit(main())
