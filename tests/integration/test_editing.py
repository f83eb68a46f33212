"""A developer works on an application that runs: good code, broken code, many files, odd names."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from ast import literal_eval
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from signal import SIGCONT, SIGKILL
from typing import Any

import pytest
from support.modes import MODE

from .harness import Server
from .tools import status, suspend, wait_until

pytestmark = [pytest.mark.ours, pytest.mark.operations]

CODE = """\
import os

from apps.steering import steerable
from sanic import Sanic, json
from shop import prices

app = Sanic("shop")
steerable(app)
app.reload_process_start(lambda *_: print("watching", flush=True))
app.after_reload_trigger(lambda *_, changed: print("changed:", ascii(sorted(changed)), flush=True))


@app.get("/")
async def home(request):
    files = ascii(app.config.get("RELOADED_FILES", ""))
    return json({"pid": os.getpid(), "price": prices.PRICE, "files": files})
"""


GOOD = """\
from sanic import Sanic, json

app = Sanic("first")
app.get("/")(lambda _: json("up"))
"""
FAILS = """
@app.before_server_start
async def fails(_):
    raise RuntimeError("not yet")
"""


def answers(server: Server) -> bool:
    with suppress(OSError):
        return server.get("/") == "up"
    return False


class TestFirstStart:
    """The server waits for code that does not start at first, as it does after any later change."""

    @pytest.mark.parametrize(
        "broken",
        ["app = (", "raise RuntimeError('not yet')", "x = 1", GOOD + FAILS],
        ids=["syntax", "raises", "half-way", "fails"],
    )
    def test_repaired_code_is_served(self, broken: str, tmp_path: Path) -> None:
        code = tmp_path / "first.py"
        code.write_text(broken)
        with Server.run("first:app", "--dev", cwd=tmp_path) as server:
            server.wait_line("Waiting for the next file change")
            code.write_text(GOOD)
            wait_until(lambda: answers(server), "the mend")
            assert server.stop() == 0

    def test_a_stop_is_obeyed_before_a_repair(self, tmp_path: Path) -> None:
        (tmp_path / "first.py").write_text("app = (")
        with Server.run("first:app", "--dev", cwd=tmp_path) as server:
            server.wait_line("Waiting for the next file change")
            assert server.stop() == 0


class Shop:
    """An application, its server, and its developer."""

    def __init__(self, root: Path, *options: str) -> None:
        self.root = root / "shop"
        self.root.mkdir()
        (self.root / "app.py").write_text(CODE)
        (self.root / "prices.py").write_text("PRICE = 1\n")
        (self.root / "templates").mkdir()
        # A module that opens this FIFO holds its importer until the FIFO is opened for writing, and closed.
        self.gate = root / "gate"
        os.mkfifo(self.gate)
        self._fences = 0
        self.server = Server.run("shop.app:app", "--reload", *options, cwd=root)

    def edit(self, name: str, content: str) -> None:
        """Save as many an editor does: another file takes the place of the old one."""
        aside = self.root / f".{Path(name).name}.swp"
        aside.write_text(content)
        aside.rename(self.root / name)

    def reloads(self, since: int) -> list[list[str]]:
        """Wait until all saved code is served; return the files of each reload since then."""
        self._fences += 1
        fence = f"templates/fence-{self._fences}"
        self.edit(fence, "")
        self.server.wait_line(f"^changed: .*{fence}'", since=since)
        wait_until(
            lambda: self.all_answer(lambda answer: fence in answer["files"]), "the last of the reloads"
        )
        told = [literal_eval(text.partition(": ")[2]) for text in self.lines("^changed: ", since)]
        saved = [[name for name in names if "/templates/fence-" not in name] for names in told]
        return list(filter(None, saved))

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold a new worker where it imports the module that opens the gate, while the body runs."""

        def opened() -> int:
            with suppress(OSError):
                return os.open(self.gate, os.O_WRONLY | os.O_NONBLOCK)
            return 0

        writer = wait_until(opened, "a worker at the gate")
        try:
            yield
        finally:
            os.close(writer)

    @contextmanager
    def unwatched(self) -> Iterator[None]:
        """Suspend the reloader while the body runs; it then sees all changes as one."""
        pid = self.server.table()["Sanic-Reloader-0"]["pid"]
        suspend(pid)
        try:
            yield
        finally:
            os.kill(pid, SIGCONT)

    def serves(self, price: int) -> None:
        """Wait until all servers have this price and the old workers have exited."""
        wait_until(lambda: self.all_answer(lambda answer: answer["price"] == price), "the new price")

    def is_warm(self) -> tuple[int, int]:
        """Save until a preload process has forked a server; return the pid of the first, and the price."""
        for price in range(1000, 1050):
            self.edit("prices.py", f"PRICE = {price}\n")
            self.serves(price)
            parent = int(status(self.server.get("/whoami")["pid"])[1])
            if parent != self.server.pid:
                return parent, price
        raise AssertionError("no server comes from a preload process")

    def all_answer(self, so: Callable[[dict[str, Any]], bool]) -> bool:
        """Whether each of the two servers in the table has answered so, and no other process has answered."""
        pids = {entry["pid"] for entry in self.server.settled(2).values()}
        answers = [self.server.get("/") for _ in range(8)]
        return {answer["pid"] for answer in answers} == pids and all(map(so, answers))

    def lines(self, pattern: str, since: int) -> list[str]:
        return [line.text for line in self.server.output.lines[since:] if re.search(pattern, line.text)]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    shop = Shop(tmp_path_factory.mktemp("editing"))
    with shop.server as server:
        server.wait_ready()
        server.settled(2)
        # From then on, each edit counts.
        server.wait_line("^watching$")
        yield shop
        assert server.stop() == 0
        # As soon as the main process has ended, and not a moment later.
        assert not [line for line in server.processes().values() if "fork" in line]


def test_good_code_then_broken_code_then_good_code(shop: Shop) -> None:
    server, since = shop.server, shop.server.mark()
    shop.edit("prices.py", "PRICE = 2\n")
    server.wait_line("The new code serves", since=since)
    shop.serves(2)
    assert len(shop.lines("Reloader: .* changed", since)) == 1
    assert shop.lines(r"Reloader: 1 file changed \(shop/prices\.py\)\. Restarting the workers\.$", since)

    since = server.mark()
    shop.edit("prices.py", "PRICE = 3\nPRICE = = 4\n")
    server.wait_line("Keeping the previous worker", since=since)
    shop.serves(2)
    assert len(shop.lines(r"prices\.py\", line 2$", since)) == len(shop.lines("PRICE = = 4", since)) == 1
    # A preload process imports the code before any worker starts.
    kept = "workers; rollout aborted, 2 workers" if MODE == "app" else "worker; rollout aborted, 1 worker"
    assert len(shop.lines(f"Keeping the previous {kept} not restarted", since)) == 1
    assert shop.lines("The new code serves", since) == []

    since = server.mark()
    shop.edit("prices.py", "PRICE = 5\n")
    server.wait_line("The new code serves", since=since)
    shop.serves(5)
    (line,) = shop.lines("The new code serves", since)
    assert re.search(r"The new code serves \d+\.\d\d s after the change\.$", line)
    assert not shop.lines("ERROR", since)


def test_a_change_during_a_reload_causes_another(shop: Shop) -> None:
    since = shop.server.mark()
    shop.edit("prices.py", f"PRICE = 6\nopen({str(shop.gate)!r}).read()\n")
    with shop.held():
        shop.edit("prices.py", "PRICE = 7\n")
        shop.serves(7)
    # One for each slot: the held process was replaced.
    assert len(shop.lines("Starting worker", since)) == 2
    assert shop.reloads(since) == [[str(shop.root / "prices.py")]] * 2


def test_special_characters_in_paths_are_kept(shop: Shop) -> None:
    names = ["a:b,c%.txt", "new\nline\r.txt", "100%25.txt", "bytes \udcff.txt", "ü.txt"]
    since = shop.server.mark()
    with shop.unwatched():
        for name in names:
            (shop.root / "templates" / name).write_text("x")
    paths = sorted(str(shop.root / "templates" / name) for name in names)
    wait_until(lambda: shop.server.get("/")["files"] == ascii(",".join(paths)), "the files of the reload")
    assert shop.reloads(since) == [paths]
    assert shop.lines(
        r"5 files changed \(shop/templates/100%25\.txt, shop/templates/a:b,c%\.txt, .* and 2 more\)\.", since
    )


def test_a_switch_of_branches_is_one_reload(shop: Shop) -> None:
    """300 changed files, 100 deleted and 100 new ones are one reload."""
    if shutil.which("git") is None:
        pytest.skip("needs git")

    def git(*command: str) -> None:
        options = ("-c", "user.name=me", "-c", "user.email=me@here", "-c", "gc.auto=0")
        subprocess.run(["git", *options, *command], cwd=shop.root, check=True, capture_output=True)

    def write(folder: str, content: str) -> None:
        for number in range(100):
            path = shop.root / "data" / folder / f"{number}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)

    for folder in ("a", "b/c", "d", "gone"):
        write(folder, "one")
    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "-m", "one")
    git("switch", "--quiet", "-c", "other")
    for folder in ("a", "b/c", "d", "come"):
        write(folder, "two")
    shutil.rmtree(shop.root / "data" / "gone")
    git("add", ".")
    git("commit", "--quiet", "-m", "two")
    shop.reloads(0)
    paths = {str(shop.root / "data" / folder / "7.txt") for folder in ("a", "b/c", "d", "gone", "come")}

    def reloads() -> int:
        """Switch to the other branch; return the number of reloads it takes."""
        since = shop.server.mark()
        git("switch", "--quiet", "-")
        told = shop.reloads(since)
        assert paths <= set().union(*told)
        return len(told)

    # Two reloads only if git itself is held up meanwhile, which is rare.
    assert any(reloads() == 1 for _ in range(10))


def test_a_killed_reloader_is_replaced(shop: Shop) -> None:
    server, since = shop.server, shop.server.mark()
    os.kill(server.table()["Sanic-Reloader-0"]["pid"], SIGKILL)
    server.wait_line("Sanic-Reloader-0 .* was killed by SIGKILL.* Restarting it ", since=since)
    # As soon as it runs, if not sooner, an edit counts.
    wait_until(lambda: server.table()["Sanic-Reloader-0"].get("state") == "STARTED", "another one")
    shop.edit("prices.py", "PRICE = 9\n")
    shop.serves(9)


def test_a_reloader_that_exits_repeatedly_is_restarted(tmp_path: Path) -> None:
    shop = Shop(tmp_path, "--workers=1", "--max-consecutive-failures=1", "--backoff-max=0.1")
    with shop.server as server:
        server.wait_ready()
        killed = {0}
        for _ in range(3):
            since = server.mark()
            pid = wait_until(lambda: {reloader(server)} - killed, "a reloader that runs").pop()
            os.kill(pid, SIGKILL)
            killed.add(pid)
            server.wait_line(rf"\[{pid}\] .* Restarting it in .* failures or more in a row", since=since)
        server.wait_line("^watching$", since=since)
        shop.edit("prices.py", "PRICE = 2\n")
        server.wait_line("The new code serves", since=since)
        assert server.get("/")["price"] == 2
        assert server.stop() == 0


def reloader(server: Server) -> int:
    """Return the pid of the reloader; 0 if it does not run."""
    pid: int = server.table()["Sanic-Reloader-0"]["pid"]
    return pid if pid in server.processes() else 0


@pytest.mark.modes("framework", "app")
def test_servers_start_after_a_kill_of_the_preload_process(shop: Shop) -> None:
    since = shop.server.mark()
    pid, price = shop.is_warm()
    os.kill(pid, SIGKILL)
    shop.edit("prices.py", "PRICE = = 10\n")
    shop.server.wait_line("Keeping the previous worker", since=since)
    shop.serves(price)
    another, _ = shop.is_warm()
    assert another != pid
    shop.edit("prices.py", "PRICE = 11\n")
    shop.serves(11)
    os.kill(shop.server.table()["Sanic-Server-0-0"]["pid"], SIGKILL)
    shop.server.wait_line("Sanic-Server-0-0 .* was killed by SIGKILL.* Restarting it ", since=since)
    shop.serves(11)
    # They have the same labels, if this Sanic has any, from either start.
    labels = [re.split(r"\[?20\d\d-", line)[0] for line in shop.lines("Starting worker", 0)]
    assert {*labels} == {*labels[:2]}


def test_no_process_is_left_after_a_kill_of_the_main_process(tmp_path: Path) -> None:
    shop = Shop(tmp_path)
    with shop.server as server:
        server.wait_ready()
        server.settled(2)
        server.wait_line("^watching$")
        shop.edit("prices.py", "PRICE = 2\n")
        shop.serves(2)
        os.kill(server.pid, SIGKILL)
        wait_until(lambda: not server.processes(), "all gone")
