"""The address of the inspector: from options, the environment, or the files of running servers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from worker._system import runtime
from worker.cli.inspect.address import Address, find, parse
from worker.cli.inspect.exits import CommandError, ExitCode

TLS = {"SANIC_INSPECTOR_TLS_KEY": "k.pem", "SANIC_INSPECTOR_TLS_CERT": "c.pem"}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the directory in which running servers leave their files."""
    found = tmp_path / "sanic-worker"
    found.mkdir(0o700)
    monkeypatch.setattr("worker.cli.inspect.address.directories", lambda: [str(found)])
    monkeypatch.setattr(runtime, "directories", lambda: [str(found)])
    return found


def leave(url: str, pid: int = 0, app: str = "shop") -> Path:
    """Leave the file of a server; return it."""
    pid = pid or os.getpid()
    runtime.write({"pid": pid, "app": app, "url": url, "started": ""})
    return Path(runtime.directories()[0]) / f"{pid}.json"


@pytest.fixture
def gone() -> int:
    """Return the pid of a process that is gone."""
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        child.wait()
    return child.pid


@pytest.mark.parametrize(
    ("options", "environment", "expected"),
    [
        ({}, {}, "http://localhost:6457"),
        ({"port": 7}, {}, "http://localhost:7"),
        ({"host": "there"}, {}, "http://there:6457"),
        ({"host": "::1", "port": 7}, {}, "http://[::1]:7"),
        ({"host": "[::1]", "port": 7}, {}, "http://[::1]:7"),
        ({"host": "there:9"}, {}, "http://there:9"),
        ({"host": "there:9", "secure": True}, {}, "https://there:9"),
        ({"host": "there:9"}, {"SANIC_INSPECTOR_PORT": "7"}, "http://there:9"),
        ({"host": "[::1]:9"}, {}, "http://[::1]:9"),
        ({"host": "0.0.0.0:9"}, {}, "http://127.0.0.1:9"),
        ({"host": "https://there"}, {}, "https://there:6457"),
        ({"host": "http://there:9"}, {}, "http://there:9"),
        ({"host": "there", "secure": True}, {}, "https://there:6457"),
        ({"unix": "/run/x"}, {"SANIC_INSPECTOR_PORT": "9"}, "unix:/run/x"),
        ({}, {"SANIC_INSPECTOR_PORT": "9"}, "http://localhost:9"),
        ({}, {"SANIC_INSPECTOR_HOST": "there"}, "http://there:6457"),
        ({}, {"SANIC_INSPECTOR_HOST": "0.0.0.0", "SANIC_INSPECTOR_PORT": "9"}, "http://127.0.0.1:9"),
        ({}, {"SANIC_INSPECTOR_HOST": "::", "SANIC_INSPECTOR_PORT": "9"}, "http://[::1]:9"),
        ({}, {"SANIC_INSPECTOR_PORT": "9", **TLS}, "https://localhost:9"),
        ({}, {"SANIC_INSPECTOR_PORT": "9", "SANIC_INSPECTOR_TLS_CERT": "c.pem"}, "http://localhost:9"),
        ({"host": "there"}, TLS, "https://there:6457"),
        ({"host": "http://there"}, TLS, "http://there:6457"),
        ({"host": "http://there", "secure": True}, TLS, "https://there:6457"),
        ({"unix": "/run/x"}, TLS, "unix:/run/x"),
        ({"port": 7}, {"SANIC_INSPECTOR_HOST": "there", "SANIC_INSPECTOR_PORT": "9"}, "http://there:7"),
        ({"host": "here"}, {"SANIC_INSPECTOR_PORT": "9"}, "http://here:9"),
        ({}, {"SANIC_WORKER_INSPECTOR_UNIX": "/run/y"}, "unix:/run/y"),
        ({"port": 7}, {"SANIC_WORKER_INSPECTOR_UNIX": "/run/y"}, "http://localhost:7"),
        ({}, {"SANIC_WORKER_INSPECTOR_UNIX": "/run/y", "SANIC_INSPECTOR_PORT": "9"}, "unix:/run/y"),
        ({}, {"SANIC_WORKER_INSPECTOR_UNIX": "/run/y", "SANIC_INSPECTOR_HOST": "there"}, "unix:/run/y"),
        ({}, {"SANIC_WORKER_INSPECTOR_UNIX": "/run/y", "SANIC_INSPECTOR_PORT": "x"}, "unix:/run/y"),
        ({}, {"SANIC_WORKER_INSPECTOR_UNIX": "/run/y", **TLS}, "unix:/run/y"),
        ({}, {"SANIC_INSPECTOR_PORT": "0"}, "http://127.0.0.1:1"),
        ({}, {"SANIC_INSPECTOR_HOST": "there", "SANIC_INSPECTOR_PORT": "0"}, "http://127.0.0.1:1"),
        ({}, TLS, "http://127.0.0.1:1"),
        ({"host": "there"}, {"SANIC_INSPECTOR_PORT": "0"}, "http://there:6457"),
    ],
)
def test_the_first_source_wins(options: dict[str, Any], environment: dict[str, str], expected: str) -> None:
    if options or environment:
        leave("http://127.0.0.1:1")
    where = find(options, environment)
    assert (str(where), where.tls) == (expected, expected.startswith("https:"))


@pytest.mark.parametrize(
    ("options", "environment"),
    [
        ({"unix": "/x", "port": 7}, {}),
        ({"unix": "/x", "host": "there"}, {}),
        ({"host": "ftp://there"}, {}),
        ({"host": "http://there:x"}, {}),
        ({"host": "there:x"}, {}),
        ({"host": "there:65536"}, {}),
        ({"host": ":9"}, {}),
        ({"unix": "/x", "secure": True}, {}),
        ({"secure": True}, {"SANIC_WORKER_INSPECTOR_UNIX": "/x"}),
        ({}, {"SANIC_INSPECTOR_PORT": "x"}),
        ({}, {"SANIC_INSPECTOR_PORT": "65536"}),
        ({"host": "there"}, {"SANIC_INSPECTOR_PORT": "99999"}),
    ],
)
def test_a_wrong_address_is_refused(options: dict[str, Any], environment: dict[str, str]) -> None:
    with pytest.raises(CommandError) as caught:
        find(options, environment)
    assert caught.value.code is ExitCode.USAGE


class TestRunningServers:
    @pytest.mark.parametrize("url", ["http://127.0.0.1:9", "https://localhost:9", "unix:/run/x"])
    def test_the_only_one_is_taken(self, url: str) -> None:
        leave(url)
        assert find({}, {}) == parse(url)
        assert str(parse(url)) == url

    def test_the_key_alone_is_no_address(self) -> None:
        leave("http://127.0.0.1:9")
        assert find({"api_key": "x"}, {"SANIC_INSPECTOR_API_KEY": "x"}).port == 9

    def test_several_are_listed(self) -> None:
        leave("http://127.0.0.1:9")
        leave("unix:/run/x", os.getppid(), "other\x1b[2J")
        with pytest.raises(CommandError) as caught:
            find({}, {})
        first, *others = str(caught.value).splitlines()
        assert first == "2 servers run here. Choose one of them:"
        assert set(others) == {
            f"  shop [{os.getpid()}]  --host http://127.0.0.1:9",
            f"  other\\x1b[2J [{os.getppid()}]  --unix /run/x",
        }
        assert caught.value.code is ExitCode.USAGE

    def test_one_that_is_gone_does_not_count(self, gone: int) -> None:
        leave("http://127.0.0.1:8", gone)
        assert find({}, {}) == Address()
        leave("http://127.0.0.1:9")
        assert find({}, {}).port == 9

    @pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"pid": 1}', '{"pid": "x", "app": "", "url": ""}'])
    def test_another_file_does_not_count(self, folder: Path, text: str) -> None:
        (folder / "1.json").write_text(text)
        assert find({}, {}) == Address()

    def test_one_whose_pid_another_process_has_does_not_count(self) -> None:
        path = leave("http://127.0.0.1:9")
        file = json.loads(path.read_text())
        file["start_ticks"] -= 1
        path.write_text(json.dumps(file))
        assert find({}, {}) == Address()

    def test_one_without_a_name_is_told_as_such(self) -> None:
        leave("http://127.0.0.1:9", app="")
        leave("http://127.0.0.1:8", os.getppid())
        with pytest.raises(CommandError) as caught:
            find({}, {})
        assert f"  (no name) [{os.getpid()}]  --host http://127.0.0.1:9" in str(caught.value).splitlines()

    def test_a_directory_that_others_can_write_to_does_not_count(self, folder: Path) -> None:
        leave("http://127.0.0.1:9")
        folder.chmod(0o770)
        assert find({}, {}) == Address()
        folder.chmod(0o700)
        assert find({}, {}).port == 9
