"""Resolve the settings of :mod:`worker.settings.table` from their sources.

A setting is given to ``WorkerManager(...)``, to ``worker.install(...)``, in the environment as
``SANIC_WORKER_<NAME>`` or to the command as ``--<name>``; the later of these wins. The main process resolves
all settings once. They travel to the children on their process object.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from sanic.log import logger

from worker._core import IS_NATIVE
from worker.constants import excerpt
from worker.settings import values
from worker.settings.table import ENV_PREFIX, SETTINGS, Setting, Settings

__all__ = ["SETTINGS", "Setting", "Settings", "find", "number_of_servers", "resolve"]

# These settings need no manager: they hold in a server of a single process as well.
IN_ANY_SERVER = frozenset({"group", "idle_drain_timeout", "umask", "unix_mode", "user"})

# From install(), and from the flags of the command.
_installed: dict[str, Any] = {}
_flags: dict[str, Any] = {}
# Sanic's own variables with this prefix.
_SANICS = frozenset({"NAME", "IDENTIFIER", "PROCESS"})
_warned: set[str] = set()

_BY_NAME = {setting.name: setting for setting in SETTINGS}


def install(given: Mapping[str, Any]) -> None:
    """Keep the settings given to ``worker.install()`` for every manager from now on.

    Raises:
        TypeError: There is no setting of that name.
        ValueError: A value is wrong.
    """
    for name, value in given.items():
        if name not in _BY_NAME:
            raise TypeError(f"There is no setting {name!r}; there are: {', '.join(_BY_NAME)}")
        checked(name, value, "worker.install()")
    _installed.update(given)


def take_flags(given: Mapping[str, str]) -> None:
    """Keep the settings given as flags of the command, by name.

    Raises:
        ValueError: A value is wrong.
    """
    for name, value in given.items():
        checked(name, value, _BY_NAME[name].flag)
    _flags.update(given)


def warn_without_manager() -> None:
    """Log one warning that names the flags without an effect in a server of a single process."""
    flags = [one.flag for one in SETTINGS if one.name in _flags and one.name not in IN_ANY_SERVER]
    if flags:
        verb = "has" if len(flags) == 1 else "have"
        logger.warning("%s %s no effect with --single-process", ", ".join(flags), verb)


def forget() -> None:
    """Drop the settings from ``worker.install()`` and from flags."""
    _installed.clear()
    _flags.clear()


def resolve(given: Mapping[str, Any]) -> Settings:
    """Return the settings of a manager.

    Args:
        given (Mapping[str, Any]): The keywords of its constructor. ``None`` counts as not given; other names
            than those of settings are passed over.

    Raises:
        ValueError: A value is wrong, or two of them do not agree. The message names the setting, the value
            and the allowed values.
    """
    values, sources = {}, {}
    for setting in SETTINGS:
        source, value = _find(setting, given.get(setting.name))
        values[setting.name] = setting.default() if value is None else checked(setting.name, value, source)
        if value is not None:
            sources[setting.name] = source
    resolved = Settings(**values)
    if (
        resolved.backoff_initial > resolved.backoff_max
        and {"backoff_initial", "backoff_max"} <= sources.keys()
    ):
        raise ValueError(
            f"backoff_initial of {sources['backoff_initial']}, {resolved.backoff_initial:g}, is more than "
            f"backoff_max of {sources['backoff_max']}, {resolved.backoff_max:g}: it takes at most that"
        )
    if resolved.range is not None:
        _check_range(resolved.range, sources["workers"], resolved.max_workers)
    return resolved


def find(name: str) -> Any:
    """Return the value of one setting; ``None`` if it is not given.

    Raises:
        ValueError: The value is wrong.
    """
    source, value = _find(_BY_NAME[name])
    return None if value is None else checked(name, value, source)


def _find(setting: Setting, given: Any = None) -> tuple[str, Any]:
    """Return the source of a setting, and its value there; ``None`` if it is not given."""
    found = {
        setting.flag: _flags.get(setting.name),
        setting.variable: _environment(setting.variable),
        "worker.install()": _installed.get(setting.name),
        "WorkerManager()": given,
    }
    return next((item for item in found.items() if item[1] is not None), ("", None))


def _check_range(workers: values.Workers, source: str, max_workers: int) -> None:
    if not IS_NATIVE:
        raise ValueError(
            f"workers of {source} cannot be {workers}: a range needs the native core, which is not at work "
            "here (see worker.core_info()); give a number or auto"
        )
    if workers.most > max_workers:
        raise ValueError(
            f"workers of {source} cannot be {workers}: max_workers is {max_workers}, which a range must not "
            f"exceed. Set {_BY_NAME['max_workers'].variable} to allow more."
        )


def number_of_servers(given: int, *, fast: bool = False) -> int:
    """Return the number of servers at the start.

    Args:
        given (int): The number that the application gives. The setting ``workers`` overrides it.
        fast (bool): Whether the application requests one for each CPU instead. Defaults to ``False``.

    Raises:
        ValueError: A setting is wrong.
    """
    workers = resolve({"workers": values.AUTO if fast else None}).workers
    return given if workers is None else workers.least


def warn_of_unknown_names() -> None:
    """Log a warning, once each, about variables that have the prefix of settings and are none."""
    for variable in sorted(os.environ):
        name = variable.removeprefix(ENV_PREFIX)
        is_known = name == variable or name in _SANICS or name.lower() in _BY_NAME
        if is_known or variable in _warned or _environment(variable) is None:
            continue
        _warned.add(variable)
        # Imported on use: this is rare.
        from difflib import get_close_matches

        near = get_close_matches(name.lower(), _BY_NAME, 1)
        hint = f"did you mean {_BY_NAME[near[0]].variable}?" if near else f"there are: {', '.join(_BY_NAME)}"
        logger.warning("%s in the environment is not a setting of sanic-worker; %s", excerpt(variable), hint)


def _environment(variable: str) -> str | None:
    """Return the value of a variable; ``None`` where it is unset or has only whitespace."""
    value = os.environ.get(variable, "")
    return value if value.strip() else None


def checked(name: str, value: Any, source: str) -> Any:
    """Return the value of one setting, from ``source``.

    Raises:
        ValueError: The value is wrong, or the setting needs the native core or a library that is missing.
            The message says how to mend it.
    """
    setting = _BY_NAME[name]
    if setting.native and not IS_NATIVE:
        raise ValueError(
            f"{name} of {source} needs the native core, which is not at work here (see worker.core_info()): "
            "install it, or take the setting away"
        )
    try:
        parsed = setting.parse(value)
    except (TypeError, ValueError):
        shown = excerpt(value, quoted=True)
        raise ValueError(f"{name} of {source} cannot be {shown}: it takes {setting.allowed}") from None
    if setting.library and parsed and not values.has_library(setting.library):
        raise ValueError(
            f"{name} of {source} needs the library {setting.library}, which is not installed: install it, or "
            "take the setting away"
        )
    return parsed
