"""Runs `sanic-worker check` on an application of a test."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import trustme

from support.running import environment

TIMEOUT = 60.0
# The limit of a step that does not end, seconds. The steps before it are done in this time on any machine.
LIMIT = "5"
OVERRUN = f"not done within {LIMIT} s"
MAIN = ["settings", "import", "prepare", "main_process_start", "main_process_ready", "start of the worker"]
WORKER = ["import (worker)", "routes", "before_server_start", "after_server_start", "ready"]
STOP = ["before_server_stop", "after_server_stop", "main_process_stop"]
LISTENERS = ["main_process_start", "main_process_ready", "before_server_start", "after_server_start", *STOP]

HEALTH = '{"ok": True, "ip": request.ip, "host": request.host, "x": request.headers.get("x-test")}'
SHOP = f"""
import asyncio, ctypes, os, signal, subprocess, sys, time, warnings
from sanic import Sanic, json, text

app = Sanic("shop")

@app.get("/")
async def root(request):
    return text("hello")

@app.get("/health")
async def health(request):
    return json({HEALTH})

@app.get("/boom")
async def boom(request):
    raise ValueError("boom")

@app.get("/hang")
async def hang(request):
    await asyncio.Event().wait()

@app.get("/gone")
async def gone(request):
    request.transport.abort()
    return text("")
"""
LISTENER = """
async def waits_for_the_database():
    await asyncio.Event().wait()

@app.{listener}
async def listens(*_):
    {code}
"""
RAISE = 'raise RuntimeError("no database")'


class Checked:
    """The result of a check: its exit code, and its report."""

    def __init__(self, done: subprocess.CompletedProcess[bytes]) -> None:
        assert done.stderr == b"", done.stderr
        self.code = done.returncode
        self.text = done.stdout.decode()
        self.report: dict[str, Any] = json.loads(self.text)
        assert self.report["exit_code"] == self.code
        assert self.report["ok"] is (self.code == 0)
        assert bool(self.report["output"]) <= (self.code != 0)

    def __repr__(self) -> str:
        return self.text

    @property
    def steps(self) -> list[str]:
        return [step["name"] for step in self.report["steps"]]

    @property
    def warnings(self) -> list[str]:
        """The warnings but those of a step that took long: the machine may have been busy."""
        return [one for one in self.report["warnings"] if "blocked the event loop" not in one]

    @property
    def failed(self) -> tuple[str, str]:
        return self.report["failed"], self.report["error"]


class Project:
    """A directory with an application."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def write(self, code: str, name: str = "shop.py") -> None:
        (self.directory / name).write_text(code)

    def listen(self, listener: str, code: str) -> None:
        self.write(SHOP + LISTENER.format(listener=listener, code=code))

    def command(self, *args: str) -> list[str]:
        return [sys.executable, "-m", "worker", "check", *args]

    def environment(self, **env: str) -> dict[str, str]:
        return environment({"SANIC_NO_COLOR": "true", "PYTHONDONTWRITEBYTECODE": "1", **env})

    def run(self, *args: str, **env: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            self.command(*args),
            cwd=self.directory,
            env=self.environment(**env),
            capture_output=True,
            timeout=TIMEOUT,
            check=False,
        )

    def check(self, *args: str, **env: str) -> Checked:
        return Checked(self.run(*(args or ("shop:app",)), "--json", **env))

    def write_certificate(self) -> list[str]:
        """Write a certificate; return the flags for it."""
        certificate = trustme.CA().issue_cert("localhost")
        certificate.private_key_pem.write_to_path(self.directory / "key.pem")
        chain = b"".join(part.bytes() for part in certificate.cert_chain_pems)
        (self.directory / "cert.pem").write_bytes(chain)
        return ["--cert", "cert.pem", "--key", "key.pem"]
