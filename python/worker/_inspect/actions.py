"""The actions of an inspector: the methods that can be called over HTTP, and the check of their arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from inspect import Parameter, signature
from types import FunctionType
from typing import Any, NamedTuple

from sanic.exceptions import BadRequest, NotFound

from worker._inspect.marks import Marks, marks_of
from worker.constants import NAME_LIMIT, excerpt, listed

__all__ = ["BUILT_IN", "OPERATIONS", "Action", "check_arguments", "find", "unknown"]

# They begin operations.
OPERATIONS = ("reload", "restart", "scale", "shutdown", "upgrade")
# They change nothing. Their class bears no marks: every server imports it, but not the module of the marks.
READ_ONLY = ("stacks",)
BUILT_IN = (*OPERATIONS, *READ_ONLY)


class Action(NamedTuple):
    """One action.

    Attributes:
        method: The bound method.
        read_only: Whether GET calls it, too.
    """

    method: Callable[..., Any]
    read_only: bool


def find(inspector: object, base: type) -> dict[str, Action]:
    """Return the actions of an inspector, by name.

    They are the built-in ones, the public methods that the classes derived from ``base`` define, and those of
    other classes that bear marks. Attributes, properties and static methods are none, so no code of theirs
    runs.

    Args:
        inspector (object): The inspector.
        base (type): The class of the package.
    """
    found: dict[str, Action] = {}
    seen: set[str] = set()
    for owner in type(inspector).__mro__:
        is_own = issubclass(owner, base) and owner is not base
        for name, member in vars(owner).items():
            # The first class in the order of resolution decides, as in an attribute access.
            if name.startswith("_") or name in seen:
                continue
            seen.add(name)
            marks = marks_of(member)
            if not isinstance(getattr(member, "__func__", member), FunctionType):
                continue
            is_action = is_own or marks is not None or name in BUILT_IN
            if is_action and not isinstance(member, staticmethod) and not (marks or Marks()).hidden:
                method = member.__get__(inspector, type(inspector))
                is_read_only = owner is base and name in READ_ONLY if marks is None else marks.read_only
                found[name] = Action(method, is_read_only)
    return dict(sorted(found.items()))


def unknown(name: str, known: Mapping[str, Action]) -> NotFound:
    """Return the error of a request for an action that does not exist."""
    return NotFound(f"Unknown action: {excerpt(name)}. Known actions: {listed([*known])}")


def check_arguments(
    name: str, method: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> None:
    """Check that a method takes these arguments.

    Raises:
        BadRequest: It does not; the message has its parameters.
    """
    parameters = signature(method)
    try:
        parameters.bind(*args, **kwargs)
        # With `**kwargs`, a bound method seems to take the name of its own first parameter.
        function: Any = method
        signature(function.__func__).bind(function.__self__, *args, **kwargs)
    except TypeError as error:
        given = {**({"args": [*args]} if args else {}), **kwargs}
        raise BadRequest(
            f"Cannot call {name}: {excerpt(error)}. The request gives {excerpt(given)}; "
            f"{name} takes {_described(parameters.parameters.values())}"
        ) from error


def _described(parameters: Sequence[Parameter] | Any) -> str:
    shown = ", ".join(str(one.replace(annotation=Parameter.empty)) for one in parameters)
    return excerpt(shown, 2 * NAME_LIMIT) or "no arguments"
