"""The effect of a change of the main process on its preload process."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from support.running import python

from worker._child.preload.conditions import Conditions
from worker._spawn.preload import conditions


def fixed() -> dict[str, Any]:
    return conditions.fixed(conditions.read_status())


def present() -> Conditions:
    return conditions.present(conditions.read_status())


def test_fixed_conditions_stay_equal_without_a_change() -> None:
    before = fixed()
    assert {"Uid", "CapEff", "Cpus_allowed", "RLIMIT_NOFILE", "cgroup", "nice"} <= before.keys()
    os.environ["CONDITION"] = "1"
    try:
        assert fixed() == before
    finally:
        del os.environ["CONDITION"]
    assert conditions.changed(before, fixed()) == ""


@pytest.mark.parametrize("name", ["LANG", "LC_ALL", "LD_PRELOAD", "PYTHONWARNINGS", "SANIC_NO_COLOR"])
def test_a_variable_that_is_read_at_the_start_is_fixed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(name, raising=False)
    before = fixed()
    monkeypatch.setenv(name, "changed")
    assert conditions.changed(before, fixed()) == f"variable {name}"


def test_the_conditions_without_proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_proc = present()
    monkeypatch.setattr(conditions, "PROC", f"{tmp_path}/")
    assert present() == with_proc
    found = fixed()
    assert found == fixed()
    assert found["Uid"] == (os.getuid(), os.geteuid())
    before = os.umask(0o027)
    try:
        assert present().umask == 0o027
    finally:
        os.umask(before)


CHANGES = """
import ctypes, os, resource, signal, sys
from pathlib import Path
from worker._spawn.preload.conditions import changed, fixed, read_status

def limit(number, soft, hard=None):
    resource.setrlimit(number, (soft, hard or resource.getrlimit(number)[1]))

for change in (
    lambda: os.nice(1),
    lambda: os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0)),
    lambda: signal.signal(signal.SIGWINCH, signal.SIG_IGN),
    lambda: signal.signal(signal.SIGUSR1, signal.SIG_IGN),
    lambda: Path("/proc/self/oom_score_adj").write_text("300"),
    lambda: limit(resource.RLIMIT_NOFILE, 200),
    lambda: limit(resource.RLIMIT_MSGQUEUE, 100, 200),
    lambda: limit(resource.RLIMIT_STACK, 2**20),
    lambda: os.dup2(os.pipe()[0], 0),
    lambda: sys.warnoptions.append("error"),
    lambda: ctypes.CDLL(None).prctl(38, 1, 0, 0, 0),
):
    before = fixed(read_status())
    change()
    print(changed(before, fixed(read_status())))
"""
# An own signal of the package, and a soft limit, are not fixed.
NAMES = [
    *("nice", "scheduling", "SigIgn", "", "oom_score_adj", "", "RLIMIT_MSGQUEUE", "RLIMIT_STACK"),
    *("standard streams", "interpreter", "NoNewPrivs"),
]


@pytest.mark.skipif(os.getpriority(os.PRIO_PROCESS, 0) == 19, reason="it cannot become nicer")
def test_each_fixed_condition_is_noticed(tmp_path: Path) -> None:
    ended = python(CHANGES, cwd=tmp_path)
    assert ended.stdout.splitlines() == NAMES, ended.stderr
