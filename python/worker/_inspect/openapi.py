"""Describes the inspector in OpenAPI 3.1, the actions of a subclass included."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from inspect import Parameter, getdoc, signature
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from sanic import Sanic
from sanic.request import Request
from sanic.response import HTTPResponse, json

from worker._inspect.actions import OPERATIONS, Action
from worker._inspect.requests import MAX_WAIT
from worker._inspect.stream import INTERVALS, MAX_SEQ

__all__ = ["add_route", "describe"]

Schema = dict[str, Any]

JSON, HTML, EVENTS = "application/json", "text/html", "text/event-stream"
METRICS = ("text/plain", "application/openmetrics-text")
TYPES: dict[Any, Schema] = {
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    float: {"type": "number"},
    str: {"type": "string"},
    list: {"type": "array"},
    dict: {"type": "object"},
    NoneType: {"type": "null"},
}
TEXT, WHOLE, NUMBER = TYPES[str], {"type": "integer", "minimum": 0}, {"type": "number", "minimum": 0}
TIME = {"type": "string", "format": "date-time"}
OPERATION_ID = {"type": "string", "pattern": "^[0-9a-f]{12}$"}

ERRORS = {
    "400": "A part of the request is wrong; the message names it, its value and what is allowed.",
    "401": "The API key is missing or wrong.",
    "403": "The request may come from a foreign web page.",
    "404": "There is no such action, operation or process.",
    "405": "The method is not allowed.",
    "413": "The body or the header is too large.",
    "415": "The body is not JSON.",
    "429": "The client has sent too many bad API keys, or too many operations are under way.",
    "500": "The action has failed.",
    "503": "The state or the main process cannot be reached, or too many requests or streams are open.",
}


def add_route(app: Sanic[Any, Any], actions: Mapping[str, Action], *, has_key: bool) -> None:
    """Add the route of the description."""

    async def openapi(_: Request) -> HTTPResponse:
        return json(describe(actions, has_key=has_key))

    app.add_route(openapi, "/openapi.json")


def describe(actions: Mapping[str, Action], *, has_key: bool) -> dict[str, Any]:
    """Return the description of an inspector.

    Args:
        actions (Mapping[str, Action]): Its actions.
        has_key (bool): Whether a request needs an API key.
    """
    paths = _data_paths()
    for name, action in actions.items():
        path = paths.setdefault(f"/{name}", {})
        path["post"] = _post(name, action)
        if action.read_only:
            path.setdefault("get", _get(f"Call {name}.", _result(name), parameters=_query(action.method)))
    key = {"type": "http", "scheme": "bearer", "description": "INSPECTOR_API_KEY"}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Inspector",
            "version": _version(),
            "description": "Shows the processes of a Sanic server, and controls them.",
        },
        **({"security": [{"key": []}]} if has_key else {}),
        "paths": paths,
        "components": {
            **({"securitySchemes": {"key": key}} if has_key else {}),
            "schemas": _schemas(),
        },
    }


def _data_paths() -> dict[str, Any]:
    """Return the paths that show something."""
    interval = _parameter("interval", _range(*INTERVALS), "Seconds from one status of a stream to the next.")
    since = _parameter("since", {**WHOLE, "maximum": MAX_SEQ}, "The last event that is left out.")
    limit = _parameter("limit", {"type": "integer", "minimum": 1, "maximum": 1000}, "The number of events.")
    wait = _parameter("wait", _range(0, MAX_WAIT), "How long to wait until the operation has ended, seconds.")
    resume = _parameter("Last-Event-ID", TEXT, "The last event that a stream leaves out.", where="header")
    ident = _parameter("id", OPERATION_ID, "The id of the operation.", where="path") | {"required": True}
    minimum = _parameter(
        "min", {"type": "integer", "minimum": 1, "maximum": 999_999}, "The number of servers that suffice."
    )
    info = _object(info={"type": "object"}, workers={"type": "object"})
    events = _object(events=_list(_ref("Event")), last=WHOLE)
    return {
        "/": {
            "get": _get(
                "Show the application and the state of each process; to a browser, a page.",
                _of("info", info),
                other=HTML,
            )
        },
        "/status": {
            "get": _get(
                "Show the status of all workers, once or as a stream.",
                _of("status", _ref("Status")),
                parameters=[interval, resume],
                other=EVENTS,
            )
        },
        "/events": {
            "get": _get(
                "Show the events, the oldest first: the newest ones, or those after a number.",
                _of("events", events),
                parameters=[since, limit, resume],
                other=EVENTS,
            )
        },
        "/operations": {
            "get": _get(
                "Show the operations, the newest first.",
                _of("operations", _object(operations=_list(_ref("Operation")))),
            )
        },
        "/operations/{id}": {
            "get": _get("Show an operation.", _of("operations", _ref("Operation")), parameters=[ident, wait])
        },
        "/livez": {"get": _probe("Show whether the main process turns its loop.")},
        "/readyz": {"get": _probe("Show whether enough servers are ready.", [minimum])},
        "/metrics": {"get": _metrics()},
        "/openapi.json": {"get": _get("Show this description.", {"type": "object"})},
    }


def _probe(summary: str, parameters: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    described = _get(summary, _object(status=TEXT), parameters=parameters)
    failed = {"description": "The probe has failed.", "content": {JSON: {"schema": {"type": "object"}}}}
    described["responses"]["503"] = failed
    return described


def _metrics() -> dict[str, Any]:
    described = _get("Show the metrics for Prometheus, in the format that Accept asks for.", {})
    described["responses"]["200"]["content"] = {format_: {"schema": TEXT} for format_ in METRICS}
    return described


def _post(name: str, action: Action) -> dict[str, Any]:
    """Describe the call of an action."""
    described: dict[str, Any] = {
        "summary": (getdoc(action.method) or f"Call {name}.").partition("\n")[0],
        "operationId": f"post_{name}",
        "responses": _responses(_result(name)),
    }
    body = _body(name, action.method)
    if body is not None:
        is_required = bool(body["required"])
        described["requestBody"] = {"content": {JSON: {"schema": body}}, "required": is_required}
    if name in OPERATIONS:
        described["parameters"] = [
            _parameter("Prefer", TEXT, "respond-async, wait=10: answer with the operation.", where="header")
        ]
        location = {"Location": {"description": "The path of the operation.", "schema": TEXT}}
        described["responses"]["200"]["headers"] = location
        described["responses"]["202"] = {
            "description": "The operation has not ended yet.",
            "headers": location,
            "content": {JSON: {"schema": _of(name, _ref("Operation"))}},
        }
    return described


def _body(name: str, method: Callable[..., Any]) -> Schema | None:
    """Return the schema of the arguments of an action; ``None`` if it takes none."""
    if name == "scale":
        change = {"type": "string", "pattern": "^[+-]?[0-9]{1,9}$"}
        return _strict({"replicas": {"anyOf": [WHOLE, change]}}, ["replicas"])
    if name == "restart":
        names = {"anyOf": [_list(TEXT) | {"minItems": 1}, TEXT]}
        return _strict({"names": names, "zero_downtime": TYPES[bool]}, ["names"])
    if name == "stacks":
        return _strict({"name": TEXT}, ["name"])
    parameters = signature(method).parameters.values()
    if not parameters:
        return None
    hints = _hints(method)
    named = {one.name: _schema(hints.get(one.name)) for one in parameters if one.kind in _NAMED}
    # `args` holds positional arguments, so no name is required for sure.
    body = _strict({**named, "args": TYPES[list]}, [])
    if any(one.kind is Parameter.VAR_KEYWORD for one in parameters):
        body["additionalProperties"] = True
    return body


_NAMED = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)


def _query(method: Callable[..., Any]) -> list[dict[str, Any]]:
    """Return the parameters of a read-only action, for its query. All are text there."""
    return [
        _parameter(one.name, TEXT, "") | {"required": one.default is Parameter.empty}
        for one in signature(method).parameters.values()
        if one.kind in _NAMED
    ]


def _hints(method: Callable[..., Any]) -> dict[str, Any]:
    try:
        return get_type_hints(method)
    # A name in an annotation may exist for a type checker only.
    except Exception:
        return {}


def _schema(hint: Any) -> Schema:
    """Return the schema of a type; the empty one, which allows anything, if it is not a plain one."""
    if get_origin(hint) in (Union, UnionType):
        parts = [_schema(one) for one in get_args(hint)]
        return {"anyOf": parts} if all(parts) else {}
    return TYPES.get(get_origin(hint) or hint, {})


def _schemas() -> dict[str, Schema]:
    operation = _object(
        id=OPERATION_ID,
        kind={"enum": ["restart", "reload", "scale", "shutdown", "upgrade"]},
        status={"enum": ["pending", "running", "done", "failed"]},
        by=TEXT,
        requested_at=TIME,
        ended_at=_nullable(TIME),
        seconds=_nullable(NUMBER),
        done=WHOLE,
        total=WHOLE,
        text=TEXT,
        reason=TEXT,
        rolled_back=_list(TEXT),
    )
    event = _object(seq=WHOLE, time=TIME, type=TEXT, level=TEXT, text=TEXT)
    status = _object(
        time=TIME,
        server={"type": "object"},
        workers=_list(_object(name=TEXT, server=TYPES[bool], phase=_nullable(TEXT), pid=_nullable(WHOLE))),
        operations=_list(_ref("Operation")),
    )
    stacks = _object(
        name=TEXT,
        pid=WHOLE,
        way={"enum": ["interpreter", "faulthandler", "kernel"]},
        debugger=_nullable(TEXT),
        text=TEXT,
    )
    error = _object(description=TEXT, status=WHOLE, message=TEXT)
    return {"Operation": operation, "Event": event, "Status": status, "Stacks": stacks, "Error": error}


def _get(
    summary: str, schema: Schema, *, parameters: list[dict[str, Any]] | None = None, other: str = ""
) -> dict[str, Any]:
    responses = _responses(schema)
    if other:
        responses["200"]["content"][other] = {"schema": TEXT}
    return {"summary": summary, "responses": responses, **({"parameters": parameters} if parameters else {})}


def _responses(schema: Schema) -> dict[str, Any]:
    error = {"content": {JSON: {"schema": _ref("Error")}}}
    answer = {"description": "The answer.", "content": {JSON: {"schema": schema}}}
    return {"200": answer, **{code: {"description": text, **error} for code, text in ERRORS.items()}}


def _result(name: str) -> Schema:
    """Return the schema of the answer of an action."""
    return _of(name, _ref("Stacks")) if name == "stacks" else _of(name)


def _of(action: str, result: Schema | None = None) -> Schema:
    """Return the schema of an answer with this result; of any, by default."""
    return _object(meta=_object(action={"const": action}), result=result or {})


def _object(**properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": [*properties]}


def _strict(properties: Mapping[str, Schema], required: list[str]) -> Schema:
    return {
        "type": "object",
        "properties": dict(properties),
        "required": required,
        "additionalProperties": False,
    }


def _list(of: Schema) -> Schema:
    return {"type": "array", "items": of}


def _nullable(schema: Schema) -> Schema:
    return {"anyOf": [schema, TYPES[NoneType]]}


def _range(least: float, most: float) -> Schema:
    return {"type": "number", "minimum": least, "maximum": most}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _parameter(name: str, schema: Schema, text: str, *, where: str = "query") -> dict[str, Any]:
    return {"name": name, "in": where, "schema": schema, "description": text}


def _version() -> str:
    from worker._core import core_info

    return core_info().version
