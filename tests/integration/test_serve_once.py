"""`Sanic.serve()` leaves nothing behind in the process that has called it."""

from __future__ import annotations

from pathlib import Path

import pytest

from .tools import free_port, run_python

pytestmark = pytest.mark.ours

SCRIPT = """
import os, signal, sys
import worker
from sanic import Sanic

worker.install()
SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU]

def mine(*args): ...

def dispositions():
    wakeup = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(wakeup)
    return [wakeup, *map(signal.getsignal, SIGNALS)]

app = Sanic("once")

app.add_route(mine, "/")

@app.after_server_start
async def stop(app):
    app.m.terminate()

@app.main_process_ready
async def note(app):
    during.append(dispositions())

if __name__ == "__main__":
    during = []
    if sys.argv[1] == "own":
        for signum in SIGNALS:
            signal.signal(signum, mine)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    before = dispositions()
    app.run(host="127.0.0.1", port=int(os.environ["PORT"]), workers=1, motd=False)
    assert all(one != two for one, two in zip(before[1:3], during[0][1:3]))
    assert dispositions() == before, (before, dispositions())
    print("given back")
"""


@pytest.mark.parametrize("handlers", ["own", "default"])
def test_signals_have_the_handlers_from_before(handlers: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    ended = run_python(str(script), handlers, cwd=tmp_path, env={"PORT": str(free_port())})
    assert ended.stdout.splitlines()[-1:] == ["given back"], ended.stderr
