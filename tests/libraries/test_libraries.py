"""Libraries in an application under `preload="app"`: each works in forked workers, or is refused by name."""

from __future__ import annotations

import re
import socketserver
from collections.abc import Callable, Iterator
from http.client import HTTPException
from importlib.util import find_spec
from pathlib import Path
from signal import SIGHUP
from threading import Thread
from typing import Any

import pytest
from integration.harness import Server
from integration.tools import wait_until

pytestmark = [pytest.mark.libraries, pytest.mark.timeout(120)]

APPLICATION = """\
import os
from sanic import Sanic, json

importer = os.getpid()
app = Sanic("shop")

{source}

@app.get("/")
async def index(request):
    return json({{"pid": os.getpid(), "preloaded": importer != os.getpid(), "result": await use()}})

@app.get("/ping")
async def ping(request):
    return json("pong")
"""
# The line of the first statement of a source.
FIRST = 7


class Redis(socketserver.StreamRequestHandler):
    """Answers as a server of Redis does, as far as a client that sends PING needs it."""

    def handle(self) -> None:
        while line := self.rfile.readline():
            words = [self.rfile.readline() and self.rfile.readline() for _ in range(int(line[1:]))]
            self.wfile.write(b"+PONG\r\n" if words[0].upper() == b"PING\r\n" else b"+OK\r\n")


class Servers(socketserver.ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False


@pytest.fixture
def redis() -> Iterator[int]:
    """The port of a server of Redis."""
    with Servers(("127.0.0.1", 0), Redis) as server:
        thread = Thread(target=server.serve_forever, args=[0.05])
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Start two workers of an application with this source."""
    servers: list[Server] = []

    def start(source: str, **env: str) -> Server:
        for name in re.findall(r"^(?:import|from) (\w+)", source, re.MULTILINE):
            if find_spec(name) is None:
                pytest.skip(f"{name} is not installed")
        (tmp_path / "shop.py").write_text(APPLICATION.format(source=source))
        options: dict[str, Any] = {"cwd": tmp_path, "start_method": "spawn", "env": env}
        servers.append(Server.run("shop:app", "--preload=app", **options))
        # The import of torch takes seconds, in the main process and in the preload process.
        return servers[-1].wait_ready("/ping", timeout=45)

    yield start
    for server in servers:
        assert not (leftovers := server.close()), leftovers


def ask(server: Server) -> list[Any]:
    """Return the answers of both workers."""
    found: dict[int, Any] = {}

    def both() -> bool:
        try:
            answer = server.get("/")
        except (OSError, HTTPException):
            return False
        found[answer["pid"]] = answer
        return len(found) == 2

    wait_until(both, "answers of both workers", 45)
    return [*found.values()]


def are_preloaded(answers: list[Any]) -> list[Any]:
    return answers if all(answer["preloaded"] for answer in answers) else []


def works(server: Server) -> list[Any]:
    """Return the results of both workers, which are forked with the application imported."""
    answers = ask(server)
    if "is not ready yet" in server.log():
        # The first start does not wait long for the preload process. A restart waits for the next one.
        server.signal(SIGHUP)
        # A worker that is being replaced may answer at any time before its end.
        answers = wait_until(lambda: are_preloaded(ask(server)), "forked workers", 60)
    assert [answer["preloaded"] for answer in answers] == [True, True], server.log()
    assert "WARNING" not in server.log()
    return [answer["result"] for answer in answers]


def is_refused(server: Server, left: str, line: int) -> list[Any]:
    """Return the results of both workers, which import the application; one warning says why."""
    server.wait_line("the import has left", timeout=45)
    answers = ask(server)
    assert [answer["preloaded"] for answer in answers] == [False, False]
    warnings = [text for text in server.log().splitlines() if "WARNING" in text]
    assert len(warnings) == 1, warnings
    assert re.search(rf"the import has left {left}.* \(module shop, line {line}\)", warnings[0]), warnings
    return [answer["result"] for answer in answers]


UVLOOP = """
import asyncio
import uvloop
asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
{more}
async def use():
    return type(asyncio.get_running_loop()).__module__
"""


class TestUvloop:
    def test_as_the_policy_works(self, serve: Callable[..., Server]) -> None:
        assert works(serve(UVLOOP.format(more=""))) == ["uvloop"] * 2

    def test_a_loop_is_refused(self, serve: Callable[..., Server]) -> None:
        more = "loop = uvloop.new_event_loop()"
        assert is_refused(serve(UVLOOP.format(more=more)), "an event loop", FIRST + 4) == ["uvloop"] * 2


NUMPY = """
import numpy
{seeding}
square = numpy.random.rand(300, 300)
product = square @ square
threads = len(os.listdir("/proc/self/task"))
numbers = []
async def use():
    assert numpy.allclose(square @ square, product)
    numbers.append(numpy.random.rand())
    return [threads, numbers[0]]
"""


class TestNumpy:
    def test_with_threads_of_openblas_works_and_has_numbers_of_its_own(
        self, serve: Callable[..., Server]
    ) -> None:
        # It starts so many threads at its import, also on a machine with a single processor.
        one, other = works(serve(NUMPY.format(seeding=""), OPENBLAS_NUM_THREADS="4"))
        assert one[0] == other[0] > 1
        assert one[1] != other[1]

    def test_that_is_seeded_gives_the_same_numbers(self, serve: Callable[..., Server]) -> None:
        one, other = works(serve(NUMPY.format(seeding="numpy.random.seed(42)")))
        assert one == other


PANDAS = """
import pandas
frame = pandas.DataFrame({{"kind": ["a", "b"] * 500, "price": range(1000)}})
async def use():
    return int(frame.groupby("kind").price.sum()["a"])
""".replace("{{", "{").replace("}}", "}")


def test_pandas_works(serve: Callable[..., Server]) -> None:
    assert works(serve(PANDAS)) == [249_500] * 2


SQLALCHEMY = """
import sqlalchemy
import worker
engine = sqlalchemy.create_engine("sqlite:///shop.db", poolclass=sqlalchemy.QueuePool)
{more}
async def use():
    with engine.connect() as connection:
        return connection.execute(sqlalchemy.text("SELECT 6 * 7")).scalar()
"""
READ = "engine.connect().execute(sqlalchemy.text('SELECT 1'))"
DISPOSE = "engine.connect().close(); worker.before_fork(engine.dispose)"


class TestSqlalchemy:
    def test_a_pool_without_connections_works(self, serve: Callable[..., Server]) -> None:
        assert works(serve(SQLALCHEMY.format(more=""))) == [42] * 2

    def test_a_pool_with_a_connection_is_refused(self, serve: Callable[..., Server]) -> None:
        server = serve(SQLALCHEMY.format(more=f"connection = {READ}"))
        assert is_refused(server, "the open file .*shop.db", FIRST + 4) == [42] * 2

    def test_a_pool_that_is_disposed_of_before_the_forks_works(self, serve: Callable[..., Server]) -> None:
        assert works(serve(SQLALCHEMY.format(more=DISPOSE))) == [42] * 2


HTTPX = """
import httpx
client = httpx.AsyncClient()
async def use():
    return (await client.get(f"http://127.0.0.1:{os.environ['PORT']}/ping")).json()
"""


def test_httpx_works(serve: Callable[..., Server]) -> None:
    assert works(serve(HTTPX)) == ["pong"] * 2


REDIS = """
import redis.asyncio
import redis
client = redis.Redis(port=int(os.environ["REDIS"]), protocol=2)
later = redis.asyncio.Redis(port=int(os.environ["REDIS"]), protocol=2)
{more}
async def use():
    return [client.ping(), await later.ping()]
"""


class TestRedis:
    def test_clients_without_connections_work(self, serve: Callable[..., Server], redis: int) -> None:
        assert works(serve(REDIS.format(more=""), REDIS=str(redis))) == [[True, True]] * 2

    def test_a_client_that_is_connected_is_refused(self, serve: Callable[..., Server], redis: int) -> None:
        server = serve(REDIS.format(more="client.ping()"), REDIS=str(redis))
        assert is_refused(server, "a socket", FIRST + 5) == [[True, True]] * 2


GRPC = """
import grpc
{more}
async def use():
    with grpc.insecure_channel("127.0.0.1:1") as channel:
        try:
            channel.unary_unary("/shop/buy")(b"", timeout=30)
        except grpc.RpcError as error:
            return error.code().name
"""
CHANNEL = "channel = grpc.insecure_channel('127.0.0.1:1')"


class TestGrpc:
    def test_without_a_channel_works(self, serve: Callable[..., Server]) -> None:
        assert works(serve(GRPC.format(more=""))) == ["UNAVAILABLE"] * 2

    def test_with_a_channel_is_refused(self, serve: Callable[..., Server]) -> None:
        server = serve(GRPC.format(more=CHANNEL))
        assert is_refused(server, "the native thread", FIRST + 2) == ["UNAVAILABLE"] * 2


TORCH = """
import torch
{more}
weights = torch.ones(100, 100)
async def use():
    return (weights @ weights).sum().item()
"""
LARGE = "large = torch.ones(1000, 1000)"


@pytest.mark.skipif(
    find_spec("torch") is None, reason="torch is not installed: PyPI has its wheel with CUDA only, of 3 GB"
)
class TestTorch:
    def test_without_a_computation_in_parallel_works(self, serve: Callable[..., Server]) -> None:
        assert works(serve(TORCH.format(more=""))) == [1_000_000.0] * 2

    def test_with_threads_of_openmp_is_refused(self, serve: Callable[..., Server]) -> None:
        server = serve(TORCH.format(more=LARGE), OMP_NUM_THREADS="2")
        assert is_refused(server, "the native thread", FIRST + 2) == [1_000_000.0] * 2


THREAD = """
import threading
threading.Thread(target=threading.Event().wait, name="poller", daemon=True).start()
async def use():
    return threading.active_count() > 1
"""


def test_a_thread_is_refused(serve: Callable[..., Server]) -> None:
    assert is_refused(serve(THREAD), "the thread 'poller'", FIRST + 2) == [True] * 2
