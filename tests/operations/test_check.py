"""`sanic-worker check` on good applications of each form: its steps, its requests, its report, its end."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.checking import (
    HEALTH,
    LIMIT,
    LISTENERS,
    MAIN,
    OVERRUN,
    RAISE,
    SHOP,
    STOP,
    TIMEOUT,
    WORKER,
    Project,
)
from support.running import lives, until, wait_for_end

pytestmark = [pytest.mark.operations, pytest.mark.slow]

PAGE = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
SECTION = PAGE.partition("### Check it first")[2].partition("\n### ")[0]


@pytest.fixture
def project(tmp_path: Path) -> Project:
    found = Project(tmp_path)
    found.write(SHOP)
    return found


class TestGoodApplications:
    @pytest.mark.parametrize(
        ("args", "code"),
        [
            (["shop:app"], ""),
            (["shop.app"], ""),
            (["shop"], ""),
            (["shop:create_app"], "def create_app(): return app"),
            (["shop:create_app()"], "def create_app(args): return app"),
            (["shop:Factory", "--factory"], "class Factory:\n    def __new__(cls, args): return app"),
            (["--workers", "3", "-H", "0.0.0.0", "shop:app"], ""),
            (["shop:app", "--fast", "--reload", "--reload-dir", ".", "--max-surge=2", "--no-motd"], ""),
            (["shop:app", "--dev"], ""),
            (["shop:app"], 'Sanic.start_method = "fork"'),
            (["shop:app"], 'Sanic.start_method = "forkserver"'),
            (["shop:app"], "app.config.INSPECTOR = True"),
            (["shop:app"], "app.config.USE_UVLOOP = False"),
        ],
    )
    def test_each_form_starts_and_stops(self, project: Project, args: list[str], code: str) -> None:
        project.write(f"{SHOP}\n{code}\n")
        found = project.check(*args, "--get", "/health")
        assert found.code == 0, found
        assert found.steps == [*MAIN, *WORKER, "GET /health", *STOP]
        (request,) = found.report["requests"]
        assert (request["status"], request["ok"]) == (200, True)
        assert found.warnings == []

    def test_a_directory_is_served(self, project: Project) -> None:
        for args in (["./"], [".", "--simple"]):
            found = project.check(*args, "--get", "/shop.py")
            assert found.code == 0, found
            assert found.report["requests"][0]["bytes"] == len(SHOP)

    def test_a_server_of_a_single_process_has_no_main_process(self, project: Project) -> None:
        found = project.check("shop:app", "--single-process", "--get", "/")
        assert found.code == 0, found
        assert found.steps == [*MAIN[:3], *WORKER[1:], "GET /", *STOP[:2]]

    def test_all_applications_of_a_server_start(self, project: Project) -> None:
        second = """
other = Sanic("other")
other.add_route(root, "/")
@other.after_server_start
async def starts(*_): {}
@app.main_process_start
async def prepares(*_): other.prepare(port=1)
"""
        project.write(SHOP + second.format("pass"))
        found = project.check()
        assert found.code == 0, found
        assert {f"{step} (other)" for step in WORKER[1:-1]} < set(found.steps)
        assert found.steps.index("ready") > found.steps.index("before_server_start (other)")
        project.write(SHOP + second.format(RAISE))
        found = project.check("shop:app", "--get", "/")
        assert found.code == 1
        assert found.failed[0] == "after_server_start (other)"
        assert found.report["requests"] == []

    def test_the_listeners_run_in_the_order_and_the_processes_of_a_server(self, project: Project) -> None:
        code = "".join(
            f"\n@app.{name}\nasync def {name}(*_): print('ran {name}', os.getpid(), file=open('log', 'a'))\n"
            for name in LISTENERS
        )
        project.write(SHOP + code)
        assert project.check("shop:app", "--workers", "4").code == 0
        lines = [line.split() for line in (project.directory / "log").read_text().splitlines()]
        assert [name for _, name, _ in lines] == LISTENERS
        of_main = {pid for _, name, pid in lines if name.startswith("main_process")}
        of_worker = {pid for _, name, pid in lines if "server" in name}
        assert (len(of_main), len(of_worker), len(of_main | of_worker)) == (1, 1, 2)

    def test_an_address_in_use_is_not_touched(self, project: Project) -> None:
        path = str(project.directory / "socket")
        with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as unix:
            unix.bind(path)
            unix.listen()
            assert project.check("shop:app", "--port", str(tcp.getsockname()[1])).code == 0
            assert project.check("shop:app", "--unix", path, "--get", "/health").code == 0
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(path)

    def test_no_file_is_left_behind(self, project: Project) -> None:
        assert project.check(TMPDIR=str(project.directory)).code == 0
        assert os.listdir(project.directory) == ["shop.py"]

    def test_the_pid_file_of_the_server_in_use_stays(self, project: Project) -> None:
        file = project.directory / "pid"
        file.write_text(f"{os.getpid()}\n")
        assert project.check("shop:app", "--pid-file", str(file)).code == 0
        assert file.read_text() == f"{os.getpid()}\n"

    def test_the_group_is_changed_where_the_server_does(self, project: Project) -> None:
        if os.getuid():
            pytest.skip("only root can change its group")
        project.listen("before_server_start", "open('group', 'w').write(str(os.getgid()))")
        found = project.check("shop:app", "--group", "65534", "--get", "/")
        assert found.code == 0, found
        assert found.steps == [*MAIN[:4], "user", *MAIN[4:], *WORKER, "GET /", *STOP]
        assert (project.directory / "group").read_text() == "65534"

    def test_an_unknown_user_is_a_finding(self, project: Project) -> None:
        found = project.check("shop:app", "--user", "no-such-user")
        assert (found.code, found.failed[0]) == (2, "user")
        assert "no-such-user" in found.failed[1]

    def test_the_environment_is_not_in_the_report(self, project: Project) -> None:
        project.listen("before_server_start", RAISE)
        done = project.run("shop:app", "--json", SHOP_PASSWORD="tr0ub4dor")
        assert done.returncode == 1
        assert b"tr0ub4dor" not in done.stdout

    def test_the_processes_of_the_application_get_no_sign_of_the_check(self, project: Project) -> None:
        project.listen("before_server_start", 'assert "SANIC_WORKER_CHECK" not in os.environ; app.m.workers')
        found = project.check()
        assert found.code == 0, found
        assert set(found.report["versions"]) == {"python", "sanic", "sanic_worker", "core"}

    def test_processes_of_the_manager_are_not_started(self, project: Project) -> None:
        project.listen("main_process_ready", 'app.manager.manage("Job", os.mkdir, {"path": "ran"})')
        assert project.check().code == 0
        assert not (project.directory / "ran").exists()

    def test_commands_to_the_main_process_have_no_effect(self, project: Project) -> None:
        code = "app.m.restart(); app.m.scale(5); app.m.manage('Job', print, {}); app.m.terminate()"
        project.listen("before_server_start", code)
        found = project.check("shop:app", "--get", "/")
        assert found.code == 0, found
        assert found.steps == [*MAIN, *WORKER, "GET /", *STOP]
        warnings = "\n".join(found.report["warnings"])
        for command in ("'Sanic-Server-0-0:'", "'__SCALE__:5'", "'Job'", "'__TERMINATE__'"):
            assert f"without effect: {command}" in warnings.replace("without effect: (", "without effect: ")

    def test_an_application_may_bind_ports_and_has_background_tasks(self, project: Project) -> None:
        code = 'await asyncio.start_server(print, "127.0.0.1", 0); app.add_task(waits_for_the_database())'
        project.listen("before_server_start", code)
        assert project.check("shop:app", "--get", "/").code == 0

    def test_http_3_starts_on_a_free_port(self, project: Project) -> None:
        pytest.importorskip("aioquic")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as used:
            used.bind(("127.0.0.1", 0))
            found = project.check(
                "shop:app", "-3", "--port", str(used.getsockname()[1]), *project.write_certificate()
            )
        assert found.code == 0, found


class TestRequests:
    def test_each_one_is_reported(self, project: Project) -> None:
        args = ("--get", "/", "--get", "/health", "--header", "X-Test: a b", "--header", "Host: shop.example")
        found = project.check("shop:app", *args)
        assert found.code == 0, found
        first, second = found.report["requests"]
        assert (first["path"], first["status"], first["bytes"], first["ok"]) == ("/", 200, 5, True)
        shown = json.dumps(
            {"ok": True, "ip": "127.0.0.1", "host": "shop.example", "x": "a b"}, separators=(",", ":")
        )
        assert second["bytes"] == len(shown)
        assert 0 < second["seconds"] < TIMEOUT

    def test_the_status_that_is_expected_counts(self, project: Project) -> None:
        assert project.check("shop:app", "--get", "/nowhere", "--expect", "404").code == 0
        found = project.check("shop:app", "--get", "/nowhere")
        assert (found.code, found.failed) == (1, ("GET /nowhere", "status 404 instead of one below 400"))
        found = project.check("shop:app", "--get", "/", "--expect", "204")
        assert found.failed == ("GET /", "status 200 instead of 204")
        # The worker stops in order after that.
        assert found.steps[-3:] == STOP

    def test_an_error_of_a_handler_has_its_traceback(self, project: Project) -> None:
        found = project.check("shop:app", "--get", "/", "--get", "/boom")
        assert found.code == 1, found
        step, error = found.failed
        assert step == "GET /boom"
        assert error.startswith("status 500 instead of one below 400: ValueError: boom (shop.py:")
        assert [request["ok"] for request in found.report["requests"]] == [True, False]
        (failed,) = [step for step in found.report["steps"] if not step["ok"]]
        assert failed["traceback"].endswith("ValueError: boom\n")

    def test_a_request_without_a_response_is_a_finding(self, project: Project) -> None:
        found = project.check("shop:app", "--get", "/gone")
        assert (found.code, found.failed[0]) == (1, "GET /gone")
        assert "no response: RemoteDisconnected" in found.failed[1]

    def test_a_request_that_hangs_is_shown(self, project: Project) -> None:
        found = project.check("shop:app", "--get", "/hang", "--timeout", LIMIT)
        assert (found.code, found.failed) == (3, ("GET /hang", OVERRUN))
        assert "in hang" in found.report["stacks"]
        assert re.search(r"GET /hang, for \d+\.\d s", found.report["stacks"])

    def test_tls_is_spoken(self, project: Project) -> None:
        code = "\n@app.get('/tls')\nasync def tls(request): return text(f'{request.scheme}')\n"
        project.write(SHOP + code)
        found = project.check("shop:app", *project.write_certificate(), "--get", "/tls")
        assert found.code == 0, found
        assert found.report["requests"][0]["bytes"] == len("https")


class TestImports:
    def test_the_longest_are_listed(self, project: Project) -> None:
        package = project.directory / "parts"
        package.mkdir()
        for number in range(12):
            (package / f"part{number}.py").write_text("import time\ntime.thread_time()\n")
        # Longer than all the others, however slow they are here.
        (package / "__init__.py").write_text("import time\nbegan = time.monotonic()\n")
        code = "import subprocess, time\nfrom parts import began\n"
        code += "subprocess.run(['sleep', str(0.3 + time.monotonic() - began)])\n"
        (package / "long.py").write_text(code)
        parts = "".join(f"import parts.part{n}\n" for n in range(12))
        project.write(f"import parts\n{SHOP}\n{parts}import parts.long\n")
        found = project.check("shop:app", "--imports")
        assert found.code == 0, found
        imports = found.report["imports"]
        assert len(imports["longest"]) == 10
        assert imports["longest"][0]["name"] == "parts.long"
        assert 0.3 <= imports["longest"][0]["own"] <= imports["seconds"]
        assert imports["count"] >= 14
        names = [one["name"] for one in imports["longest"]]
        assert not any(name.startswith(("sanic", "worker", "encodings")) for name in names)
        done = project.run("shop:app", "--imports")
        shown = re.search(r"^ +(\S+) (m?)s +\S+ m?s  parts\.long$", done.stdout.decode(), re.MULTILINE)
        assert shown is not None, done.stdout
        assert float(shown[1]) >= (300 if shown[2] else 0.3)

    def test_they_are_not_in_the_output(self, project: Project) -> None:
        project.listen("before_server_start", RAISE)
        found = project.check("shop:app", "--imports")
        assert found.code == 1
        assert not any("import time:" in line for line in found.report["output"])


class TestOutput:
    def test_text_names_the_step_and_the_error(self, project: Project) -> None:
        project.listen("before_server_start", RAISE)
        done = project.run("shop:app")
        assert (done.returncode, done.stderr) == (1, b"")
        lines = done.stdout.decode().splitlines()
        assert [line.split()[0] for line in lines[:9]] == ["ok"] * 8 + ["FAIL"]
        assert re.fullmatch(r"FAIL  before_server_start +\S+ m?s  RuntimeError: no database \(.*\)", lines[8])
        assert re.fullmatch(
            r"sanic-worker: shop:app fails in before_server_start: RuntimeError: no database \(shop.py:\d+\)",
            lines[-1],
        )
        assert lines.count("  Traceback (most recent call last):") == 1

    def test_a_mistake_is_one_line_beside_its_step(self, project: Project) -> None:
        done = project.run("shop:nothing")
        assert done.returncode == 2
        assert done.stdout.decode().splitlines()[-1].startswith("sanic-worker: shop has no nothing.")
        assert b"Traceback" not in done.stdout

    @pytest.mark.parametrize(
        "code",
        [
            "for _ in range(20_000): print('y' * 1000)",
            "os.write(1, bytes(range(256)) * 100 + b'\\n')",
            "sys.stdout.write('x' * 5_000_000)",
        ],
    )
    def test_much_output_and_bytes_are_no_obstacle(self, project: Project, code: str) -> None:
        project.listen("before_server_start", f"{code}\n    {RAISE}")
        found = project.check()
        assert (found.code, found.failed[0]) == (1, "before_server_start")
        assert max(map(len, found.report["output"])) <= 1000
        assert len(found.text) < 200_000

    def test_a_reader_that_leaves_ends_the_check(self, project: Project) -> None:
        # The check does not end before its reader.
        code = 'while not os.path.exists("left"): await asyncio.wait([asyncio.Future()], timeout=0.01)'
        project.listen("before_server_start", code)
        command = shlex.join(project.command("shop:app"))
        done = subprocess.run(
            ["bash", "-c", f"{command} | {{ head -1; exec <&-; touch left; }}; exit ${{PIPESTATUS[0]}}"],
            cwd=project.directory,
            env=project.environment(),
            capture_output=True,
            timeout=TIMEOUT,
            check=False,
        )
        assert done.stdout.startswith(b"ok    settings")
        assert (done.returncode, done.stderr) == (1, b"")


class TestInterruption:
    @pytest.fixture
    def running(self, project: Project) -> Iterator[tuple[subprocess.Popen[bytes], list[int]]]:
        """Return a check whose worker hangs, and the pids of worker and main process."""
        code = "open('pids', 'w').write(f'{os.getpid()} {os.getppid()}\\n'); await waits_for_the_database()"
        project.listen("before_server_start", code)
        with subprocess.Popen(
            project.command("shop:app"),
            cwd=project.directory,
            env=project.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        ) as process:
            file = project.directory / "pids"
            until(lambda: file.exists() and file.read_text().endswith("\n"), "the listener")
            pids = [int(pid) for pid in file.read_text().split()]
            assert all(map(lives, pids))
            yield process, pids
            for pid in pids:
                wait_for_end(pid)

    @pytest.mark.parametrize(
        ("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
    )
    def test_a_signal_ends_all_processes(
        self, running: tuple[subprocess.Popen[bytes], list[int]], signum: int, code: int
    ) -> None:
        process, pids = running
        process.send_signal(signum)
        output, _ = process.communicate(timeout=TIMEOUT)
        assert process.returncode == code
        assert b"Traceback" not in output
        assert not any(map(lives, pids))

    def test_no_process_outlives_a_killed_command(
        self, running: tuple[subprocess.Popen[bytes], list[int]]
    ) -> None:
        process, _ = running
        process.kill()
        process.communicate(timeout=TIMEOUT)


class TestPage:
    """The examples of docs/operations.md, on an application of the name that they use."""

    @pytest.fixture
    def shell(self, project: Project) -> dict[str, str]:
        folder = project.directory / "bin"
        folder.mkdir()
        script = folder / "sanic-worker"
        script.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m worker "$@"\n')
        script.chmod(0o755)
        (folder / "python").symlink_to(sys.executable)
        path = os.pathsep.join([str(folder), os.environ["PATH"]])
        project.write(SHOP.replace(HEALTH, '{"ok": True}'))
        return project.environment(PATH=path)

    def run(self, project: Project, shell: dict[str, str], script: str) -> str:
        done = subprocess.run(
            ["sh", "-ec", script],
            cwd=project.directory,
            env=shell,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )
        assert done.returncode == 0, done
        return done.stdout

    def test_the_first_example_prints_that(self, project: Project, shell: dict[str, str]) -> None:
        (block,) = re.findall(r"^```console\n\$ (.*)\n((?:.*\n)*?)```$", SECTION, re.MULTILINE)

        def normal(shown: str) -> list[str]:
            return [re.sub(r"\d+(\.\d+)? m?s\b", "T", re.sub(" +", " ", line)) for line in shown.splitlines()]

        assert normal(self.run(project, shell, block[0])) == normal(block[1])

    def test_the_example_for_ci_runs(self, project: Project, shell: dict[str, str]) -> None:
        (block,) = re.findall(r"^  run: \|\n((?:    .*\n)+)", SECTION, re.MULTILINE)
        self.run(project, shell, "".join(line[4:] for line in block.splitlines(keepends=True)))
        report = json.loads((project.directory / "check.json").read_text())
        described = SECTION.partition("The object has ")[2].partition("nothing of the environment")[0]
        assert set(report) == set(re.findall(r"`(\w+)`", described)) - {"name", "traceback"}
        assert set(report["steps"][0]) == {"name", "ok", "seconds", "error", "traceback"}
