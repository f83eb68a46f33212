"""Servers that are given their sockets, as by a service manager: the choice, and that none is passed on."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from signal import SIGTERM
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from integration.harness import Server
from integration.tools import free_port

pytestmark = pytest.mark.operations

# Binds the sockets of the environment, and becomes the server with them as its descriptors from 3 on.
# A negative port is one of IPv6.
LAUNCH = """
import fcntl, json, os, socket, sys

sockets = json.loads(os.environ.pop("SOCKETS"))
kept = []
for place in sockets.values():
    if isinstance(place, str):
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(place)
        sock.listen(50)
    elif place < 0:
        sock = socket.create_server(("::1", -place), family=socket.AF_INET6)
    else:
        sock = socket.create_server(("127.0.0.1", place))
    # Away from the numbers that it is to have.
    kept.append(fcntl.fcntl(sock.detach(), fcntl.F_DUPFD_CLOEXEC, 50))
os.closerange(3, 50)
for number, fd in enumerate(kept, 3):
    os.dup2(fd, number)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(kept)), LISTEN_FDNAMES=":".join(sockets))
os.execv(sys.argv[1], sys.argv[1:])
"""


def launched(arguments: list[str], sockets: Mapping[str, Any], cwd: Path, **options: Any) -> Server:
    command = [sys.executable, "-c", LAUNCH, sys.executable, *arguments]
    env = {"SOCKETS": json.dumps(dict(sockets)), **options.pop("env", {})}
    return Server(command, cwd=cwd, env=env, **options)


def run(target: str, *args: str) -> list[str]:
    return ["-m", "worker", target, "--workers=2", "--no-motd", *args]


def listening(pid: int) -> set[str]:
    """Return the sockets of a process that listen, by inode, as far as `/proc/net` shows them."""
    held = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            held.add(os.readlink(entry).removeprefix("socket:[").removesuffix("]"))
        except OSError:
            continue
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    return {fields[9] for fields in map(str.split, lines) if fields[3] == "0A"} & held


def test_the_given_socket_wins_over_the_address(tmp_path: Path) -> None:
    given, asked = free_port(), free_port()
    with launched(run("apps.rotated:app", f"--port={asked}"), {"web": given}, tmp_path, port=given) as server:
        server.wait_ready()
        server.wait_line(rf"listens on 127\.0\.0\.1:{given}, a socket .*in place of 127\.0\.0\.1:{asked}")
        with pytest.raises(ConnectionRefusedError):
            server.request("GET", "/whoami", port=asked)
        servers = {entry["pid"] for entry in server.settled(2).values()}
        for pid in server.processes():
            variables = Path(f"/proc/{pid}/environ").read_bytes() if pid != server.pid else b""
            assert b"LISTEN_" not in variables
            assert bool(listening(pid)) == (pid in servers or pid == server.pid)
        assert server.stop() == 0


def test_a_program_of_the_application_inherits_nothing(tmp_path: Path) -> None:
    script = r"""
        import subprocess, sys
        from sanic import Sanic
        import worker

        worker.install()
        app = Sanic("app")
        app.add_route(lambda request: None, "/")
        code = '''
        import glob, os
        names = ("LISTEN", "NOTIFY", "WATCHDOG")
        targets = [os.readlink(path) for path in glob.glob("/proc/self/fd/*") if os.path.lexists(path)]
        variables = [name for name in os.environ if name.startswith(names)]
        print("found", variables, [target for target in targets if "socket" in target], flush=True)
        '''

        @app.main_process_start
        async def start(app):
            subprocess.run([sys.executable, "-c", code], close_fds=False)

        if __name__ == "__main__":
            app.run(port=1, workers=1, motd=False)
        """
    (tmp_path / "script.py").write_text("\n".join(line[8:] for line in script.splitlines()))
    port = free_port()
    variables = {"NOTIFY_SOCKET": "/nonexistent/x", "WATCHDOG_USEC": "1000000"}
    with launched(["script.py"], {"web": port}, tmp_path, env=variables) as server:
        assert server.wait_line("^found").text == "found [] []"
        server.wait_line("runs 1 worker")
        assert server.stop() == 0


def test_a_unix_socket_is_used_and_its_file_stays(tmp_path: Path) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder, "socket")
        with launched(run("apps.rotated:app", f"--unix={path}"), {"web": str(path)}, tmp_path) as server:
            server.unix = path
            server.wait_ready()
            inode = path.stat().st_ino
            assert len(server.settled(2)) == 2
            server.stop(SIGTERM)
            assert path.stat().st_ino == inode
            server.unix = None


def test_a_unix_socket_takes_the_place_of_a_port(tmp_path: Path) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder, "socket")
        with launched(run("apps.rotated:app", "--port=1"), {"web": str(path)}, tmp_path) as server:
            server.unix = path
            server.wait_ready()
            server.stop(SIGTERM)
            server.unix = None


def test_each_of_two_applications_takes_its_socket(tmp_path: Path) -> None:
    """One by its address, one by its name."""
    first, second = free_port(), free_port()
    lines = ("from apps import pair", "import worker", "worker.install()", "if __name__ == '__main__':")
    (tmp_path / "script.py").write_text("\n".join((*lines, "    pair.serve()\n")))
    env = {"SECOND": "1"}
    sockets = {"second": second, "other": first}
    with launched(["script.py"], sockets, tmp_path, port=first, env=env) as server:
        server.wait_ready()
        assert server.get("/whoami", port=second)["m_name"]
        assert server.stop() == 0


def test_a_socket_that_no_application_uses_is_named_and_closed(tmp_path: Path) -> None:
    used, unused = free_port(), free_port()
    sockets = {"web": used, "other": unused}
    with launched(run("apps.rotated:app", f"--port={used}"), sockets, tmp_path, port=used) as server:
        server.wait_ready()
        server.wait_line("No application listens on the socket 'other'")
        # The address is the one that it was told: nothing is in place of it.
        server.wait_line(rf"listens on 127\.0\.0\.1:{used}, a socket of the service manager$")
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", unused)).close()
        assert server.stop() == 0


@pytest.mark.skipif(not Path("/proc/net/if_inet6").exists(), reason="this machine has no IPv6")
def test_a_socket_of_ipv6_is_at_its_address(tmp_path: Path) -> None:
    port = free_port()
    with launched(
        run("apps.rotated:app", "--host=::1", f"--port={port}"), {"web": -port}, tmp_path
    ) as server:
        server.wait_line(rf"listens on \[::1\]:{port}, a socket of the service manager$")
        server.wait_line("Worker ready")
        assert server.stop() == 0


def test_a_holder_of_the_socket_goes_on_after_the_server(tmp_path: Path) -> None:
    """As systemd does, whose socket unit starts the next server."""
    port = free_port()
    with launched(run("apps.rotated:app"), {"web": port}, tmp_path) as server:
        server.port = port
        server.wait_ready()
        # A second holder, which takes the descriptor from the server as only root or the same user may.
        pidfd = os.pidfd_open(server.pid)
        try:
            duplicate = getfd(pidfd, server.pid, port)
        finally:
            os.close(pidfd)
        with socket.socket(fileno=duplicate) as held:
            server.stop(SIGTERM)
            server.port = 0
            with socket.create_connection(("127.0.0.1", port)):
                held.accept()[0].close()


def getfd(pidfd: int, pid: int, port: int) -> int:
    """Duplicate the listening socket of another process."""
    import ctypes

    for entry in os.listdir(f"/proc/{pid}/fd"):
        target = ""
        # Another one may be closed by now.
        with suppress(FileNotFoundError):
            target = os.readlink(f"/proc/{pid}/fd/{entry}")
        if target.strip("socket:[]") in listening(pid):
            fd = ctypes.CDLL(None, use_errno=True).syscall(438, pidfd, int(entry), 0)
            if fd < 0:
                pytest.skip(f"pidfd_getfd: {os.strerror(ctypes.get_errno())}")
            return int(fd)
    raise AssertionError(f"no socket of {pid}")


def test_a_server_of_a_single_process_takes_the_socket(tmp_path: Path) -> None:
    port = free_port()
    arguments = ["-m", "worker", "apps.rotated:app", "--single-process", "--no-motd", "--port=1"]
    with launched(arguments, {"web": port}, tmp_path) as server:
        server.wait_line("listens on 127.0.0.1")
        with socket.create_connection(("127.0.0.1", port)):
            pass
        server.stop(SIGTERM)
