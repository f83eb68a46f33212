"""The README is correct: its examples run unchanged, except for the ports. Links are not broken."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import Request, urlopen

import psutil
import pytest
from integration.harness import Server
from integration.tools import environment, free_port, wait_until

from worker import settings
from worker._core import IS_NATIVE

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]
URLS: dict[str, str] = dict(
    re.findall(r'^(\w+) = "(https://.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
)
REPOSITORY = URLS["Repository"]
FILES = f"{REPOSITORY}/blob/main/"
TIMEOUT = 15.0
STARTED_BY_OTHERS = ("pip ", "make ")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL)


PROGRAMS = {block.splitlines()[0].removeprefix("# "): block for block in blocks("python")}
COMMANDS = [re.findall(r"^\$ (.*)\n((?:[^$\n].*\n)*)", block, re.MULTILINE) for block in blocks("console")]


def command(line: str) -> list[str]:
    """Return a command of the README, run by this interpreter."""
    program, *arguments = shlex.split(line)
    modules = {"sanic-worker": "worker", "sanic": "sanic"}
    return [sys.executable, "-m", modules[program], *arguments]


@contextmanager
def running(
    arguments: list[str], folder: Path, env: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """Run a program until it is interrupted, as by Ctrl-C; it then ends in order."""
    with (folder / "log").open("w") as log:
        main = subprocess.Popen(
            arguments,
            cwd=folder,
            env=environment(env),
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,
        )
    assert main.stdout is not None
    try:
        yield main
        os.killpg(main.pid, signal.SIGINT)
        main.communicate(timeout=TIMEOUT)
        assert main.returncode == 0, (folder / "log").read_text()
    finally:
        main.kill()
        main.wait()
        main.stdout.close()


def ask(port: int, path: str = "/", method: str = "GET") -> str:
    """Return the body of an answer; empty while no server listens."""
    try:
        with urlopen(Request(f"http://127.0.0.1:{port}{path}", method=method), timeout=TIMEOUT) as answer:
            body: str = answer.read().decode()
            return body
    except OSError:
        return ""


def ask_who(port: int) -> dict[str, str]:
    found: dict[str, str] = json.loads(wait_until(lambda: ask(port), "an answer"))
    return found


def test_the_tests_cover_all_examples() -> None:
    assert set(PROGRAMS) == {"hello.py", "script.py", "classes.py"}
    lines = [line for block in COMMANDS for line, _ in block if not line.startswith(STARTED_BY_OTHERS)]
    assert [line.split()[0] for line in lines] == ["sanic-worker", "curl", "sanic"]


def test_the_example_of_the_command_runs(tmp_path: Path) -> None:
    (start, _), (curl, answer), (inspect, scaled) = next(
        block for block in COMMANDS if block[0][0].startswith("sanic-worker")
    )
    port, inspector = free_port(), free_port()
    (tmp_path / "hello.py").write_text(PROGRAMS["hello.py"])
    env = {"SANIC_INSPECTOR_PORT": str(inspector)}
    assert curl == "curl http://127.0.0.1:8000/"
    with running([*command(start), f"--port={port}"], tmp_path, env):
        found = ask_who(port)
        expected = json.loads(answer)
        assert found.keys() == expected.keys()
        assert (
            found["name"] in ("Sanic-Server-0-0", "Sanic-Server-1-0")
            and expected["name"] == "Sanic-Server-0-0"
        )
        wait_until(lambda: ask(inspector), "the inspector")
        done = subprocess.run(
            [*command(inspect), f"--port={inspector}"],
            cwd=tmp_path,
            env=environment(env),
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
        )
        assert scaled.strip() in done.stdout, done
        wait_until(lambda: ask_who(port)["name"] == "Sanic-Server-2-0", "an answer of the third")

        # Its /restart replaces every worker, and there is always one that listens.
        before: set[str] = set()
        wait_until(lambda: before.add(ask_who(port)["pid"]) or len(before) == 3, "an answer of each")
        assert json.loads(ask(port, "/restart", "POST")) == {"restarting": True}
        new: set[str] = set()

        def asked() -> bool:
            try:
                with urlopen(f"http://127.0.0.1:{port}/", timeout=TIMEOUT) as answer:
                    new.add(json.load(answer)["pid"])
            except ConnectionResetError:
                # Accepted by a worker that stopped before it read: draining is not promised.
                pass
            return len(new - before) == 3

        wait_until(asked, "an answer of three new ones")


def test_the_example_of_preloading_runs(tmp_path: Path) -> None:
    """A worker is a child of the preload process, which has imported the application."""
    page = (ROOT / "docs" / "preload.md").read_text()
    code, start = re.search(
        r"^\$ cat shop.py\n(.*?)^\$ (sanic-worker .*?)$", page, re.MULTILINE | re.DOTALL
    ).groups()  # type: ignore[union-attr]
    (tmp_path / "shop.py").write_text(code)
    port = free_port()
    with running([*command(start), f"--port={port}"], tmp_path) as main:
        found = wait_until(lambda: ask(port), "an answer")
        assert found.startswith("1000000 goods, served by ")
        parent = psutil.Process(int(found.split()[-1])).parent()
        assert parent is not None
        assert parent.ppid() == main.pid
        assert "preload process" in " ".join(parent.cmdline())


def test_the_example_of_a_script_runs(tmp_path: Path) -> None:
    port = free_port()
    program = PROGRAMS["script.py"]
    assert "port=8000" in program
    (tmp_path / "script.py").write_text(program.replace("port=8000", f"port={port}"))
    with running([sys.executable, "script.py"], tmp_path):
        assert wait_until(lambda: ask(port), "an answer") == "worker.multiplexer"


def test_the_example_of_the_classes_runs(tmp_path: Path) -> None:
    program = PROGRAMS["classes.py"]
    if not IS_NATIVE:
        instead = "multiprocessing.Manager().dict()"
        assert f"`SharedState` needs the native core. Without it, take `{instead}`." in README.read_text()
        program = f"import multiprocessing\n{program.replace('SharedState()', instead)}"
    (tmp_path / "classes.py").write_text(program)
    names = ["Sanic-Server-0-0", "Sanic-Server-1-0"]
    main = subprocess.Popen(
        [sys.executable, "classes.py"],
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert main.stdout is not None
    try:
        assert sorted(main.stdout.readline() for _ in names) == [f"{name} is ready\n" for name in names]
        os.killpg(main.pid, signal.SIGINT)
        rest, errors = main.communicate(timeout=TIMEOUT)
        assert (errors, sorted(rest.splitlines())) == ("", [f"{name} stops" for name in names])
        assert main.returncode == 0
    finally:
        main.kill()
        main.wait()


def test_the_named_settings_exist() -> None:
    text = README.read_text()
    variables = set(re.findall(r"\bSANIC_WORKER_\w+", text))
    flags = set(re.findall(r"`(--[\w-]+) \d+`", text))
    assert variables and variables <= {setting.variable for setting in settings.SETTINGS}
    assert flags and flags <= {setting.flag for setting in settings.SETTINGS}


@pytest.mark.parametrize("variable", re.findall(r"`WORKER_CORE=(\w+)`", README.read_text()))
def test_the_core_can_be_chosen(variable: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import worker; print(worker.core_info().core)"],
        cwd=tmp_path,
        env=environment({"WORKER_CORE": variable}),
        capture_output=True,
        text=True,
    )
    # An error that says so is as good as the core.
    assert done.stdout.strip() == variable or f"WORKER_CORE={variable}" in done.stderr


def text_of(page: Path) -> str:
    """Return a page of Markdown without its code."""
    return re.sub(r"^```.*?^```$|`[^`\n]*`", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def links(page: Path) -> list[str]:
    """Return the targets of all links, inline and by reference; each reference must be defined, and used."""
    text = text_of(page)
    defined = dict(re.findall(r"^\[([^\]]+)\]: (\S+)$", text, re.MULTILINE))
    assert set(re.findall(r"\[[^\]]+\]\[([^\]]+)\]", text)) == set(defined)
    return [*re.findall(r"\]\(([^)\s]+)\)", text), *defined.values()]


def anchors(page: Path) -> set[str]:
    """Return the fragments that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def is_broken(page: Path, link: str) -> bool:
    """Whether a link to a file of the repository, relative or absolute, names one that does not exist."""
    if link.startswith(FILES):
        target = ROOT / link.removeprefix(FILES)
    elif link.startswith("https://"):
        return False
    else:
        target = page.parent / link if not link.startswith("#") else page.with_name(page.name + link)
    name, _, anchor = target.name.partition("#")
    file = target.with_name(name)
    return not file.exists() or (anchor != "" and anchor not in anchors(file))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings_that_exist(page: Path) -> None:
    assert [link for link in links(page) if is_broken(page, link)] == []


def test_no_link_of_the_readme_is_relative() -> None:
    """A package page shows the README without the files beside it."""
    found = links(README)
    assert f"{FILES}docs/differences.md" in found
    assert [link for link in found if not link.startswith("https://")] == []


def test_the_architecture_names_modules_that_exist() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    names = set(re.findall(r"(?<=`)[a-z_]+(?:/[a-z_]+)?(?=`)|\b_[a-z]+(?:/[a-z_]+)?", text))
    assert names >= {"_control/send", "_supervisor", "multiplexer"}
    package = ROOT / "python" / "worker"
    modules = {path.relative_to(package).with_suffix("").as_posix() for path in package.rglob("*")}
    assert names - modules == set()


def test_both_manifests_name_the_same_repository() -> None:
    (repository,) = re.findall(r'^repository = "(.*)"$', (ROOT / "Cargo.toml").read_text(), re.MULTILINE)
    assert repository == REPOSITORY
    assert [url for url in URLS.values() if not url.startswith(REPOSITORY)] == []
    assert [url for url in URLS.values() if is_broken(README, url)] == []


def test_the_shown_log_of_the_reloader_is_current(tmp_path: Path) -> None:
    """The log of a good save, a bad one and a good one, except for details of one run."""
    (shown,) = blocks("text")
    code = PROGRAMS["hello.py"]
    (tmp_path / "hello.py").write_text(code)

    def lines(text: str) -> list[str]:
        """Return the lines without those of the workers and without details of one run; errors come out of
        order.
        """
        text = re.sub(r"\x1b\[\d*m", "", text)
        text = re.sub(r"^.*(INFO|ERROR): ", r"\1: ", text, flags=re.MULTILINE)
        text = re.sub(r"/\S*/hello.py|\d+\.\d+ s|\[\d+\]", "*", text)
        return sorted(line for line in text.splitlines() if not re.search(r"orker (\*|ready|compl)", line))

    def save(text: str, then: str) -> None:
        since = server.mark()
        # In one step, else the reloader may find the empty file.
        (tmp_path / ".hello.py.swp").write_text(text)
        (tmp_path / ".hello.py.swp").replace(tmp_path / "hello.py")
        server.wait_line(then, since=since)

    # The inspector's port must not be that of another server.
    env = {"SANIC_INSPECTOR_PORT": "0"}
    with Server.run("hello:app", "--reload", cwd=tmp_path, workers=2, env=env) as server:
        wait_until(lambda: ask(server.port), "an answer")
        server.wait_line("Inspector")
        began = server.mark()
        save(code + "# more", "The new code serves")
        save(re.sub("return json", "return = json", code, count=1), "rollout aborted")
        save(code, "The new code serves")
        ended = [line.text for line in server.output.lines[began:]]
        assert lines("\n".join(ended)) == lines(shown)
        assert server.stop() == 0
