"""What `install()` refuses, and the process that holds the state. (The rest: integration/test_install.py.)"""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from .running import command, environment, lives, python, until, wait_for_end

INSTALL = """
import sys, warnings, sanic, worker

for version in sys.argv[1:]:
    sanic.__version__ = version
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        try:
            worker.install()
            print("installed")
        except RuntimeError as error:
            print(error)
        worker.uninstall()
    for one in found:
        print(one.category.__name__, one.message, one.filename == __file__)
"""
SUPPORTED = "23.12 to 25.12"


def install(tmp_path: Path, *versions: str, first: str = "") -> list[str]:
    """What comes of installing under each of the releases, a line or two each."""
    ended = python(first + INSTALL, *versions, cwd=tmp_path)
    assert ended.stderr == ""
    return ended.stdout.splitlines()


class TestVersions:
    def test_that_are_supported(self, tmp_path: Path) -> None:
        versions = ["23.12.0", "23.12", "24.6.1", "24.12.0", "25.3.0", "25.12.9"]
        assert install(tmp_path, *versions) == ["installed"] * len(versions)

    def test_that_are_too_old(self, tmp_path: Path) -> None:
        versions = ["23.9.1", "22.12.0", "0.8.3"]
        assert install(tmp_path, *versions) == [
            f"Sanic {version} is too old; sanic-worker supports {SUPPORTED}" for version in versions
        ]

    def test_that_are_newer_are_tried(self, tmp_path: Path) -> None:
        warning = "RuntimeWarning Sanic {} is newer than what sanic-worker was tested with ({}) True"
        versions = ["26.3.0", "25.13.0.dev1"]
        assert install(tmp_path, *versions) == [
            line for version in versions for line in ("installed", warning.format(version, SUPPORTED))
        ]

    def test_that_nobody_knows(self, tmp_path: Path) -> None:
        versions = ["", "25", "main", "25.x.1"]
        assert install(tmp_path, *versions) == [
            f"Sanic {version!r} is of no known release; sanic-worker supports {SUPPORTED}"
            for version in versions
        ]

    @pytest.mark.parametrize(
        ("module", "name"),
        [("sanic.worker.manager", "MonitorCycle"), ("sanic.mixins.startup", "WorkerManager")],
    )
    def test_that_have_not_what_is_expected(self, module: str, name: str, tmp_path: Path) -> None:
        first = f"import {module}\ndel {module}.{name}\n"
        refusal = (
            f"Sanic 26.3.0 has no {module}.{name}, which sanic-worker has to replace; "
            f"it supports Sanic {SUPPORTED}"
        )
        assert install(tmp_path, "26.3.0", first=first) == [refusal]


def test_applications_that_exist_already(tmp_path: Path) -> None:
    """Their classes are replaced, those of the user's own choice are not; and both are put back."""
    ended = python(
        """
        from sanic import Sanic
        import worker

        class Mine:
            pass

        plain, own = Sanic("plain"), Sanic("own")
        own.inspector_class = Mine
        stock = plain.certloader_class, plain.inspector_class
        worker.install()
        print((plain.certloader_class, plain.inspector_class) == (worker.CertLoader, worker.Inspector))
        print(own.inspector_class is Mine)
        worker.uninstall()
        print((plain.certloader_class, plain.inspector_class) == stock, own.inspector_class is Mine)
        """,
        cwd=tmp_path,
    )
    assert (ended.stdout.split(), ended.stderr) == (["True"] * 4, "")


STATE = """
import multiprocessing, os, signal, sys
import worker
from worker.integration import state_manager

def main():
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, lambda *args: None)
    multiprocessing.set_start_method(sys.argv[1])
    manager = state_manager()
    state = manager.dict()
    pid = manager._process.pid
    state["sid"] = os.getsid(pid)
    print(pid, state["sid"], flush=True)
    for line in sys.stdin:
        state[line] = 1
        print(len(state), flush=True)
    manager.shutdown()

if __name__ == "__main__":
    main()
"""


class TestStateManager:
    @pytest.mark.parametrize(
        ("method", "end"),
        [("spawn", "by force"), ("fork", "by force"), ("forkserver", "by force"), ("spawn", "in order")],
    )
    def test_it_leaves_with_main_and_not_before(self, method: str, end: str, tmp_path: Path) -> None:
        main = subprocess.Popen(
            command(STATE, method, cwd=tmp_path),
            cwd=tmp_path,
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert main.stdin is not None and main.stdout is not None
        try:
            pid, sid = (int(word) for word in main.stdout.readline().split())
            assert sid == pid
            for number, signum in enumerate((signal.SIGTERM, signal.SIGINT), 2):
                os.killpg(main.pid, signum)
                # Whoever signals every process of the server means this one as well.
                os.kill(pid, signum)
                main.stdin.write(f"{number}\n")
                main.stdin.flush()
                assert main.stdout.readline() == f"{number}\n"
            assert lives(pid)
            if end == "by force":
                main.kill()
            else:
                main.stdin.close()
            main.wait(15)
            wait_for_end(pid)
            until(lambda: not lives(pid), "the end of the state")
        finally:
            main.kill()
            main.wait()
            main.stdout.close()
            main.stdin.close()

    def test_a_script_without_a_guard(self, tmp_path: Path) -> None:
        ended = python(
            """
            import worker
            from sanic import Sanic

            worker.install()
            app = Sanic("unguarded")
            app.run(host="127.0.0.1", port=0, workers=1, motd=False)
            """,
            cwd=tmp_path,
        )
        assert ended.returncode == 1
        assert 'inside of\n\n    if __name__ == "__main__":\n' in ended.stderr + ended.stdout
        assert "EOFError" not in ended.stderr
