"""Generate load from a process of its own: requests at a steady rate, and their outcomes.

``load.py PORT PATH --rate 200 [--least N] [--close] [--tls AUTHORITY]`` prints a line when its first request
is over, runs until its standard input ends, sends what is missing from N requests and a last one, and prints
the outcomes as JSON. Until then each request is sent when it is due, regardless of those before, but no more
than 100 at a time. With ``--close`` each has a connection of its own, else connections are kept. AUTHORITY is
the file of a certificate.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import ssl
import sys
import time
from collections import Counter
from dataclasses import dataclass, field

# Longer than any answer may take.
PATIENCE = 30.0
# The most requests at a time. A machine that cannot answer so many as are due answers fewer, as late.
MOST = 100


@dataclass
class Seen:
    """The outcomes of the requests.

    Attributes:
        answered: Requests that were answered with 200.
        failures: Each other request: the times of its sending and of its failure, on the monotonic clock, and
            the error.
        raced: Requests that were written into the close of an idle connection, which HTTP/1.1 cannot rule
            out. They were sent again.
        worst: The longest time from the sending of a request to the end of its answer, seconds.
        pids: Answers from each process.
        slow: The times above 50 ms.
    """

    answered: int = 0
    failures: list[tuple[float, float, str]] = field(default_factory=list)
    raced: int = 0
    worst: float = 0.0
    pids: Counter[str] = field(default_factory=Counter)
    slow: list[float] = field(default_factory=list)


class Connection:
    """One connection to the server."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.used = False

    async def ask(self, request: bytes) -> tuple[bytes, bytes]:
        """Send a request; return the header and the body of the answer."""
        self.writer.write(request)
        head = (await self.reader.readuntil(b"\r\n\r\n")).lower()
        length = int(head.partition(b"content-length: ")[2].split(b"\r\n")[0])
        body = await self.reader.readexactly(length)
        self.used = True
        return head, body


class Load:
    """Keep the rate, and the connections."""

    def __init__(self, port: int, path: str, close: bool, authority: str = "") -> None:
        self.port = port
        self.tls = ssl.create_default_context(cafile=authority) if authority else None
        self.close = close
        self.seen = Seen()
        self.idle: list[Connection] = []
        header = "Connection: close\r\n" if close else ""
        self.request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\n{header}\r\n".encode()

    async def connection(self) -> Connection:
        while self.idle:
            kept = self.idle.pop()
            if not (kept.reader.at_eof() or kept.writer.is_closing()):
                return kept
        name = "localhost" if self.tls else None
        opened = asyncio.open_connection("127.0.0.1", self.port, ssl=self.tls, server_hostname=name)
        return Connection(*await opened)

    async def one(self) -> None:
        began = time.monotonic()
        try:
            await asyncio.wait_for(self.ask(), PATIENCE)
        except Exception as error:
            self.seen.failures.append((began, time.monotonic(), f"{type(error).__name__}: {error}"[:100]))
            return
        took = time.monotonic() - began
        self.seen.worst = max(self.seen.worst, took)
        if took > 0.05:
            self.seen.slow.append(round(took, 4))

    async def ask(self) -> None:
        while True:
            connection = await self.connection()
            try:
                head, body = await connection.ask(self.request)
                break
            except (ConnectionError, asyncio.IncompleteReadError) as error:
                connection.writer.close()
                if not connection.used or getattr(error, "partial", b""):
                    raise
                self.seen.raced += 1
        if b" 200 " not in head.splitlines()[0]:
            raise RuntimeError(head.splitlines()[0].decode())
        self.seen.answered += 1
        self.seen.pids[body.decode()[:20]] += 1
        if b"connection: close" in head:
            connection.writer.close()
        else:
            self.idle.append(connection)

    async def run(self, rate: float, least: int) -> None:
        loop = asyncio.get_running_loop()
        over = loop.run_in_executor(None, sys.stdin.read)
        tasks: set[asyncio.Task[None]] = set()
        await self.one()
        print("under way", flush=True)
        due = loop.time()
        while not over.done() or least > 0:
            least -= 1
            due += 1 / rate
            task = loop.create_task(self.one())
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            await asyncio.wait({over}, timeout=max(0.0, due - loop.time()))
            while len(tasks) >= MOST:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.gather(*tasks)
        await self.one()
        for connection in self.idle:
            connection.writer.close()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("path")
    parser.add_argument("--rate", type=float, default=200)
    parser.add_argument("--least", type=int, default=0)
    parser.add_argument("--close", action="store_true")
    parser.add_argument("--tls", default="")
    arguments = parser.parse_args()
    load = Load(arguments.port, arguments.path, arguments.close, arguments.tls)
    asyncio.run(load.run(arguments.rate, arguments.least))
    print(json.dumps(vars(load.seen)))


if __name__ == "__main__":
    main()
