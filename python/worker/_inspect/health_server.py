"""The process ``Health``: answers probes and monitoring systems on a port of its own, without a key."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, MutableMapping
from os import environ
from socket import socket
from typing import Any

from sanic import Sanic
from sanic.log import error_logger, logger
from sanic.server.socket import bind_socket

from worker._control.send import Publisher
from worker._inspect.succession import Succession
from worker.constants import NAME_LIMIT, excerpt

__all__ = ["HealthServer"]

# The time from one attempt to listen to the next, seconds.
LISTEN_AGAIN = 5.0


class HealthServer:
    """Serves ``/livez``, ``/readyz`` and ``/metrics``, and nothing else.

    Args:
        publisher (Publisher): The sending end of the control channel.
        app_info (Mapping[str, Any]): The information on the application; only ``app``, its name, is used.
        worker_state (MutableMapping[str, Any]): The state of all processes, name to entry.
        host (str): The host to listen on.
        port (int): The port to listen on.
    """

    handles_stop_itself = True
    """It sets handlers of its own for a stop (:mod:`worker._spawn.processes`)."""
    restart_policy = "always"
    """It is replaced when it exits (:meth:`worker.manager.WorkerManager.manage`)."""
    absence = "It answers nobody until it runs."
    """The effect of its absence: it is never FAILED, and does not hold the stop of the server up."""

    def __init__(
        self,
        publisher: Publisher,
        app_info: Mapping[str, Any],
        worker_state: MutableMapping[str, Any],
        host: str,
        port: int,
    ) -> None:
        self._publisher = publisher
        self._app_info = app_info
        self._worker_state = worker_state
        self._host = host
        self._port = port
        self._succession = Succession()

    def __call__(self, **_: Any) -> None:
        """Serve until the process is stopped."""
        from worker._inspect import connections, responses
        from worker._inspect.health import add_routes
        from worker._inspect.serving import serve
        from worker._inspect.status import Sampler

        app: Sanic[Any, Any] = Sanic("sanic-worker-health")
        connections.prepare(app, asyncio.Event())
        responses.prepare(app)
        add_routes(app, self._publisher, Sampler(self._worker_state, self._app_info))
        environ["SANIC_IGNORE_PRODUCTION_WARNING"] = "true"
        with self._listen() as sock:
            serve(app, sock, self._worker_state)

    def _listen(self) -> socket:
        """Return the listening socket; if another process has the port, wait until it is free."""
        is_first = True
        while True:
            try:
                sock = bind_socket(self._host, self._port)
            except (OSError, OverflowError, ValueError) as error:
                if self._succession.awaits_address():
                    continue
                if is_first:
                    error_logger.error(
                        "Health cannot listen on %s:%s: %s. Trying again every %g s. "
                        "Set SANIC_WORKER_HEALTH_HOST or SANIC_WORKER_HEALTH_PORT to a free one.",
                        excerpt(self._host, NAME_LIMIT),
                        self._port,
                        excerpt(error),
                        LISTEN_AGAIN,
                    )
                is_first = False
                time.sleep(LISTEN_AGAIN)
            else:
                logger.info("Health listens on %s:%s", excerpt(self._host, NAME_LIMIT), self._port)
                return sock
