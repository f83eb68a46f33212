"""The line of the log that names the manager."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from sanic.log import logger

from worker._core import core_info
from worker.process import Worker

if TYPE_CHECKING:
    from worker.settings.values import Workers

__all__ = ["announce"]


def announce(servers: int, workers: Iterable[Worker], allowed: Workers | None = None) -> None:
    """Log which manager runs: its version, its core, how many servers, and where the inspector listens.

    Args:
        servers (int): The number of servers.
        workers (Iterable[Worker]): All workers. One that was not started listens nowhere.
        allowed (Workers | None): The range in which the load decides. Defaults to ``None``: none.
    """
    info = core_info()
    if allowed is not None:
        count = f"{servers} of {allowed} workers"
    else:
        count = "1 worker" if servers == 1 else f"{servers} workers"
    inspectors = [f", inspector on {worker.address}" for worker in workers if worker.address]
    logger.info("sanic-worker %s (%s core) runs %s%s", info.version, info.core, count, "".join(inspectors))
