"""The files that modules come from, and their times of modification."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest


def module(file: object) -> Any:
    return SimpleNamespace(__file__=file)


class Text(str):
    """A ``str`` of a class of its own."""

    __slots__ = ()


@pytest.fixture(params=[0.0, 2.0])
def scanner(core: ModuleType, request: pytest.FixtureRequest) -> Any:
    return core.Scanner([], settle=request.param)


class TestModuleFiles:
    def test_of_each_form_of_a_module(
        self, scanner: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Hostile(ModuleType):
            @property
            def __file__(self) -> str:  # type: ignore[override]
                raise ImportError("not installed")

        for name in ("a.py", "b.pyc", "c.pyo", "archive.zip", "\udcff.py"):
            (tmp_path / name).touch()
        (tmp_path / "folder.py").mkdir()
        (tmp_path / "link.py").symlink_to("a.py")
        (tmp_path / "dangling.py").symlink_to("nowhere")
        monkeypatch.chdir(tmp_path)
        cases: list[tuple[Any, str | None]] = [
            (module(f"{tmp_path}/a.py"), f"{tmp_path}/a.py"),
            (module(f"{tmp_path}/b.pyc"), f"{tmp_path}/b.py"),
            (module(f"{tmp_path}/c.pyo"), f"{tmp_path}/c.py"),
            (module(f"{tmp_path}/archive.zip/inner/m.py"), f"{tmp_path}/archive.zip"),
            (module(f"{tmp_path}/b.pyc/m.py"), f"{tmp_path}/b.py"),
            (module(f"{tmp_path}//a.py"), f"{tmp_path}//a.py"),
            (module(f"{tmp_path}/a.py/"), f"{tmp_path}/a.py"),
            (module(f"{tmp_path}/a.py//x//y"), f"{tmp_path}/a.py"),
            (module(f"{tmp_path}/\udcff.py"), f"{tmp_path}/\udcff.py"),
            (module(f"{tmp_path}/a.py/\ud800/x"), f"{tmp_path}/a.py"),
            (module(f"{tmp_path}/a.py/\0"), f"{tmp_path}/a.py"),
            (module(f"{tmp_path}/link.py"), f"{tmp_path}/link.py"),
            (module(Text(f"{tmp_path}/a.py")), f"{tmp_path}/a.py"),
            (module("a.py"), "a.py"),
            (module("a.py/x"), "a.py"),
            (module("\ud800"), None),
            (module("nowhere.py"), None),
            (module(f"{tmp_path}/folder.py"), None),
            (module(f"{tmp_path}/dangling.py"), None),
            (module(f"{tmp_path}/nowhere/x.py"), None),
            (module(""), None),
            (module("/"), None),
            (module(None), None),
            (module(tmp_path / "a.py"), None),
            (module(b"a.py"), None),
            (Hostile("hostile"), None),
            (None, None),
            (7, None),
            (sys, None),
        ]
        for _ in range(3):
            assert scanner.module_files([one for one, _ in cases]) == [file for _, file in cases if file]
        for one, file in cases:
            assert scanner.module_files(iter([one])) == ([] if file is None else [file])

    def test_a_file_that_is_created_and_deleted(self, core: ModuleType, tmp_path: Path) -> None:
        scanner = core.Scanner([])
        path = tmp_path / "a.py"
        modules = [module(str(path))]
        for _ in range(3):
            assert scanner.module_files(modules) == []
            path.touch()
            assert scanner.module_files(modules) == [str(path)]
            path.unlink()

    def test_a_path_that_changes_its_type(self, core: ModuleType, tmp_path: Path) -> None:
        scanner = core.Scanner([])
        path = tmp_path / "a" / "a.py"
        modules = [module(str(path))]
        path.parent.mkdir()

        def found() -> bool:
            return bool(scanner.module_files(modules))

        path.touch()
        assert found()
        path.unlink()
        path.symlink_to("target")
        assert not found()
        (path.parent / "target").touch()
        assert found()
        (path.parent / "target").unlink()
        assert not found()
        path.unlink()
        path.mkdir()
        assert not found()
        shutil.rmtree(path.parent)
        assert not found()
        path.parent.touch()
        assert scanner.module_files(modules) == [str(path.parent)]

    def test_a_link_that_points_to_another_directory(self, core: ModuleType, tmp_path: Path) -> None:
        """Its time of change tells nothing, as each file system has its own."""
        for name in ("one", "other"):
            (tmp_path / name).mkdir()
        (tmp_path / "one" / "a.py").touch()
        scanner = core.Scanner([], settle=0.0)
        (tmp_path / "link").symlink_to("one")
        modules = [module(f"{tmp_path}/link/a.py")]
        assert len(scanner.module_files(modules)) == 1
        (tmp_path / "link").unlink()
        (tmp_path / "link").symlink_to("other")
        assert scanner.module_files(modules) == []

    def test_of_all_loaded_modules(self, scanner: Any) -> None:
        found = scanner.module_files(list(sys.modules.values()))
        assert __file__ in found
        assert all(map(os.path.isfile, found))

    def test_returns_the_same_str_object(self, scanner: Any) -> None:
        assert scanner.module_files([module(__file__)])[0] is __file__

    @pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
    def test_interrupts_are_raised(self, scanner: Any, error: type[BaseException]) -> None:
        class Ending:
            @property
            def __file__(self) -> str:
                raise error

        with pytest.raises(error):
            scanner.module_files([Ending()])

    def test_arguments_that_are_no_modules(self, scanner: Any) -> None:
        assert scanner.module_files([]) == []
        with pytest.raises(TypeError):
            scanner.module_files(None)

        def broken() -> Iterator[Any]:
            yield sys
            raise LookupError("no more")

        with pytest.raises(LookupError, match="no more"):
            scanner.module_files(broken())


class TestCheckFile:
    @pytest.mark.parametrize("kind", [str, Path, os.fsencode])
    def test_accepts_each_type_of_path(self, core: ModuleType, tmp_path: Path, kind: Any) -> None:
        path = tmp_path / "\udcff"
        path.touch()
        name = kind(os.fspath(path))
        mtimes: dict[Any, Any] = {}
        for mtime in (123456789, -123456789, 1_700_000_000_123_456_789, 2**60 + 1):
            os.utime(path, ns=(mtime, mtime))
            mtimes.clear()
            assert core.Scanner.check_file(name, mtimes) is False
            assert list(mtimes.items()) == [(name, path.stat().st_mtime)]
            assert core.Scanner.check_file(name, mtimes) is False
            mtimes[name] -= 1
            assert core.Scanner.check_file(name, mtimes) is True
            assert mtimes == {name: path.stat().st_mtime}
            mtimes[name] += 1
            assert core.Scanner.check_file(name, mtimes) is False
            assert mtimes == {name: path.stat().st_mtime + 1}

    def test_invalid_paths_raise_like_os_stat(self, core: ModuleType, tmp_path: Path) -> None:
        for bad in (
            str(tmp_path / "nowhere"),
            tmp_path / "nowhere",
            b"nowhere",
            "\0",
            "\ud800",
            None,
            7.5,
            -1,
        ):
            seen = []
            for call in (os.stat, lambda bad: core.Scanner.check_file(bad, {})):
                with pytest.raises(Exception) as caught:
                    call(bad)
                seen.append((caught.type, str(caught.value)))
            assert seen[0] == seen[1]

    def test_accepts_a_descriptor(self, core: ModuleType, tmp_path: Path) -> None:
        mtimes: dict[int, float] = {}
        with (tmp_path / "file").open("w") as file:
            assert core.Scanner.check_file(file.fileno(), mtimes) is False
        assert len(mtimes) == 1

    def test_uses_the_methods_of_a_dict_subclass(self, core: ModuleType, tmp_path: Path) -> None:
        class Loud(dict[Any, Any]):
            def get(self, key: Any, default: Any = None) -> Any:
                called.append((key, default))
                return super().get(key, default)

            def __setitem__(self, key: Any, value: Any) -> None:
                called.append((key, value))
                super().__setitem__(key, value)

        called: list[Any] = []
        mtime = tmp_path.stat().st_mtime
        mtimes = Loud()
        assert core.Scanner.check_file(tmp_path, mtimes) is False
        dict.__setitem__(mtimes, tmp_path, 0)
        assert core.Scanner.check_file(tmp_path, mtimes) is True
        assert called == [(tmp_path, None), (tmp_path, mtime)] * 2

    def test_a_known_time_of_none_is_no_change(self, core: ModuleType, tmp_path: Path) -> None:
        mtimes = {tmp_path: None}
        assert core.Scanner.check_file(tmp_path, mtimes) is False
        assert mtimes == {tmp_path: tmp_path.stat().st_mtime}

    def test_invalid_arguments_raise_as_in_python(self, core: ModuleType, tmp_path: Path) -> None:
        with pytest.raises(TypeError, match="'>' not supported between instances of 'float' and 'str'"):
            core.Scanner.check_file(tmp_path, {tmp_path: "yesterday"})
        with pytest.raises(AttributeError, match="get"):
            core.Scanner.check_file(tmp_path, [])
        with pytest.raises(TypeError, match="unhashable"):
            core.Scanner.check_file(Unhashable(str(tmp_path)), {})


class Unhashable(str):
    """A path that no ``dict`` takes."""

    __slots__ = ()
    __hash__ = None  # type: ignore[assignment]
