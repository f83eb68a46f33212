"""Functions of the application for the forks of the preload process: what to do before, and in each child."""

from __future__ import annotations

from collections.abc import Callable
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Any, TypeVar

from sanic.log import error_logger

if TYPE_CHECKING:
    from worker._child.preload.findings import Finding

__all__ = ["after_fork", "before_fork", "run_after_fork", "run_before_fork"]

Hook = TypeVar("Hook", bound=Callable[[], Any])

_before: list[Callable[[], Any]] = []
_after: list[Callable[[], Any]] = []
# Those of an application that was imported before the fork.
_due: list[Callable[[], Any]] = []


def before_fork(function: Hook) -> Hook:
    """Call a function in the preload process, once, when it has imported the application (a decorator).

    Here the application gives up what forks must not share: it closes a pool, or ends a thread. It is called
    with ``preload="app"`` alone: no worker is forked otherwise with the application imported. If it raises an
    error, the application is not preloaded.

    Args:
        function (Callable): The function, without parameters, in a module that the application imports.

    Returns:
        Callable: The same function.

    Raises:
        TypeError: The function is asynchronous: no event loop runs there.
    """
    _check(function)
    _before.append(function)
    return function


def after_fork(function: Hook) -> Hook:
    """Call a function in each process that is forked with the application imported (a decorator).

    It is called before the process does anything else of the application, in the order of the decorators. If
    it raises an error, the process exits with code 1. A process that imports the application itself does not
    call it.

    Args:
        function (Callable): The function, without parameters, in a module that the application imports.

    Returns:
        Callable: The same function.

    Raises:
        TypeError: The function is asynchronous: no event loop runs there.
    """
    _check(function)
    _after.append(function)
    return function


def run_before_fork() -> list[Finding]:
    """Call the functions of :func:`before_fork`; return their errors as findings."""
    from worker._child.preload.findings import Finding

    _due[:] = _after
    found = []
    for function in _before:
        try:
            function()
        # The code of the application may raise any error, and may leave by SystemExit.
        except BaseException as error:
            text = _log(function, "before the forks", error)
            found.append(Finding(text, function.__module__, _line(function)))
    return found


def run_after_fork() -> None:
    """Call the functions of :func:`after_fork` in a child that was forked with the application imported.

    Raises:
        SystemExit: One has failed. The error was logged.
    """
    for function in _due:
        try:
            function()
        except Exception as error:
            _log(function, "after the fork", error)
            raise SystemExit(1) from error
    _due.clear()


def _check(function: Callable[[], Any]) -> None:
    if iscoroutinefunction(function):
        name = getattr(function, "__qualname__", function)
        raise TypeError(
            f"{name} is asynchronous. Functions for a fork are called without an event loop: give a plain "
            "function, or use a listener such as before_server_start"
        )


def _log(function: Callable[[], Any], when: str, error: BaseException) -> str:
    """Log the error of a function, with its traceback; return the text."""
    name = getattr(function, "__qualname__", function)
    text = f"{function.__module__}.{name} failed {when}: {type(error).__name__}: {error}"
    error_logger.error("%s", text, exc_info=error)
    return text


def _line(function: Callable[[], Any]) -> int:
    code = getattr(function, "__code__", None)
    return code.co_firstlineno if code is not None else 0
