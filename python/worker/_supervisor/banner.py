"""The line of the log that names the manager."""

from __future__ import annotations

from collections.abc import Iterable

from sanic.log import logger

from worker._core import core_info
from worker.process import Worker

__all__ = ["announce"]


def announce(servers: int, workers: Iterable[Worker]) -> None:
    """Log which manager runs: its version, its core, how many servers, and where the inspector listens.

    Args:
        servers (int): The number of servers.
        workers (Iterable[Worker]): All workers. One that was not started listens nowhere.
    """
    info = core_info()
    count = "1 worker" if servers == 1 else f"{servers} workers"
    inspectors = [f", inspector on {worker.address}" for worker in workers if worker.address]
    logger.info("sanic-worker %s (%s core) runs %s%s", info.version, info.core, count, "".join(inspectors))
