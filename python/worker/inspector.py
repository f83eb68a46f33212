"""The inspector: shows and controls a running server over HTTP."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime
from hmac import compare_digest
from inspect import isawaitable, ismethod, signature
from os import environ
from pathlib import Path
from socket import socket
from typing import Any

from sanic import Sanic
from sanic.exceptions import BadRequest, Forbidden, NotFound, ServiceUnavailable, Unauthorized
from sanic.helpers import Default
from sanic.log import error_logger, logger
from sanic.request import Request
from sanic.response import HTTPResponse, json
from sanic.server.socket import bind_socket

from worker._child import bootstrap
from worker._control.send import Publisher, send
from worker._state.foreign import snapshot
from worker._state.shared import SharedState
from worker.constants import NAME_LIMIT, excerpt

__all__ = ["Inspector"]

# The errors of an address that is in use, unavailable or invalid.
CANNOT_BIND = (OSError, OverflowError, ValueError, TypeError)
# The time from one check whether the server runs to the next, seconds.
TRY_AGAIN = 0.02


class Inspector:
    """Shows the state of the server's processes over HTTP, and sends commands of an operator.

    It runs in a process of its own, on its own host and port. ``GET /`` returns information on the
    application and on each process. ``POST /<action>`` calls the method of that name. The members of the JSON
    object in the body are its arguments (``args``, a list, holds positional ones). The response is
    ``{"meta": {"action": <action>}, "result": <return value>}``.

    The public methods of a subclass, sync or async, are actions, too. They must return values that JSON can
    hold.

    With an API key, every request must carry it as a bearer token. Without one, the inspector is started only
    on a loopback address (unless the setting ``inspector_open`` allows others), and it refuses requests that
    a foreign web page may have caused.

    Args:
        publisher (Publisher): The sending end of the control channel.
        app_info (dict[str, Any]): The information on the application to be shown; JSON can hold it.
        worker_state (MutableMapping[str, Any]): The state of all processes, name to entry.
        host (str): The host to listen on.
        port (int): The port to listen on.
        api_key (str): The token that a request must carry; empty for none.
        tls_key (Path | str | Default): The path of the TLS key; TLS takes both it and the certificate.
        tls_cert (Path | str | Default): The path of the TLS certificate.
    """

    app: Sanic[Any, Any]
    """The application of the inspector, made when it is called."""

    handles_stop_itself = True
    """It sets handlers of its own for a stop (:mod:`worker._spawn.processes`)."""
    restart_policy = "always"
    """It is replaced when it exits (:meth:`worker.manager.WorkerManager.manage`)."""

    def __init__(
        self,
        publisher: Publisher,
        app_info: dict[str, Any],
        worker_state: Mapping[str, Any],
        host: str,
        port: int,
        api_key: str,
        tls_key: Path | str | Default,
        tls_cert: Path | str | Default,
    ) -> None:
        self._publisher = publisher
        self.app_info = app_info
        self.worker_state = worker_state
        self.host = host
        self.port = port
        self.api_key = api_key
        self.tls_key = tls_key
        self.tls_cert = tls_cert

    def __call__(self, run: bool = True, **_: Any) -> Inspector:
        """Make the application and serve it until the process is stopped.

        Args:
            run (bool): Serve. ``False`` only makes the application, as :attr:`app`. Defaults to ``True``.

        Raises:
            SystemExit: The inspector cannot listen on the address (exit code 1; the reason is logged).
        """
        self.app = Sanic("Inspector")
        self._setup()
        if run:
            self._run()
        return self

    def _may_start(self, settings: Any) -> bool:
        """Return whether the main process may start the inspector; log an error if it would be open."""
        # Not a public method: those are actions.
        try:
            # Any port suffices: only the address of the host matters.
            probe = bind_socket(self.host, 0)
        except CANNOT_BIND:
            # The process will get the same error, and report it.
            return True
        with probe:
            return self._may_listen(probe, settings.inspector_open)

    def reload(self, zero_downtime: bool = False) -> None:
        """Restart all workers.

        Args:
            zero_downtime (bool): Start each new process before the old one is stopped.
                Defaults to ``False``.
        """
        send(self._publisher, "__ALL_PROCESSES__:" + (":STARTUP_FIRST" if zero_downtime else ""))

    def scale(self, replicas: str | int) -> str:
        """Change the number of workers.

        Args:
            replicas (str | int): The new number of workers, from 1 on. 0 and an empty value stand for 1.

        Returns:
            str: ``Scaling to <number>``.

        Raises:
            BadRequest: ``replicas`` is no such number.
        """
        num_workers = _number_of_workers(replicas)
        log_msg = f"Scaling to {excerpt(str(num_workers))}"
        logger.info(log_msg)
        send(self._publisher, f"__SCALE__:{num_workers}")
        return log_msg

    def shutdown(self) -> None:
        """Stop the whole server."""
        send(self._publisher, "__TERMINATE__")

    def _setup(self) -> None:
        self.app.add_route(self._info, "/")
        self.app.add_route(self._action, "/<action:str>", methods=["POST"])
        check = self._authentication if self._has_key else self._same_origin
        self.app.on_request(self._add_health(check))
        self.app.config.FALLBACK_ERROR_FORMAT = "json"
        self.app.after_server_start(self._show_stoppable)
        environ["SANIC_IGNORE_PRODUCTION_WARNING"] = "true"

    def _add_health(self, check: Callable[[Request], None]) -> Callable[[Request], Any]:
        """Add the probes and the metrics; return the check of all requests, which may exempt the probes."""
        # Imported on use: every server imports this module.
        from worker._inspect.health import add_routes, except_probes
        from worker._inspect.status import Sampler

        add_routes(self.app, self._publisher, Sampler(self.worker_state, self.app_info))
        return except_probes(check) if bootstrap.current_settings().health_open else check

    def _run(self) -> None:
        # A forked process also has the served applications, and would serve them beside its own.
        for app in Sanic._app_registry.values():
            if app is not self.app:
                app.state.server_info.clear()
        sock = self._listen()
        if sock is None:
            raise SystemExit(1)
        with sock:
            self.app.run(sock=sock, single_process=True, ssl=self._tls())

    def _tls(self) -> dict[str, Any] | None:
        tls = {"key": self.tls_key, "cert": self.tls_cert}
        given = all(path and not isinstance(path, Default) for path in tls.values())
        return tls if given else None

    def _show_stoppable(self, app: Any) -> None:
        """Show in the state, once the loop runs for good, that a stop signal cannot be lost any more."""
        if not app.state.is_running:
            app.loop.call_later(TRY_AGAIN, self._show_stoppable, app)
        elif isinstance(self.worker_state, SharedState):
            self.worker_state.flag(stoppable=True)

    def _listen(self) -> socket | None:
        try:
            sock = bind_socket(self.host, self.port)
        except CANNOT_BIND as error:
            error_logger.error(
                "Inspector cannot listen on %s:%s: %s. Set INSPECTOR_HOST or INSPECTOR_PORT to a free one.",
                excerpt(self.host, NAME_LIMIT),
                excerpt(self.port, NAME_LIMIT),
                excerpt(error),
            )
            return None
        if self._may_listen(sock, bootstrap.current_settings().inspector_open):
            return sock
        sock.close()
        return None

    @property
    def _address(self) -> str:
        """The URL for the log of the main process; a port 0 is chosen only when the inspector listens."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self._tls() else 'http'}://{host}:{self.port or '<any free port>'}"

    @property
    def _has_key(self) -> bool:
        # A key of digits alone in the environment arrives as a number.
        key: Any = self.api_key
        return bool(key) or type(key) is int

    def _may_listen(self, sock: socket, may_be_open: bool) -> bool:
        from worker._inspect.origin import is_loopback

        if self._has_key or may_be_open or is_loopback(sock):
            return True
        error_logger.error(
            "Inspector not started: on %s (%s) any client that reaches this machine could stop the server. "
            "Set INSPECTOR_API_KEY, or set INSPECTOR_HOST to localhost, or allow this with "
            "SANIC_WORKER_INSPECTOR_OPEN=true.",
            excerpt(self.host, NAME_LIMIT) or repr(self.host),
            sock.getsockname()[0],
        )
        return False

    def _authentication(self, request: Request) -> None:
        token = (request.token or "").encode()
        if not compare_digest(token, str(self.api_key).encode()):
            raise Unauthorized("Bad API key")

    def _same_origin(self, request: Request) -> None:
        # Imported on use: every server imports this module.
        from worker._inspect.origin import refusal_reason

        if reason := refusal_reason(request, "https" if self._tls() else "http"):
            raise Forbidden(
                f"The request is refused: {reason}. Set INSPECTOR_API_KEY to allow it with the key"
            )

    async def _action(self, request: Request, action: str) -> HTTPResponse:
        logger.info("Incoming inspector action: %s", excerpt(action))
        method = self._method(action)
        kwargs = request.json if request.body else {}
        if not isinstance(kwargs, dict):
            raise BadRequest("The body must be a JSON object")
        args = kwargs.pop("args", [])
        if not isinstance(args, list):
            raise BadRequest("args must be a JSON array")
        try:
            signature(method).bind(*args, **kwargs)
        except TypeError as error:
            raise BadRequest(f"Cannot call {action}: {error}") from error
        output = method(*args, **kwargs)
        if isawaitable(output):
            output = await output
        return await self._respond(request, output)

    def _method(self, action: str) -> Callable[..., Any]:
        # The class is checked first: a property of the instance would run its code and then be refused.
        if not action.startswith("_") and callable(getattr(type(self), action, None)):
            method = getattr(self, action)
            if ismethod(method):
                return method
        raise NotFound(f"Unknown action: {action}")

    async def _info(self, request: Request) -> HTTPResponse:
        state = self._state_to_json()
        return await self._respond(request, {**state, "info": _displayable(state["info"])})

    async def _respond(self, request: Request, output: Any) -> HTTPResponse:
        name = request.match_info.get("action", "info")
        return json({"meta": {"action": name}, "result": output})

    def _state_to_json(self) -> dict[str, Any]:
        try:
            workers = snapshot(self.worker_state)
        except (OSError, EOFError) as error:
            raise ServiceUnavailable(f"The state of the workers cannot be reached: {error}") from error
        return {"info": self.app_info, "workers": self._make_safe(workers)}

    @staticmethod
    def _make_safe(obj: Any) -> Any:
        """Return a copy of ``obj`` that JSON can hold: times in ISO 8601, unknown types as text."""
        if isinstance(obj, Mapping):
            return {key: Inspector._make_safe(value) for key, value in obj.items()}
        if isinstance(obj, (list, tuple, set, frozenset)):
            return [Inspector._make_safe(value) for value in obj]
        if isinstance(obj, datetime):
            return obj.isoformat()
        return obj if obj is None or isinstance(obj, (str, int, float)) else str(obj)


def _number_of_workers(value: Any) -> int:
    if not value:
        return 1
    if isinstance(value, (int, str)) and not isinstance(value, bool):
        with suppress(ValueError):
            number = int(value)
            if number >= 0:
                return number or 1
    raise BadRequest(f"replicas must be a whole number from 1 on, not {value!r}")


def _displayable(info: Mapping[str, Any]) -> dict[str, Any]:
    """Return the information on the application in the form that ``sanic inspect`` displays.

    The client needs a list of ``packages`` and displays only text.
    """
    shown: dict[str, Any] = {key: str(value) for key, value in info.items()}
    packages, extra = info.get("packages") or (), info.get("extra")
    shown["packages"] = [*map(str, packages)] if isinstance(packages, (list, tuple)) else [str(packages)]
    if isinstance(extra, Mapping):
        shown["extra"] = {key: str(value) for key, value in extra.items()}
    elif extra is not None:
        shown["extra"] = {"extra": str(extra)}
    return shown
