"""Install one artefact of ``dist/`` into an empty environment and check that it serves.

``smoke.py PATH``: everything happens in a temporary folder, so that nothing of the checkout can help. A wheel
is installed as it is; an sdist is built first, as it would be for a user. An sdist must also hold the
documentation and all files that the tests read.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.request
from pathlib import Path

from environments import INTERPRETER, ROOT, clean_environment

PATIENCE = 60.0
EXIT_PATIENCE = 30.0
WORKERS = 2
NOT_IN_SDIST = {".ci", ".github", ".gitignore", ".pre-commit-config.yaml", "benches", "fuzz"}
"""Files that only the repository needs. An sdist holds everything else that git tracks."""
CHECK = """
import worker
from worker._inspect.page import document

print(worker.__file__, info := worker.core_info())
assert info.core == "native"
assert document().body.rstrip().endswith(b"</html>")
"""


def missing_files(sdist: Path) -> list[str]:
    """Return the files of the checkout that the sdist should hold and does not."""
    with tarfile.open(sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    tracked = subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT, text=True).split("\0")[:-1]
    return [name for name in tracked if name.partition("/")[0] not in NOT_IN_SDIST and name not in held]


def free_port() -> int:
    """Return a TCP port that is free at the moment."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


def answering_pid(port: int) -> int | None:
    """Return the pid of the worker that answers a request, or None while there is no answer."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as response:
            pid: int = json.load(response)["pid"]
            return pid
    except OSError:
        return None


def is_running(pid: int) -> bool:
    """Whether there is a process of that pid."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def serve(command: list[str], folder: Path, environment: dict[str, str], port: int) -> None:
    """Start the server, get an answer from each worker, stop it; :class:`SystemExit` names the failure."""
    server = subprocess.Popen(command, cwd=folder, env=environment)
    pids: set[int] = set()
    try:
        deadline = time.monotonic() + PATIENCE
        while len(pids) < WORKERS:
            if server.poll() is not None:
                raise SystemExit(f"the server ended with {server.returncode} before it was told to")
            if time.monotonic() > deadline:
                raise SystemExit(f"{len(pids)} of {WORKERS} workers answered within {PATIENCE:.0f} s")
            pid = answering_pid(port)
            if pid is None:
                time.sleep(0.1)
            else:
                pids.add(pid)
        server.send_signal(signal.SIGTERM)
        code = server.wait(EXIT_PATIENCE)
    finally:
        if server.poll() is None:
            server.kill()
            server.wait()
    if code != 0:
        raise SystemExit(f"the server ended with {code} at SIGTERM")
    if left := [pid for pid in pids if is_running(pid)]:
        raise SystemExit(f"workers {left} outlived the server")


def main() -> int:
    """Try the artefact that ``sys.argv[1]`` names; return the exit code."""
    artefact = Path(sys.argv[1]).resolve()
    print(f"=== {artefact.name}", flush=True)
    if artefact.suffix == ".gz" and (missing := missing_files(artefact)):
        raise SystemExit(f"{artefact.name} lacks {', '.join(missing)}")
    with tempfile.TemporaryDirectory(prefix="sanic-worker-") as temporary:
        folder = Path(temporary)
        binaries = folder / "venv" / "bin"
        environment = clean_environment()
        environment.pop("WORKER_CORE", None)
        subprocess.run([INTERPRETER, "-m", "venv", folder / "venv"], check=True)
        commands: list[list[str | Path]] = [
            [binaries / "python", "-m", "pip", "install", "--quiet", artefact],
            [binaries / "python", "-c", CHECK],
            [binaries / "sanic-worker", "--version"],
        ]
        for command in commands:
            subprocess.run(command, check=True, cwd=folder, env=environment)
        shutil.copy(ROOT / "examples" / "hello.py", folder)
        port = free_port()
        options = ["--host", "127.0.0.1", "--port", str(port), "--workers", str(WORKERS)]
        serve([str(binaries / "sanic-worker"), "hello:app", *options], folder, environment, port)
    print(f"{artefact.name}: installed, {WORKERS} workers answered, stopped with 0")
    return 0


if __name__ == "__main__":
    sys.exit(main())
