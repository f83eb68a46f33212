"""The preload process over a long time, and how it begins and ends with a server."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from integration.tools import free_port, wait_until
from support import targets
from support.preload_processes import children_of, descriptors_of, end, ready, start
from support.running import lives, python, until

from worker._spawn.popen import tracker_fd

from .upgrading import Upgraded, write

pytestmark = pytest.mark.operations

SCRIPT = """
import json
import os
import sys
from pathlib import Path

import worker

worker.install(**json.loads(sys.argv[3]))

from sanic import Sanic

from worker._child.bootstrap import main_pid
from worker._spawn.preload.preloads import preloads

Sanic.start_method = sys.argv[1]
app = Sanic("started")


def preload_processes() -> int:
    pid = main_pid()
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    # A program that has just begun has no command line yet.
    while not all(commands := [Path(f"/proc/{child}/cmdline").read_text() for child in children]):
        pass
    return sum("preload" in command for command in commands)


@app.get("/")
async def root(request): ...


@app.after_server_start
async def show(app):
    print("serving:", preload_processes(), flush=True)
    app.stop()


if __name__ == "__main__":
    print("before:", preload_processes(), flush=True)
    app.run("127.0.0.1", int(sys.argv[4]), motd=False, **json.loads(sys.argv[2]))
"""


def test_leaves_no_descriptor_and_no_zombie() -> None:
    process = ready()
    # The first child lets the preload process import what only a child needs.
    assert end(start(targets.nothing)) == 0
    # Its next answer shows that it has closed what belongs to that child.
    assert process.changed_file() == ""
    before = descriptors_of(process.pid), descriptors_of(os.getpid())
    for _ in range(200):
        pid, *ends = process.fork([tracker_fd()])
        # Without its data, the child exits at once.
        os.close(ends.pop())
        assert process.read_number(ends[0]) == 1
        os.close(ends.pop())
        assert not lives(pid)
    until(
        lambda: (descriptors_of(process.pid), descriptors_of(os.getpid())) == before,
        "as many descriptors as before",
    )
    assert children_of(process.pid) == []
    # With all of the framework imported.
    assert os.listdir(f"/proc/{process.pid}/task") == [str(process.pid)]


@pytest.mark.parametrize(
    ("method", "options", "settings", "numbers"),
    [
        ("spawn", "{}", "{}", ["1", "1"]),
        ("forkserver", "{}", '{"preload": "off"}', ["0", "1"]),
        ("fork", "{}", "{}", ["1", "0"]),
        ("spawn", '{"single_process": true}', "{}", ["1", "0"]),
        ("spawn", "{}", '{"preload": "off"}', ["0", "0"]),
    ],
)
def test_a_script_has_one_when_it_serves_if_workers_can_be_forked_from_it(
    method: str, options: str, settings: str, numbers: list[str], tmp_path: Path
) -> None:
    done = python(SCRIPT, method, options, settings, str(free_port()), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.findall(r"^(?:before|serving): (\d)$", done.stdout, re.MULTILINE) == numbers


@pytest.mark.parametrize("preload", ["off", "framework", "app"])
def test_a_script_without_a_guard_is_told_so(preload: str, tmp_path: Path) -> None:
    script = SCRIPT.replace('if __name__ == "__main__":', "if True:")
    done = python(script, "spawn", "{}", f'{{"preload": "{preload}"}}', str(free_port()), cwd=tmp_path)
    assert done.returncode == 1
    assert "It exited while it imported the script that was run." in done.stderr + done.stdout
    assert "serving" not in done.stdout


@pytest.mark.timeout(400)
def test_twenty_upgrades_leave_as_many_processes_and_descriptors(tmp_path: Path) -> None:
    write(tmp_path, 1)

    def look(server: Upgraded) -> list[int]:
        """Return the descriptors of the main and of the preload process, once the others have ended."""

        def preloads() -> list[int]:
            # Beside them: two servers and the resource tracker.
            found = server.processes()
            # One that still imports has no title.
            titled = [pid for pid, line in found.items() if line.endswith("preload process")]
            return titled if len(found) == 5 else []

        (preload,) = wait_until(preloads, "five processes", 60)
        # It has one more for each child. Servers are spawned where it was not ready in time.
        children = len(children_of(preload))
        return [descriptors_of(server.main), descriptors_of(preload) - children]

    with Upgraded.run("upgraded:app", cwd=tmp_path) as server:
        server.wait_ready().settled(2)
        server.upgrade()
        before = look(server)
        for _ in range(20):
            server.upgrade()
        assert look(server) == before
        assert server.stop() == 0
