"""The help of the whole command, its completion in shells, and the modules that the client imports."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys

import pytest
from support.fake_inspector import FakeInspector
from support.running import environment

from worker import cli, settings
from worker.cli import usage
from worker.cli.inspect.arguments import SHORT, VERBS
from worker.constants import POLICIES


@pytest.fixture
def shown(capsys: pytest.CaptureFixture[str]) -> str:
    """Return the help."""
    cli.main(["--help"])
    return capsys.readouterr().out


class TestHelp:
    def test_it_is_about_this_command(self, shown: str) -> None:
        assert shown.startswith("usage: sanic-worker TARGET [options]\n")
        assert not re.search(r"\bsanic <|\$ sanic ", shown)

    def test_settings_are_a_group_with_their_variables(self, shown: str) -> None:
        _, _, group = shown.partition("\nsettings of sanic-worker:")
        text = " ".join(group.split())
        for setting in settings.SETTINGS:
            assert re.search(rf"\n  (-w( X)?, )?{setting.flag} X", group)
            assert f"[env: {setting.variable}]" in text

    @pytest.mark.parametrize("option", ["--workers", "--host", "--single-process", "--reload-dir", "--tls"])
    def test_options_of_sanic_are_described(self, shown: str, option: str) -> None:
        assert re.search(rf"^  .*{option}\b", shown, re.MULTILINE)

    def test_the_number_of_workers_is_described_once(self, shown: str) -> None:
        assert re.findall(r"^  .*--workers\b.*", shown.partition("\npositional")[2], re.MULTILINE) == [
            line for line in shown.splitlines() if re.match("  -w( X)?, --workers X ", line)
        ]

    @pytest.mark.parametrize("verb", ["inspect", *SHORT])
    def test_the_verbs_are_named(self, shown: str, verb: str) -> None:
        assert re.search(rf"\b{verb}\b", shown.partition("\n\n")[0])

    @pytest.mark.parametrize(
        "args", [["help"], ["-h"], ["hello:app", "--help"], ["help", "--full"], ["--workers", "2", "-h"]]
    )
    def test_every_form_shows_it(
        self, shown: str, args: list[str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        cli.main(args)
        assert capsys.readouterr().out == shown

    @pytest.mark.parametrize("args", [["kill", "--help"], ["hello:app", "exec", "--help"], ["hello:app"], []])
    def test_commands_with_a_help_of_their_own_keep_it(self, args: list[str]) -> None:
        assert not usage.is_asked_for(args)


class TestCompletion:
    @pytest.mark.parametrize("form", ["--print-completion={}", "--print-completion {}"])
    @pytest.mark.parametrize("shell", ["bash", "zsh", "fish", "tcsh"])
    def test_each_shell_has_one(self, shell: str, form: str, capsys: pytest.CaptureFixture[str]) -> None:
        cli.main(form.format(shell).split())
        script = capsys.readouterr().out
        for word in ["operations", "max-surge", "workers", *SHORT]:
            assert word in script, word

    @pytest.mark.parametrize(
        "args", [["--print-completion"], ["--print-completion=basic"], ["--print-completion=ksh"]]
    )
    def test_an_unknown_shell_is_refused(self, args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as ended:
            cli.main(args)
        assert ended.value.code == 2
        assert capsys.readouterr().err.endswith("it takes one of bash, zsh, fish, tcsh\n")

    @pytest.mark.parametrize(
        ("words", "expected"),
        [
            (["sanic-worker", ""], {"inspect", "ps", "top", "events", "check"}),
            (["sanic-worker", "inspect", ""], set(VERBS)),
            (["sanic-worker", "inspect", "re"], {"reload", "restart"}),
            (["sanic-worker", "check", "--im"], {"--imports"}),
            (["sanic-worker", "check", "--work"], {"--workers"}),
            (["sanic-worker", "--max-s"], {"--max-surge"}),
            (["sanic-worker", "--work"], {"--workers"}),
            (["sanic-worker", "-w"], {"-w"}),
            (["sanic-worker", "inspect", "reload", "--z"], {"--zero-downtime"}),
            (["sanic-worker", "events", "--fo"], {"--follow"}),
            (["sanic-worker", "--print-completion", ""], {*usage.SHELLS}),
            (["sanic-worker", "--restart-policy", ""], {*POLICIES}),
            (["sanic-worker", "--reload-order", "ST"], {"STARTUP_FIRST"}),
        ],
    )
    def test_bash_completes_verbs_and_options(
        self, words: list[str], expected: set[str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        bash = shutil.which("bash")
        if not bash:
            pytest.skip("there is no bash")
        cli.main(["--print-completion=bash"])
        script = capsys.readouterr().out
        program = 'eval "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _shtab_sanic_worker; '
        program += 'printf "%s\\n" "${COMPREPLY[@]}"'
        done = subprocess.run([bash, "-c", program, "bash", script, *words], capture_output=True, text=True)
        assert set(done.stdout.split()) == expected, done


def test_the_client_imports_no_more_than_it_needs() -> None:
    """A script that asks for JSON starts quickly: without Sanic, rich and the completion."""
    program = "import sys; from worker.cli import main; main(sys.argv[1:]); print(*sys.modules)"
    with FakeInspector() as inspector:
        command = [sys.executable, "-c", program, "ps", "--json", *inspector.args]
        done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done
    modules = set(done.stdout.splitlines()[-1].split())
    assert {"sanic", "rich", "shtab", "asyncio", "multiprocessing", "worker.settings"} & modules == set()
    assert "worker.cli.inspect.verbs" in modules
