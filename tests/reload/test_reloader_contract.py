"""The contract of the stock reloader."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from support.application import edit
from support.fakes import FakePublisher

from worker.loader import AppLoader
from worker.reloader import Reloader


def test_attributes() -> None:
    publisher, loader = FakePublisher(), AppLoader()
    reloader = Reloader(publisher, 0, {Path("x")}, loader)
    assert Reloader.INTERVAL == reloader.interval == 1.0
    assert Reloader(publisher, 0.1, set(), loader).interval == 0.1
    assert reloader._publisher is publisher
    assert reloader.reload_dirs == {Path("x")}
    assert reloader.app_loader is loader
    assert reloader.run is True


def test_reload_sends_a_restart_of_all() -> None:
    publisher = FakePublisher()
    Reloader(publisher, 0.1, set(), AppLoader()).reload("foobar")
    assert publisher.sent == ["__ALL_PROCESSES__:foobar"]


def test_check_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    edit(path, 1000)
    mtimes: dict[Path, float] = {}
    assert Reloader.check_file(path, mtimes) is False
    assert mtimes == {path: 1000}
    assert Reloader.check_file(path, mtimes) is False
    mtimes[path] -= 1
    assert Reloader.check_file(path, mtimes) is True
    assert mtimes == {path: 1000}
    edit(path, 999)
    assert Reloader.check_file(path, mtimes) is False
    with pytest.raises(FileNotFoundError):
        Reloader.check_file(tmp_path / "nowhere", mtimes)
    assert set(mtimes) == {path}


def test_files(watched: Path) -> None:
    alone = list(Reloader(FakePublisher(), 0.1, set(), AppLoader()).files())
    assert __file__ in alone
    reloader = Reloader(FakePublisher(), 0.1, {watched, watched / "below"}, AppLoader())
    assert list(reloader.python_files()) == alone
    expected = [*alone, *watched.glob("**/*"), *(watched / "below").glob("**/*")]
    assert sorted(map(str, reloader.files())) == sorted(map(str, expected))


def test_python_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Hostile(ModuleType):
        @property
        def __file__() -> str:  # type: ignore[override]
            raise ImportError("not installed")

    archive = tmp_path / "archive.zip"
    source = tmp_path / "compiled.py"
    for path in (archive, source, Path(f"{source}c")):
        path.touch()
    modules: dict[str, Any] = {"hostile": Hostile("hostile"), "nothing": None}
    files = {
        "zipped": f"{archive}/inner.py",
        "compiled": f"{source}c",
        "gone": f"{tmp_path}/x.py",
        "odd": tmp_path,
    }
    for name, file in {**files, "builtin": None}.items():
        modules[name] = ModuleType(name)
        modules[name].__file__ = file
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, f"reloaded_{name}", module)
    found = list(Reloader(FakePublisher(), 0.1, set(), AppLoader()).python_files())
    assert [path for path in found if path.startswith(str(tmp_path))] == [str(archive), str(source)]


def test_a_reloader_can_be_pickled() -> None:
    reloader = Reloader(FakePublisher(), 2, {Path("x")}, AppLoader("m:app"))
    assert list(reloader.python_files())
    reloader = pickle.loads(pickle.dumps(reloader))
    assert (reloader.interval, reloader.reload_dirs) == (2, {Path("x")})
