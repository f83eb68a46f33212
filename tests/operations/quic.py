"""Servers of HTTP/3 under test."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trustme
from integration.harness import Server
from integration.test_applications import ask_over_quic


@contextmanager
def http3(folder: Path, code: str, *args: str) -> Iterator[Server]:
    """Serve the application ``app`` of this code by one worker over HTTP/3."""
    pytest.importorskip("aioquic")
    (folder / "blocking.py").write_text(code)
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost", "127.0.0.1")
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    certificate.private_key_pem.write_to_path(str(folder / "key.pem"))
    certificate.cert_chain_pems[0].write_to_path(str(folder / "cert.pem"))
    options = ("--http=3", f"--cert={folder / 'cert.pem'}", f"--key={folder / 'key.pem'}", *args)
    env = {"LOOP": "uvloop"}
    with Server.run("blocking:app", *options, cwd=folder, workers=1, env=env) as server:
        server.wait_line("Worker ready")
        yield server


def get(server: Server, folder: Path, path: str) -> tuple[int, bytes]:
    """Return status and body of one GET."""
    return asyncio.run(asyncio.wait_for(ask_over_quic(server.port, folder / "ca.pem", path), 15))
