"""The mode of a run of the tests: how servers under test start workers, if they do not choose it themselves.

``TEST_MODE`` is ``framework`` (the default of the package), ``off`` or ``app``: the setting ``preload`` with
the start method ``spawn``. Or it is the start method ``fork`` or ``forkserver``.
"""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import pytest

MODES = ("framework", "off", "app", "fork", "forkserver")
MODE = os.environ.get("TEST_MODE") or MODES[0]
assert MODE in MODES, f"TEST_MODE={MODE}: it is one of {', '.join(MODES)}"

START_METHOD = MODE if MODE in ("fork", "forkserver") else "spawn"
# A test with a start method of its own differs in this mode for these methods.
TRIED = ("spawn",) if MODE in ("off", "app") else ()
# Whether a server has a preload process.
HAS_PRELOAD = MODE not in ("off", "fork")
# The modes in which each worker imports the application, and those in which not only the main process does.
WORKERS_IMPORT = ("framework", "off", "forkserver")
NOT_FORK = (*WORKERS_IMPORT, "app")
CHOOSES = Path(__file__).parent / "start_method"


def choose(env: dict[str, str]) -> None:
    """Put the mode into the environment of a program under test."""
    if MODE in ("off", "app"):
        env["SANIC_WORKER_PRELOAD"] = MODE
    elif MODE != "framework":
        env["TEST_START_METHOD"] = START_METHOD
        env["PYTHONPATH"] = os.pathsep.join([str(CHOOSES), env["PYTHONPATH"]])


def skip_others(items: list[pytest.Item]) -> None:
    """Skip the tests that are about another mode, or the same in this mode as in the default one."""
    for item in items:
        marker = item.get_closest_marker("modes")
        if marker and MODE not in marker.args:
            item.add_marker(pytest.mark.skip(reason=f"for TEST_MODE={' or '.join(marker.args)}"))
        elif MODES[0] != MODE and _method(item) not in ("", *TRIED):
            item.add_marker(pytest.mark.skip(reason="chooses its start method, as in the default mode"))


def deselect_others(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the share of this mode if ``TEST_SHARE`` is set: each test belongs to one of the other modes."""
    if os.environ.get("TEST_SHARE"):
        others = MODES[1:]
        kept = [item for item in items if others[zlib.crc32(item.nodeid.encode()) % len(others)] == MODE]
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = kept


def _method(item: pytest.Item) -> str:
    callspec = getattr(item, "callspec", None)
    params = callspec.params if callspec else {}
    return str(params.get("method") or params.get("start_method") or "")
