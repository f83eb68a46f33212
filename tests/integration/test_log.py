"""The log of a plain start and stop: the lines of this package are few, and one of them names the manager."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import pytest
import sanic

from .harness import Server
from .tools import HERE, free_port, wait_until

pytestmark = pytest.mark.ours

HELLO = (HERE.parents[1] / "examples" / "hello.py").read_text()
# Sanic sets its handlers of signals late: before that a stop ends a process at once, without its last lines.
RUNNING = """
from sanic.worker.inspector import Inspector

class Watched(Inspector):
    def _state_to_json(self):
        return {**super()._state_to_json(), "running": bool(self.app.state.is_running)}

app.inspector_class = Watched
app.config.INSPECTOR_PORT = int(os.environ["INSPECTED"])

@app.get("/running")
async def running(_request):
    return json({"pid": os.getpid(), "running": bool(app.state.is_running)})
"""
OWN = """
import worker
from sanic import Sanic, empty

worker.install()
app = Sanic("own")
app.add_route(lambda request: empty(200), "/")
"""
MANAGER = r"sanic-worker (\d\S*|unknown) \((native|pure) core\) runs "


def start(
    folder: Path, target: str, *arguments: str, module: str = "worker", env: Mapping[str, str] | None = None
) -> Server:
    port = free_port()
    address = ["--host=127.0.0.1", f"--port={port}", "--no-motd"]
    return Server(
        [sys.executable, "-m", module, target, *address, *arguments], cwd=folder, port=port, env=env
    )


def lines(server: Server) -> list[str]:
    """Return all lines, without their beginnings, which differ between the releases, and without pids.

    The one of a preload process that is late, on a slow machine, is left out.
    """
    found = []
    for line in server.log().splitlines():
        match = re.fullmatch(r".*?(?:\] \[|\+0000 )INFO(?:\] |: )(.*)", line)
        # An access log belongs to the requests of the test.
        if "sanic.access" not in line and not re.search(
            r"(GET|POST) http|preload process .* not ready yet", line
        ):
            assert match, line
            found.append(re.sub(r"\[\d+\]", "[*]", match[1]))
    return found


def named(found: Sequence[str]) -> list[str]:
    return [line for line in found if "sanic-worker" in line]


def test_lines_of_two_workers_and_an_inspector(tmp_path: Path) -> None:
    port = free_port()
    main = '\nif __name__ == "__main__":'
    (tmp_path / "hello.py").write_text(HELLO.replace(main, RUNNING + main))
    with start(tmp_path, "hello:app", "--workers=2", env={"INSPECTED": str(port)}) as server:
        running: set[int] = set()

        def all_run() -> bool:
            with suppress(OSError):
                answer = server.get("/running")
                running.update([answer["pid"]] if answer["running"] else [])
                return len(running) == 2 and bool(server.get("/", port=port)["result"]["running"])
            return False

        wait_until(all_run, "the servers and the inspector to run")
        assert server.stop() == 0
        found = lines(server)
    ready = ["Worker ready [*]"] * 3 if sanic.__version__ >= "25" else []
    (manager,) = named(found)
    assert re.fullmatch(f"{MANAGER}2 workers, inspector on http://localhost:{port}", manager)
    assert Counter(found) == Counter(
        [
            manager,
            *["Starting worker [*]"] * 3,
            *ready,
            "Received signal SIGTERM. Shutting down.",
            *["Stopping worker [*]"] * 3,
            *["Worker complete [*]"] * 3,
            # One is the inspector's.
            *["Server Stopped"] * 2,
        ]
    )


def test_the_manager_is_named_under_the_sanic_command(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    with start(tmp_path, "own:app", module="sanic") as server:
        server.wait_ready("/")
        assert server.stop() == 0
        (manager,) = named(lines(server))
    assert re.fullmatch(f"{MANAGER}1 worker", manager)


def test_an_inspector_that_is_not_started_is_not_named(tmp_path: Path) -> None:
    (tmp_path / "hello.py").write_text(
        HELLO.replace("INSPECTOR = True", "INSPECTOR = True\napp.config.INSPECTOR_HOST = '0.0.0.0'")
    )
    with start(tmp_path, "hello:app", "--workers=2") as server:
        server.wait_ready("/")
        assert server.stop() == 0
        said = [line for line in server.log().splitlines() if re.search("sanic-worker|Inspector not", line)]
    assert len(said) == 2
    assert any(line.endswith("runs 2 workers") for line in said)


@pytest.mark.skipif(sanic.__version__ < "24.12", reason="this Sanic has no formatter that shows all fields")
@pytest.mark.parametrize("is_json", [False, True], ids=["text", "json"])
def test_fields_of_an_event_are_logged_as_json_alone(is_json: bool, tmp_path: Path) -> None:
    config = OWN.replace(
        "app = Sanic(",
        """from sanic.log import LOGGING_CONFIG_DEFAULTS
LOGGING_CONFIG_DEFAULTS["formatters"]["generic"] = {"class": "sanic.logging.formatter.JSONFormatter"}
app = Sanic(""",
    )
    (tmp_path / "own.py").write_text(
        f"import os, sanic\n{config if is_json else OWN}\n"
        "app.add_route(lambda request: sanic.json(os.getpid()), '/pid', name='pid')\n"
    )
    with start(tmp_path, "own:app") as server:
        server.wait_ready("/")
        pid = server.get("/pid")
        os.kill(pid, signal.SIGKILL)
        line = server.wait_line("was killed by SIGKILL")
        assert server.stop() == 0
        if is_json:
            fields = json.loads(line.text)
            assert (fields["slot"], fields["pid"], fields["signal"]) == ("Sanic-Server-0-0", pid, "SIGKILL")
            assert fields["exit_code"] is None
            assert {"uptime", "attempt", "next_restart_in"} <= fields.keys()
        else:
            assert "next_restart_in" not in server.log()


def test_a_single_process_has_no_manager(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(f"{OWN}\napp.after_server_start(lambda app: app.stop())\n")
    with start(tmp_path, "own:app", "--single-process") as server:
        assert server.wait() == 0
        assert "core) runs" not in server.log()
