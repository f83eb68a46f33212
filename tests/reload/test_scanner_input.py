"""Arguments that a scanner refuses, and their errors."""

from __future__ import annotations

import pickle
import threading
from pathlib import Path
from types import ModuleType

import pytest


class TestInvalidArguments:
    @pytest.mark.parametrize("settle", [-1.0, float("nan"), float("inf")])
    def test_an_invalid_settle_time(self, core: ModuleType, settle: float) -> None:
        with pytest.raises(ValueError, match="settle has to be a number of seconds from 0 on"):
            core.Scanner([], settle=settle)

    @pytest.mark.parametrize("since", [-1.0, float("nan"), float("inf")])
    def test_an_invalid_since_time(self, core: ModuleType, since: float) -> None:
        with pytest.raises(ValueError, match="since has to be a time, seconds from 1970 on"):
            core.Scanner([], since=since)

    def test_invalid_rules(self, core: ModuleType) -> None:
        with pytest.raises(ValueError, match="no regular expression: "):
            core.Scanner([], ignored=[("(", True)])
        with pytest.raises(TypeError):
            core.Scanner([], ignored=[7])

    def test_paths_with_null_bytes(self, core: ModuleType) -> None:
        with pytest.raises(ValueError, match="embedded null byte"):
            core.Scanner(["a\0b"])
        with pytest.raises(ValueError, match="embedded null byte"):
            core.Scanner([]).watch(["a\0b"])
        with pytest.raises(ValueError, match="embedded null byte"):
            core.Scanner([]).scan(["a\0b"])

    def test_arguments_that_are_no_paths(self, core: ModuleType) -> None:
        with pytest.raises(TypeError):
            core.Scanner([7])
        with pytest.raises(TypeError):
            core.Scanner([]).watch([None])
        with pytest.raises(UnicodeEncodeError):
            core.Scanner([]).watch(["\ud800"])

    def test_a_scanner_cannot_be_pickled(self, core: ModuleType) -> None:
        with pytest.raises(TypeError):
            pickle.dumps(core.Scanner([]))

    def test_use_in_another_thread_during_a_watch(self, core: ModuleType, tmp_path: Path) -> None:
        scanner = core.Scanner([tmp_path])

        class Meddling:
            def __fspath__(self) -> str:
                done = threading.Thread(target=scanner.scan)
                done.start()
                done.join()
                return str(tmp_path / "a.py")

        scanner.watch([Meddling()])
        assert scanner.scan() == []
