"""`sanic-worker check` on applications that are broken, each in another way."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.checking import LIMIT, LISTENERS, MAIN, OVERRUN, RAISE, SHOP, STOP, Project
from support.running import wait_for_end

pytestmark = [pytest.mark.operations, pytest.mark.slow]


@pytest.fixture
def project(tmp_path: Path) -> Project:
    found = Project(tmp_path)
    found.write(SHOP)
    return found


class TestBrokenImports:
    @pytest.mark.parametrize(
        ("code", "error", "where"),
        [
            ("import os\ndef broken(:", "SyntaxError: invalid syntax", "shop.py:2"),
            ("raise RuntimeError('at\\nimport')", "RuntimeError: at import", "shop.py:1"),
            ("import views", "ModuleNotFoundError: No module named 'nowhere'", "views.py:2"),
            ("import os\nos.nothing", "AttributeError: module 'os' has no attribute 'nothing'", "shop.py:2"),
            ("import sys\nsys.exit(0)", "SystemExit: 0", "shop.py:2"),
            (f"{SHOP}\nSanic('shop')", 'SanicException: Sanic app name "shop" already in use.', ""),
        ],
    )
    def test_the_error_has_its_place(self, project: Project, code: str, error: str, where: str) -> None:
        project.write("import os\nimport nowhere.at.all\n", "views.py")
        project.write(code)
        for args in ([], ["--dev"]):
            found = project.check("shop:app", *args)
            assert found.code == 1, found
            assert found.steps == MAIN[:2]
            assert found.failed[0] == "import"
            assert found.failed[1].startswith(error)
            assert where in found.failed[1]
            traceback = found.report["steps"][1]["traceback"]
            assert "shop.py" in traceback
            assert "worker/" not in traceback

    @pytest.mark.parametrize(
        ("code", "error"),
        [
            ("import os; os._exit(0)", "before it was ready"),
            ("import os; os._exit(5)", "the main process ended with exit code 5"),
            ("import os; os.kill(os.getpid(), 9)", "the main process was killed by SIGKILL"),
            ("import ctypes; ctypes.string_at(0)", "the main process was killed by SIGSEGV"),
        ],
    )
    def test_an_import_that_ends_the_process_says_how(self, project: Project, code: str, error: str) -> None:
        project.write(code)
        found = project.check()
        assert found.code == 1, found
        assert found.failed[0] == "import"
        assert error in found.failed[1]

    def test_only_the_import_in_the_worker_fails(self, project: Project) -> None:
        project.write(f"{SHOP}\nif os.environ.get('SANIC_WORKER_NAME'): {RAISE}\n")
        found = project.check()
        assert (found.code, found.failed[0]) == (1, "import (worker)")
        assert found.failed[1].startswith("RuntimeError: no database (shop.py:")

    def test_an_import_that_hangs_is_shown(self, project: Project) -> None:
        project.write("import threading\n\ndef wait():\n    threading.Event().wait()\n\nwait()\n")
        found = project.check("shop:app", "--timeout", LIMIT)
        assert (found.code, found.failed) == (3, ("import", OVERRUN))
        assert 'shop.py", line 4, in wait' in found.report["stacks"]

    @pytest.mark.parametrize(
        ("args", "error"),
        [
            (["nowhere:app"], "No module named nowhere found"),
            (["shop:nothing"], "shop has no nothing. It has the application app: use shop:app"),
            (["shop.py"], "shop.py is a file. Give the module: shop:app"),
            (["shop:root"], "shop:root makes no Sanic application"),
            (["shop:app", "--max-surge", "x"], "max_surge of --max-surge cannot be 'x'"),
            (["shop:app", "--workers", "0"], "workers of --workers cannot be '0'"),
            (["shop:app", "--nonsense"], "unrecognized arguments: --nonsense"),
            (["shop:app", "--cert", "none.pem", "--key", "none.pem"], "--cert cannot be 'none.pem'"),
            (["shop:app", "--single-process", "--dev"], "--single-process cannot be combined with --dev"),
        ],
    )
    def test_a_wrong_command_is_the_one_of_the_user(
        self, project: Project, args: list[str], error: str
    ) -> None:
        found = project.check(*args)
        assert found.code == 2, found
        assert error in found.report["error"]
        assert found.report["failed"] in ("settings", "import")

    def test_a_wrong_setting_of_the_environment_is_a_finding(self, project: Project) -> None:
        found = project.check(SANIC_WORKER_MAX_SURGE="many")
        assert (found.code, found.report["failed"]) == (2, "settings")
        assert "max_surge of SANIC_WORKER_MAX_SURGE cannot be 'many'" in found.report["error"]

    def test_a_wrong_certificate_is_a_finding(self, project: Project) -> None:
        flags = project.write_certificate()
        (project.directory / "cert.pem").write_text("no certificate\n")
        found = project.check("shop:app", *flags)
        assert found.code == 1
        assert found.failed[0] == "prepare"
        assert "SSLError" in found.failed[1]

    def test_duplicate_routes_are_a_finding(self, project: Project) -> None:
        project.write(f"{SHOP}\napp.add_route(boom, '/other', name='root')\n")
        found = project.check()
        assert (found.code, found.failed[0]) == (1, "routes")
        assert "Duplicate route names detected: shop.root" in found.failed[1]

    def test_state_that_cannot_be_pickled_is_a_finding(self, project: Project) -> None:
        project.listen("main_process_start", "app.shared_ctx.broken = lambda: None")
        found = project.check()
        assert (found.code, found.failed[0]) == (1, "start of the worker")
        assert "pickle" in found.failed[1]


class TestListeners:
    @pytest.mark.parametrize("listener", LISTENERS)
    def test_one_that_fails_is_named(self, project: Project, listener: str) -> None:
        project.listen(listener, RAISE)
        found = project.check()
        assert found.code == 1, found
        step, error = found.failed
        assert step == listener
        assert re.fullmatch(r"RuntimeError: no database \(shop\.py:\d+\)", error)
        (failed,) = [step for step in found.report["steps"] if not step["ok"]]
        assert failed["traceback"].endswith("RuntimeError: no database\n")

    @pytest.mark.parametrize("listener", LISTENERS)
    def test_one_that_hangs_is_shown(self, project: Project, listener: str) -> None:
        project.listen(listener, "await waits_for_the_database()")
        found = project.check("shop:app", "--timeout", LIMIT)
        assert found.code == 3, found
        assert found.failed == (listener, OVERRUN)
        stacks = found.report["stacks"]
        assert stacks.index("in listens") < stacks.index("in waits_for_the_database")

    @pytest.mark.parametrize(
        ("code", "error"),
        [
            ("sys.exit(0)", "SystemExit: 0"),
            ("sys.exit(3)", "SystemExit: 3"),
            ("os._exit(0)", "ended with exit code 0 before it was ready"),
            ("os._exit(3)", "the worker ended with exit code 3"),
            ("os.kill(os.getpid(), 9)", "the worker was killed by SIGKILL"),
            ("ctypes.string_at(0)", "the worker was killed by SIGSEGV"),
        ],
    )
    def test_one_that_ends_the_worker_is_named(self, project: Project, code: str, error: str) -> None:
        project.listen("before_server_start", code)
        found = project.check("shop:app", "--get", "/")
        assert found.code == 1, found
        assert found.failed[0] == "before_server_start"
        assert error in found.failed[1]
        assert found.steps[-1] == "main_process_stop"

    @pytest.mark.parametrize("listener", STOP)
    def test_one_that_ends_a_process_in_its_stop_is_named(self, project: Project, listener: str) -> None:
        project.listen(listener, "os._exit(0)")
        found = project.check()
        assert found.code == 1, found
        assert found.failed == (listener, "the process ended with exit code 0 before this step was done")

    def test_one_that_blocks_is_shown(self, project: Project) -> None:
        project.listen("before_server_start", "subprocess.run(['sleep', '1000'])")
        found = project.check("shop:app", "--timeout", LIMIT)
        assert (found.code, found.failed[0]) == (3, "before_server_start")
        assert "in listens" in found.report["stacks"]

    def test_one_that_keeps_the_gil_is_shown_by_the_interpreter(self, project: Project) -> None:
        project.listen("before_server_start", "ctypes.PyDLL(None).pause()")
        found = project.check("shop:app", "--timeout", LIMIT)
        assert (found.code, found.failed[0]) == (3, "before_server_start")
        assert any("in listens" in line for line in found.report["output"])

    def test_one_that_blocks_the_loop_for_a_while_is_a_warning(self, project: Project) -> None:
        project.listen("after_server_start", "subprocess.run(['sleep', '1.1'])")
        found = project.check()
        assert found.code == 0, found
        assert found.warnings == []
        warning = r"after_server_start blocked the event loop for \d+\.\d s"
        assert any(re.fullmatch(warning, found) for found in found.report["warnings"])

    def test_the_limit_of_the_start_is_the_one_of_the_application(self, project: Project) -> None:
        code = "from worker import WorkerManager, WorkerProcess\n"
        code += f"WorkerManager.THRESHOLD = WorkerProcess.THRESHOLD = 10 * {LIMIT}\n"
        project.listen("before_server_start", "await waits_for_the_database()")
        (project.directory / "shop.py").write_text(code + (project.directory / "shop.py").read_text())
        assert project.check().failed == ("before_server_start", OVERRUN)

    def test_deprecations_and_forgotten_coroutines_are_warnings(self, project: Project) -> None:
        code = 'warnings.warn("old", DeprecationWarning); waits_for_the_database()'
        project.listen("before_server_start", code)
        found = project.check("shop:app", "--get", "/")
        assert found.code == 0, found
        warnings = "\n".join(found.report["warnings"])
        assert re.search(r"DeprecationWarning: old \(.*shop\.py:\d+\)", warnings)
        assert "coroutine 'waits_for_the_database' was never awaited" in warnings

    def test_errors_that_nothing_else_shows_are_warnings(self, project: Project) -> None:
        project.listen("before_server_start", f"app.add_task(fails())\n\nasync def fails():\n    {RAISE}")
        found = project.check("shop:app", "--get", "/boom", "--expect", "500")
        assert found.code == 0, found
        warnings = "\n".join(found.report["warnings"])
        assert "Task exception was never retrieved: RuntimeError: no database (shop.py:" in warnings
        assert "GET /boom has logged an error: ValueError: boom (shop.py:" in warnings

    def test_the_filters_of_the_user_hold(self, project: Project) -> None:
        project.listen("before_server_start", 'warnings.warn("old", DeprecationWarning)')
        found = project.check(PYTHONWARNINGS="error::DeprecationWarning:shop")
        assert found.code == 1
        assert found.failed[1].startswith("DeprecationWarning: old")

    @pytest.mark.parametrize("detach", ["os.setsid()", "pass"])
    def test_processes_that_stay_are_killed_and_named(self, project: Project, detach: str) -> None:
        code = f"""
    reader, writer = os.pipe()
    if not os.fork():
        {detach}
        os.write(writer, b"x")
        open("pid", "w").write(str(os.getpid()))
        os.close(writer)
        signal.pause()
    os.close(writer)
    while os.read(reader, 1): pass"""
        project.listen("before_server_start", code.lstrip())
        found = project.check()
        assert found.code == 0, found
        pid = int((project.directory / "pid").read_text())
        wait_for_end(pid)
        assert f"[{pid}]" in "".join(found.report["warnings"])
