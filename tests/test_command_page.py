"""The page of the command is correct: its examples run in order, on the application of the README."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from integration.harness import Server
from integration.tools import environment, free_port, wait_until
from test_readme import PROGRAMS

from worker.cli.inspect.arguments import VERBS
from worker.cli.inspect.exits import ExitCode
from worker.cli.inspect.view import HELP
from worker.cli.inspect.workers import SORT_KEYS

PAGE = (Path(__file__).parent.parent / "docs" / "command.md").read_text()
EXAMPLES = [
    example
    for block in re.findall(r"^```console\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    for example in re.findall(r"^\$ sanic-worker (.*)\n((?:[^$\n].*\n)*)", block, re.MULTILINE)
]
OPERATION = re.compile(r"\b[0-9a-f]{12}\b")
TIMEOUT = 30.0


def normal(output: str) -> list[str]:
    """Return the lines without details of one run: ids, times, numbers, and the figures of a worker."""
    lines = OPERATION.sub("ID", output).splitlines()
    lines = [re.sub(r"^(Sanic-\S+ +\S+).*", r"\1", line) for line in lines]
    lines = [re.sub(r"^ *\d+  \S+ \S+  ", "", line) for line in lines]
    lines = [re.sub(r"\b\d+(\.\d+)? m?s\b", "T", line) for line in lines]
    return [re.sub(" +", " ", line).strip() for line in lines]


@pytest.mark.slow
class TestExamples:
    @pytest.fixture
    def server(self, tmp_path: Path) -> Iterator[Server]:
        start, _ = EXAMPLES[0]
        target, flag, workers = start.split()
        assert flag == "--workers"
        (tmp_path / "hello.py").write_text(PROGRAMS["hello.py"])
        env = {"SANIC_INSPECTOR_PORT": str(free_port())}
        with Server.run(target, cwd=tmp_path, workers=int(workers), env=env) as found:
            self.env = env
            found.wait_ready("/")
            # The inspector listens as well.
            wait_until(lambda: self.run("ps")[0] == 0, "the inspector")
            yield found

    def run(self, line: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "worker", *shlex.split(line)]
        done = subprocess.run(
            command, env=environment(self.env), capture_output=True, text=True, timeout=TIMEOUT
        )
        return done.returncode, done.stdout + done.stderr

    def test_they_print_what_is_shown(self, server: Server) -> None:
        operation = ""
        for line, shown in EXAMPLES[1:]:
            code, output = self.run(OPERATION.sub(operation, line))
            assert code == (1 if shown.startswith("sanic-worker: ") else 0), (line, output)
            if line.startswith("events"):
                # The exit of a previous process may come between.
                assert len(normal(output)) == len(normal(shown))
                assert set(normal(shown)) <= set(normal(self.run("events")[1]))
            else:
                assert normal(output) == normal(shown), line
            operation = (OPERATION.findall(output) or [operation])[-1]
        assert server.wait() == 0


def rows(heading: str, column: int = 1) -> list[str]:
    """Return the cells of one column of the table that follows a heading."""
    section = re.split(rf"^## {heading}$", PAGE, flags=re.MULTILINE)[1].partition("\n## ")[0]
    table = re.findall(r"(?:^\|.*\n)+", section, re.MULTILINE)[0]
    return [line.split("|")[column].strip() for line in table.splitlines()[2:]]


def test_every_verb_is_described() -> None:
    assert [re.findall(r"\w+", row)[0] for row in rows("Verbs")] == [*VERBS]


def test_every_exit_code_is_described() -> None:
    assert [int(row) for row in rows("Exit codes")] == [*map(int, ExitCode)]
    meanings = [cell.replace("`", "") for cell in rows("Exit codes", 2)]
    assert meanings == [code.meaning for code in ExitCode]


def test_every_key_is_described() -> None:
    shown = " ".join(rows("top"))
    assert all(f"`{key}`" in shown for key in SORT_KEYS)
    assert len(rows("top")) == len(HELP)
