"""The inspector: shows and controls a running server over HTTP."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from datetime import datetime
from functools import cached_property, lru_cache, partial
from inspect import isawaitable
from math import isfinite
from os import environ
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from sanic import Sanic
from sanic.exceptions import BadRequest, Forbidden, Unauthorized
from sanic.helpers import Default
from sanic.log import error_logger, logger
from sanic.request import Request
from sanic.response import HTTPResponse, json

from worker._child import bootstrap
from worker.constants import NAME_LIMIT, excerpt

if TYPE_CHECKING:
    from worker._inspect.actions import Action
    from worker._inspect.address import Address
    from worker._inspect.operations import Operations, Publisher

__all__ = ["Inspector", "action"]

Method = TypeVar("Method")

# JSON holds these as they are.
_PLAIN = frozenset({str, int, bool, type(None)})
# The largest depth of lists and mappings. JSON encoders have limits, too.
_MAX_DEPTH = 100


def action(*, read_only: bool = False, hidden: bool = False) -> Callable[[Method], Method]:
    """Mark a method of a subclass of :class:`Inspector`: a decorator.

    The public methods of a subclass are actions without it. It makes actions of those that another class
    defines, too.

    Args:
        read_only (bool): The method changes nothing, so GET calls it, too; its arguments are in the query.
            Defaults to ``False``.
        hidden (bool): The method cannot be called over HTTP. Defaults to ``False``.

    Raises:
        TypeError: The decorated object is no method.
    """

    def mark(method: Method) -> Method:
        # Imported on use: every server imports this module.
        from worker._inspect.marks import Marks, set_marks

        set_marks(method, Marks(read_only, hidden))
        return method

    return mark


class Inspector:
    """Shows the state of the server's processes over HTTP, and sends commands of an operator.

    It runs in a process of its own, on its own host and port. ``GET /`` returns information on the
    application and on each process; a browser gets a page that shows them. ``POST /<action>`` calls the
    method of that name. The members of the JSON object in the body are its arguments (``args``, a list,
    holds positional ones). The response is ``{"meta": {"action": <action>}, "result": <return value>}``.

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
        api_key (str): The token that a request must carry; empty for none. For a number or a boolean, the
            text in ``SANIC_INSPECTOR_API_KEY`` is the key: Sanic has converted it.
        tls_key (Path | str | Default): The path of the TLS key; TLS takes both it and the certificate.
        tls_cert (Path | str | Default): The path of the TLS certificate.
    """

    app: Sanic[Any, Any]
    """The application of the inspector, made when it is called."""

    handles_stop_itself = True
    """It sets handlers of its own for a stop (:mod:`worker._spawn.processes`)."""
    restart_policy = "always"
    """It is replaced when it exits (:meth:`worker.manager.WorkerManager.manage`)."""
    absence = "It answers nobody until it runs."
    """The effect of its absence: it is never FAILED, and does not hold the stop of the server up."""

    _succession: Any = None

    def __init__(
        self,
        publisher: Publisher,
        app_info: dict[str, Any],
        worker_state: MutableMapping[str, Any],
        host: str,
        port: int,
        api_key: str,
        tls_key: Path | str | Default,
        tls_cert: Path | str | Default,
    ) -> None:
        # Imported on use: every server imports this module.
        from worker._inspect.key import key_text

        self._publisher = publisher
        self.app_info = app_info
        self.worker_state = worker_state
        self.host = host
        self.port = port
        self.api_key = key_text(api_key)
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

    def __before_start__(self, settings: Any) -> str | None:
        """Return the URL, in the main process; ``None``, and log an error, if the inspector may not start."""
        from worker._inspect.address import AddressRefusedError, Succession

        # The child is given this object.
        self._succession = Succession()
        address = self._address(settings)
        try:
            address.check()
        except AddressRefusedError as refusal:
            error_logger.error(f"Inspector not started: {refusal}")
            return None
        return address.url

    def __after_stop__(self, settings: Any) -> None:
        """Remove the files of the inspector, in the main process."""
        self._address(settings).clean_up(bootstrap.main_pid())

    def reload(self, zero_downtime: bool = False) -> None:
        """Restart all workers.

        Args:
            zero_downtime (bool): Start each new process before the old one is stopped.
                Defaults to ``False``.

        Raises:
            BadRequest: ``zero_downtime`` is no boolean.
        """
        from worker._inspect import arguments

        self._operations.request("restart", f"__ALL_PROCESSES__:{arguments.order(zero_downtime)}")

    def restart(self, names: str | Sequence[str], zero_downtime: bool = False) -> None:
        """Restart some workers.

        Args:
            names (str | Sequence[str]): Their names: a list, or text with commas.
            zero_downtime (bool): As for :meth:`reload`.

        Raises:
            BadRequest: A name is unknown, or an argument has another type.
        """
        from worker._inspect import arguments

        found = arguments.names(names, self._snapshot())
        self._operations.request("restart", f"{','.join(found)}:{arguments.order(zero_downtime)}")

    def scale(self, replicas: str | int) -> str:
        """Change the number of workers.

        Args:
            replicas (str | int): The new number of workers, from 1 on; or as text with a sign, ``+1`` or
                ``-1``, the change of it. 0 and an empty value stand for 1.

        Returns:
            str: ``Scaling to <number>``.

        Raises:
            BadRequest: ``replicas`` is no such number, more than the setting ``max_workers``, or out of the
                range of the setting ``workers``.
        """
        from worker._inspect import arguments

        settings = bootstrap.current_settings()
        limits, setting = (1, settings.max_workers), "max_workers"
        if settings.range is not None:
            limits, setting = settings.range, "workers"
        num_workers = arguments.replicas(replicas, *limits, setting, self._num_servers)
        log_msg = f"Scaling to {num_workers}"
        logger.info(log_msg)
        self._operations.scale(num_workers)
        return log_msg

    def shutdown(self) -> None:
        """Stop the whole server."""
        self._operations.request("shutdown", "__TERMINATE__")

    def upgrade(self) -> None:
        """Start a new main process with new code, which takes the place of this one on the same sockets."""
        self._operations.request("upgrade", "__UPGRADE__")

    async def stacks(self, name: str) -> dict[str, Any]:
        """Show the stacks of a process, also of one that is stuck.

        Args:
            name (str): Its name.

        Returns:
            dict[str, Any]: ``name``, ``pid``, ``text``, and ``debugger``: the one that is at work in the
                process, or ``None``. ``way`` is ``interpreter`` if the process has told its stacks itself,
                ``faulthandler`` if C code holds its GIL, and ``kernel`` if it does not answer.

        Raises:
            BadRequest: ``name`` is no text.
            NotFound: There is no process of this name.
        """
        from worker._inspect import stacks

        return await stacks.collect(self.worker_state, name)

    def _setup(self) -> None:
        # The parts are imported on use: every server imports this module.
        from worker._inspect import connections, health, openapi, responses
        from worker._inspect.guard import Guard
        from worker._inspect.status import Sampler
        from worker._inspect.stream import Streams

        app, stopping = self.app, self._operations.stopping
        connections.prepare(app, stopping)
        responses.prepare(app)
        sampler = Sampler(self.worker_state, self.app_info)
        app.add_route(self._info, "/")
        app.add_route(self._action, "/<action:str>", methods=["GET", "POST"])
        self._operations.add_routes(app, self._respond)
        Streams(self.worker_state, sampler, stopping).add_routes(app, self._respond)
        health.add_routes(app, self._publisher, sampler)
        openapi.add_route(app, self._actions, has_key=self._has_key)
        # A fixed path comes before an action of that name, which only POST calls then.
        fixed = {route.path for route in app.router.routes}
        for name, (_, is_read_only) in self._actions.items():
            methods = ["GET", "POST"] if is_read_only and name not in fixed else ["POST"]
            app.add_route(partial(self._action, action=name), f"/{name}", methods=methods, name=f"{name}_")
        check: Any = Guard(self._authentication, stopping) if self._has_key else self._same_origin
        app.on_request(lambda request: None if self._is_open(request) else check(request))
        environ["SANIC_IGNORE_PRODUCTION_WARNING"] = "true"

    def _run(self) -> None:
        # Imported on use, as above.
        from worker._inspect.address import AddressRefusedError
        from worker._inspect.serving import serve

        address = self._address(bootstrap.current_settings())
        name = str(self.app_info.get("app", ""))
        tls = self._tls if address.is_secure else None
        try:
            with address.listening(self.worker_state, name, bootstrap.main_pid()) as sock:
                serve(self.app, sock, self.worker_state, tls)
        except AddressRefusedError as refusal:
            error_logger.error(f"Inspector not started: {refusal}")
            raise SystemExit(1) from None

    def _address(self, settings: Any) -> Address:
        # Imported on use: every server imports this module.
        from worker._inspect.address import Address

        return Address(
            host=self.host,
            port=self.port,
            unix=settings.inspector_unix,
            is_secure=self._tls is not None and not settings.inspector_unix,
            may_be_open=self._has_key or settings.inspector_open,
            succession=self._succession,
        )

    @property
    def _tls(self) -> dict[str, Any] | None:
        tls = {"key": self.tls_key, "cert": self.tls_cert}
        given = all(path and not isinstance(path, Default) for path in tls.values())
        return tls if given else None

    @property
    def _has_key(self) -> bool:
        return bool(self.api_key)

    def _is_open(self, request: Request) -> bool:
        """Return whether a request needs neither a key nor an origin."""
        from worker._inspect.health import is_probe
        from worker._inspect.requests import is_malformed

        # The answer to a malformed one names its fault. The request is not handled.
        return is_malformed(request) or (is_probe(request) and bootstrap.current_settings().health_open)

    def _authentication(self, request: Request) -> None:
        from worker._inspect.guard import is_key
        from worker._inspect.page import wants_page

        # The page holds no data: its scripts ask for the key, and for the data with it.
        if not is_key(request.token, self.api_key) and not wants_page(request):
            raise Unauthorized("Bad API key")

    def _same_origin(self, request: Request) -> None:
        # Imported on use: every server imports this module.
        from worker._inspect.origin import refusal_reason

        is_secure = request.conn_info is not None and request.conn_info.ssl
        if reason := refusal_reason(request, "https" if is_secure else "http"):
            raise Forbidden(
                f"The request is refused: {reason}. Set INSPECTOR_API_KEY to allow it with the key"
            )

    @cached_property
    def _operations(self) -> Operations:
        from worker._inspect.operations import Operations

        return Operations(self._publisher, self.worker_state)

    @cached_property
    def _actions(self) -> dict[str, Action]:
        from worker._inspect import actions

        return actions.find(self, Inspector)

    async def _action(self, request: Request, action: str) -> HTTPResponse:
        from worker._inspect import actions, requests

        logger.info("Incoming inspector action: %s", excerpt(action))
        if action not in self._actions:
            raise actions.unknown(action, self._actions)
        method, _ = self._actions[action]
        is_get = request.method == "GET"
        kwargs = requests.arguments(request) if is_get else requests.json_object(request)
        args = kwargs.pop("args", [])
        if not isinstance(args, list):
            raise BadRequest(f"args must be a JSON array, not {excerpt(args, NAME_LIMIT, quoted=True)}")
        actions.check_arguments(action, method, args, kwargs)
        with self._operations.called_by(request) as call:
            output = method(*args, **kwargs)
            if isawaitable(output):
                output = await output
        output, status, headers = await self._operations.complete(request, call, output)
        response = await self._respond(request, self._make_safe(output))
        response.status = status
        response.headers.update(headers)
        return response

    async def _info(self, request: Request) -> HTTPResponse:
        from worker._inspect import page

        if page.wants_page(request):
            return page.respond(request)
        state = self._state_to_json()
        return await self._respond(request, {**state, "info": _displayable(state["info"])})

    async def _respond(self, request: Request, output: Any) -> HTTPResponse:
        name = request.match_info.get("action") or request.path.partition("/")[2].partition("/")[0] or "info"
        return json({"meta": {"action": name}, "result": output})

    def _state_to_json(self) -> dict[str, Any]:
        return {"info": self.app_info, "workers": self._make_safe(self._snapshot())}

    def _num_servers(self) -> int:
        from worker._inspect import arguments

        scaling = self._operations.scaling()
        return arguments.num_servers(self._snapshot()) if scaling is None else scaling

    def _snapshot(self) -> dict[str, Any]:
        from worker._inspect.responses import read_state

        return read_state(self.worker_state)

    @staticmethod
    def _make_safe(obj: Any, above: tuple[int, ...] = ()) -> Any:
        """Return a copy of ``obj`` that JSON can hold: times in ISO 8601, unknown types as text.

        A number that is not finite becomes ``None``, and an object inside itself or too deep ``"..."``.
        """
        # Nearly all values are of these types. The check of an abstract class takes longer than the rest.
        kind = type(obj)
        if kind in _PLAIN:
            return obj
        if kind is datetime:
            return _iso(obj, obj.tzinfo, obj.fold)
        if isinstance(obj, float):
            return obj if isfinite(obj) else None
        safe = Inspector._make_safe
        if kind is dict or isinstance(obj, (Mapping, list, tuple, set, frozenset)):
            if id(obj) in above or len(above) == _MAX_DEPTH:
                return "..."
            above = (*above, id(obj))
        if kind is dict or isinstance(obj, Mapping):
            return {
                key: value
                if (kind := type(value)) in _PLAIN
                else _iso(value, value.tzinfo, value.fold)
                if kind is datetime
                else safe(value, above)
                for key, value in obj.items()
            }
        if isinstance(obj, datetime):
            return obj.isoformat()
        if isinstance(obj, (list, tuple, set, frozenset)):
            return [safe(value, above) for value in obj]
        return obj if isinstance(obj, (str, int)) else str(obj)


@lru_cache(maxsize=4096)
def _iso(time: datetime, *_: Any) -> str:
    """Return a time in ISO 8601. An entry shows the same times again and again.

    Times that are equal may differ in their zone and fold, so these are part of the key.
    """
    return time.isoformat()


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
