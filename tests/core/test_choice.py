"""``WORKER_CORE`` selects the core, and requires it."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.cores import CORES

pytestmark = pytest.mark.slow

SOURCE = Path(importlib.util.find_spec("worker").submodule_search_locations[0])

REPORT = "from worker import _core; i = _core.core_info(); print(i.core, i.profile, _core.Monitor.__module__)"


def run(code: str, core: str | None, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "WORKER_CORE"}
    if core is not None:
        environment["WORKER_CORE"] = core
    environment["PYTHONPATH"] = str(path or SOURCE.parent)
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Copy the package without its extension."""
    for source in SOURCE.rglob("*.py"):
        link = tmp_path / "worker" / source.relative_to(SOURCE)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(source)
    return tmp_path


@pytest.mark.parametrize("wanted", CORES)
def test_the_requested_core_is_used(wanted: str) -> None:
    done = run(REPORT, wanted)
    assert done.stdout.split()[0] == wanted, done.stderr
    assert (done.stdout.split()[1] == "None") == (wanted == "pure")


@pytest.mark.skipif("native" not in CORES, reason="the pure core alone is asked for")
@pytest.mark.parametrize("wanted", [None, "auto"])
def test_the_native_core_is_preferred(wanted: str | None) -> None:
    done = run(REPORT, wanted)
    assert done.stdout.split()[0] == "native", done.stderr
    assert done.stdout.split()[1] in ("release", "debug")
    assert done.stdout.split()[2] == "worker._native"


@pytest.mark.parametrize("wanted", ["rust", "", "Pure"])
def test_an_unknown_core_is_refused(wanted: str) -> None:
    done = run(REPORT, wanted)
    assert done.returncode == 1
    assert f"ImportError: WORKER_CORE={wanted!r} is no core: choose one of auto, native, pure" in done.stderr


@pytest.mark.parametrize("wanted", [None, "auto", "pure"])
def test_the_pure_core_is_used_if_no_native_core_was_built(wanted: str | None, tree: Path) -> None:
    done = run(REPORT, wanted, tree)
    assert done.stdout.split()[:2] == ["pure", "None"], done.stderr


def test_a_requested_but_missing_native_core_is_an_error(tree: Path) -> None:
    done = run(REPORT, "native", tree)
    assert done.returncode == 1
    assert "ImportError: WORKER_CORE=native, but worker._native was never built" in done.stderr
    assert "maturin develop" in done.stderr


@pytest.mark.parametrize("wanted", [None, "native"])
@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"this is no extension", "ImportError"),
        (b"", "ImportError"),
    ],
)
def test_a_native_core_that_does_not_load_is_an_error(
    wanted: str | None, content: bytes, error: str, tree: Path
) -> None:
    (tree / "worker" / "_native.abi3.so").write_bytes(content)
    done = run(REPORT, wanted, tree)
    assert done.returncode == 1
    assert error in done.stderr
    assert "never built" not in done.stderr


def test_an_import_error_inside_the_native_core_is_raised(tree: Path) -> None:
    (tree / "worker" / "_native.py").write_text("import worker._nothing_of_the_kind\n")
    done = run(REPORT, None, tree)
    assert done.returncode == 1
    assert "No module named 'worker._nothing_of_the_kind'" in done.stderr


def test_core_info_is_immutable_and_compares_by_value() -> None:
    from worker._core import CoreInfo, core_info

    info = core_info()
    assert info == CoreInfo(info.core, info.version, info.profile)
    with pytest.raises(AttributeError):
        info.core = "other"  # type: ignore[misc]


def test_the_package_exports_names_of_the_selected_core() -> None:
    from worker import _core

    name = {"native": "worker._native", "pure": "worker._core.pure"}[_core.core_info().core]
    module = importlib.import_module(name)
    for name in ("LIMIT", "Framer", "Monitor", "decode", "parse"):
        assert getattr(_core, name) is getattr(module, name)
    assert _core.LIMIT == 16 * 1024 * 1024
