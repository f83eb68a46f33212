"""The arguments of the inspector's client: options on both sides of the verb, and users' own commands."""

from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from worker.cli.inspect.arguments import SHORT, VERBS, make_parser, parse
from worker.cli.inspect.exits import CommandError, ExitCode


def given(text: str) -> dict[str, Any]:
    """Return the options that were given; those of the verb that have their default are left out."""
    return {name: value for name, value in parse(text.split()).items() if value not in (False, None)}


def refused(text: str) -> str:
    with pytest.raises(CommandError) as caught:
        parse(text.split())
    assert caught.value.code is ExitCode.USAGE
    return str(caught.value)


class TestOptions:
    OPTIONS = (
        "-p 18457",
        "--port=18457",
        "-H there -s",
        "-k secret --json",
        "--unix /x --timeout 3",
        "--raw",
    )

    @pytest.mark.parametrize("options", OPTIONS)
    @pytest.mark.parametrize("verb", ["ps", "scale 3", "restart A B --wait", "operation 3f"])
    def test_an_option_counts_before_and_after_the_verb(self, options: str, verb: str) -> None:
        before, after = given(f"inspect {options} {verb}"), given(f"inspect {verb} {options}")
        assert before == after
        assert before.keys() > given(f"inspect {verb}").keys()

    def test_the_port_before_the_verb_is_kept(self) -> None:
        assert given("inspect -p 18457 scale 3") == {"verb": "scale", "port": 18457, "replicas": 3}

    def test_the_option_after_the_verb_wins(self) -> None:
        assert given("inspect -p 1 ps -p 2")["port"] == 2

    def test_without_a_verb_the_workers_are_shown(self) -> None:
        assert given("inspect") == {"verb": "ps"}
        assert given("inspect --json -p 1") == {"verb": "ps", "json": True, "port": 1}

    @pytest.mark.parametrize("verb", SHORT)
    def test_a_short_form_is_its_verb(self, verb: str) -> None:
        assert parse([verb, "-p", "1"]) == parse(["inspect", verb, "-p", "1"])

    @pytest.mark.parametrize(("text", "replicas"), [("3", 3), ("0", 0), ("+1", "+1"), ("-1", "-1")])
    @pytest.mark.parametrize("form", ["inspect scale {}", "inspect -p 7 scale {}", "inspect scale {} -p 7"])
    def test_the_number_of_a_scaling_may_have_a_sign(self, text: str, replicas: Any, form: str) -> None:
        assert parse(form.format(text).split())["replicas"] == replicas

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ("inspect scale", "required: N"),
            ("inspect scale x", "cannot be 'x': it takes a number of workers, or a change"),
            ("inspect restart", "required: NAME"),
            ("inspect -p x", "cannot be 'x': it takes a whole number"),
            ("inspect ps -p 70000", "cannot be 70000: it takes a port, from 1 to 65535"),
            ("inspect ps --timeout -3", "--timeout"),
            ("inspect ps --timeout 0", "cannot be '0': it takes a number of seconds above 0"),
            ("inspect ps --timeout inf", "cannot be 'inf': it takes a number of seconds"),
            ("inspect reload --zero", "unrecognized arguments: --zero"),
            ("inspect --nonsense", "unrecognized arguments: --nonsense"),
            ("top -i 0.1", "cannot be 0.1: it takes a number of seconds from 0.2 to 60"),
            ("ps extra", "unrecognized arguments: extra"),
            ("events --since yesterday", "cannot be 'yesterday': it takes 10m, 2h or 1d"),
            ("events --since 800000d", "cannot be '800000d': it takes 10m, 2h or 1d"),
            ("events --since 99999999999d", "cannot be '99999999999d': it takes 10m, 2h or 1d"),
        ],
    )
    def test_a_wrong_argument_is_named(self, text: str, reason: str) -> None:
        assert reason in refused(text)

    @pytest.mark.parametrize("place", ["inspect --help", "inspect -p 1 -h"])
    def test_the_help_lists_all_verbs(self, place: str, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as ended:
            parse(place.split())
        assert ended.value.code == 0
        shown = capsys.readouterr().out
        assert all(f"\n    {verb} " in shown for verb in VERBS)
        assert all(f"\n  {code.value:<3}  " in shown for code in ExitCode)

    def test_the_help_has_groups_and_exit_codes(self) -> None:
        shown = make_parser("x").format_help()
        connection, _, others = shown.partition("connection:")[2].partition("output and time:")
        assert "--unix" in connection
        assert "--unix" not in others.partition("verbs:")[0]
        assert all(re.search(rf"^  {code:d} +{code.meaning}$", shown, re.MULTILINE) for code in ExitCode)

    @pytest.mark.parametrize("verb", VERBS)
    def test_each_verb_has_its_help(self, verb: str, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as ended:
            parse(["inspect", verb, "--help"])
        assert ended.value.code == 0
        shown = " ".join(capsys.readouterr().out.split())
        assert shown.startswith(f"usage: sanic-worker inspect {verb} [-h]")
        assert VERBS[verb] in shown


class TestSince:
    @pytest.mark.parametrize(("text", "ago"), [("10m", 600), ("90s", 90), ("1.5h", 5400), ("2d", 172800)])
    def test_a_duration_is_before_now(self, text: str, ago: float) -> None:
        found = parse(["events", "--since", text])["since"]
        expected = datetime.now(timezone.utc) - timedelta(seconds=ago)
        assert abs(found - expected) < timedelta(seconds=20)

    def test_a_number_is_that_of_an_event(self) -> None:
        assert parse(["events", "--since=17"])["since"] == 17

    @pytest.mark.parametrize(
        "text", ["2026-11-28T12:00:00Z", "2026-11-28T12:00:00+00:00", "2026-11-28T14:00:00+02:00"]
    )
    def test_a_time_has_its_zone(self, text: str) -> None:
        expected = datetime(2026, 11, 28, 12, tzinfo=timezone.utc)
        assert parse(["events", "--since", text])["since"] == expected

    def test_a_time_without_a_zone_is_local(self) -> None:
        expected = datetime(2026, 11, 28, 12).astimezone()
        assert parse(["events", "--since", "2026-11-28T12:00:00"])["since"] == expected


class TestOwnCommands:
    @pytest.mark.parametrize(
        ("text", "arguments"),
        [
            ("mine", {}),
            ("mine a b", {"args": ["a", "b"]}),
            ("mine --key=value", {"key": "value"}),
            ("mine --key=a=b", {"key": "a=b"}),
            ("mine --flag --no-other", {"flag": True, "other": False}),
            ("mine --my-flag --no-my-other", {"my_flag": True, "my_other": False}),
            ("mine a --key=1 b --flag c", {"args": ["a", "b", "c"], "key": "1", "flag": True}),
            ("mine -1 -x", {"args": ["-1", "-x"]}),
            ("mine --timeout=5 --unix=x --json", {"timeout": "5", "unix": "x", "json": True}),
            ("mine -- --text --host=x", {"args": ["--text", "--host=x"]}),
        ],
    )
    def test_arguments_are_sent_as_by_the_stock_client(self, text: str, arguments: dict[str, Any]) -> None:
        assert parse(f"inspect {text}".split()) == {"verb": "mine", "arguments": arguments}

    @pytest.mark.parametrize("text", ["-p 7 -k s mine a", "mine -p 7 -k s a", "mine a -k s --port=7"])
    def test_the_options_of_the_stock_client_are_not_sent(self, text: str) -> None:
        expected = {"verb": "mine", "port": 7, "api_key": "s", "arguments": {"args": ["a"]}}
        assert parse(f"inspect {text}".split()) == expected

    def test_other_options_come_before_the_verb(self) -> None:
        found = parse(["inspect", "--json", "--timeout", "5", "mine", "--x=1"])
        assert found == {"verb": "mine", "json": True, "timeout": 5.0, "arguments": {"x": "1"}}
