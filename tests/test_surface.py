"""The public API equals the reference, name for name, and is implemented by this package alone.

``api.json`` holds the reference: each class, function and member with its parameters. Further parameters of a
class or a method must be keyword-only, and are listed in ``EXTRAS``.
"""

from __future__ import annotations

import ast
import enum
import inspect
import json
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import worker

API: dict[str, Any] = json.loads((Path(__file__).parent / "api.json").read_text())
MEMBERS = [(owner, member) for owner, spec in API.items() for member in spec.get("members", ())]
SOURCES = sorted(Path(worker.__file__).parent.rglob("*.py"))
STOCK = "sanic.worker"

EXTRAS = {
    "worker.manager.WorkerManager": [
        "max_workers",
        "graceful_timeout",
        "restart_policy",
        "backoff_initial",
        "backoff_max",
        "max_consecutive_failures",
        "min_uptime",
        "max_surge",
        "max_unavailable",
        "canary",
        "reload_order",
        "reload_ignore",
        "idle_drain_timeout",
        "inspector_open",
        "health_open",
        "health_port",
        "health_host",
        "inspector_unix",
        "process_titles",
        "hang_timeout",
        "slow_loop_warning",
        "max_requests",
        "max_lifetime",
        "max_rss",
        "max_memory_percent",
        "recycle_jitter",
        "workers",
        "drain_delay",
        "pid_file",
        "preload",
    ],
    "worker.manager.WorkerManager.manage": ["label", "restart_policy", "is_server"],
    "worker.process.Worker": ["label", "settings", "restart_policy", "mailbox", "is_server", "application"],
    "worker.process.WorkerProcess": ["mailbox", "is_server"],
}
# Bases that this interpreter's enum module does not have yet.
TOO_NEW = {name for name in ("ReprEnum", "StrEnum") if not hasattr(enum, name)}
PARAMETER_KINDS = {
    None: inspect.Parameter.POSITIONAL_OR_KEYWORD,
    "var_positional": inspect.Parameter.VAR_POSITIONAL,
    "var_keyword": inspect.Parameter.VAR_KEYWORD,
}


def find(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    return getattr(import_module(module), attribute)


def own(cls: type, member: str) -> Any:
    """Return the member in the body of a class of this package: an inherited foreign one is none."""
    for base in cls.__mro__:
        if base.__module__.partition(".")[0] == "worker" and member in vars(base):
            return vars(base)[member]
    raise AssertionError(f"{cls.__qualname__} has no {member} of its own")


def is_default(value: Any, source: str) -> bool:
    """Whether ``value`` is the one that the text in the reference represents."""
    try:
        expected = ast.literal_eval(source)
    except (SyntaxError, ValueError):
        return source in (getattr(value, "name", None), re.sub(r"0x[0-9a-f]+", "…", repr(value)))
    # An IntEnum's member is printed as its number; False is not 0.
    return bool(value == expected) and isinstance(value, bool) == isinstance(expected, bool)


def check_parameters(name: str, function: Any, spec: list[dict[str, str]], *, bound: bool) -> None:
    found = list(inspect.signature(function).parameters.values())
    if bound:
        assert found.pop(0).name == "self"
    extras = [parameter for parameter in found if parameter.kind is inspect.Parameter.KEYWORD_ONLY]
    assert [parameter.name for parameter in extras] == EXTRAS.get(name, [])
    assert all(parameter.default is not inspect.Parameter.empty for parameter in extras)

    ours = [parameter for parameter in found if parameter not in extras]
    assert [parameter.name for parameter in ours] == [parameter["name"] for parameter in spec]
    for parameter, expected in zip(ours, spec, strict=True):
        assert parameter.kind is PARAMETER_KINDS[expected.get("kind")], parameter.name
        if "default" in expected:
            source = re.sub(r"0x[0-9a-f]+", "…", expected["default"])
            assert is_default(parameter.default, source), (parameter.name, parameter.default, source)
        else:
            assert parameter.default is inspect.Parameter.empty, parameter.name


def test_the_reference_is_complete() -> None:
    assert len(API) + len(MEMBERS) == 79
    assert {spec["kind"] for spec in API.values()} == {"class", "enum", "function"}
    assert {API[owner]["members"][member]["kind"] for owner, member in MEMBERS} == {
        "method",
        "property",
        "staticmethod",
    }


@pytest.mark.parametrize("name", API)
def test_each_name_is_defined_in_this_package(name: str) -> None:
    found = find(name)
    assert f"{found.__module__}.{found.__qualname__}" == name
    assert inspect.getdoc(found)
    assert "__doc__" not in vars(found) or (vars(found)["__doc__"] or "").strip()
    for base in inspect.getmro(found) if inspect.isclass(found) else ():
        assert not base.__module__.startswith(STOCK)


@pytest.mark.parametrize("name", [name for name, spec in API.items() if spec["kind"] == "enum"])
def test_enums_have_the_members_of_the_reference(name: str) -> None:
    assert [member.name for member in find(name)] == API[name]["names"]


@pytest.mark.parametrize("name", [name for name, spec in API.items() if "inherits" in spec])
def test_classes_inherit_from_those_of_the_reference(name: str) -> None:
    bases = {base.__name__ for base in find(name).__mro__}
    assert bases >= set(API[name]["inherits"]) - TOO_NEW


@pytest.mark.parametrize("name", [name for name, spec in API.items() if spec["kind"] != "enum"])
def test_parameters_equal_the_reference(name: str) -> None:
    check_parameters(name, find(name), API[name]["params"], bound=False)


@pytest.mark.parametrize(("owner", "member"), MEMBERS)
def test_members_equal_the_reference(owner: str, member: str) -> None:
    spec = API[owner]["members"][member]
    found = own(find(owner), member)
    assert isinstance(found, property) == (spec["kind"] == "property")
    assert isinstance(found, staticmethod) == (spec["kind"] == "staticmethod")
    function = found.fget if isinstance(found, property) else getattr(found, "__func__", found)
    assert function.__module__.partition(".")[0] == "worker"
    assert (function.__doc__ or "").strip()
    if spec["kind"] != "property":
        check_parameters(f"{owner}.{member}", function, spec["params"], bound=spec["kind"] == "method")


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "import_module":
            yield from (str(arg.value) for arg in node.args if isinstance(arg, ast.Constant))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_only_the_integration_touches_the_stock_package(path: Path) -> None:
    stock = [name for name in imports(path) if f"{name}.".startswith(f"{STOCK}.")]
    assert stock == [] or path.stem == "integration"
