"""The description of the inspector is whole: each route, and each action with its parameters."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
from support.inspecting import ask, make

from worker.inspector import Inspector, action

if TYPE_CHECKING:
    from collections.abc import Hashable


class Custom(Inspector):
    def plain(
        self, number: int, text: str = "", ratio: float | None = None, *rest: Any, flag: bool = False
    ) -> None:
        """Do one thing.

        And another.
        """

    def open(self, names: list[str], **more: Any) -> None: ...

    def unknown_type(self, one: Hashable, other: Any) -> None: ...

    def bare(self) -> None: ...

    @action(read_only=True)
    def look(self, at: str, depth: int = 1) -> None: ...

    @action(hidden=True)
    def secret(self) -> None: ...


def described(**given: Any) -> tuple[Any, Any]:
    inspector = make(Custom, **given)(run=False)
    key = given.get("api_key")
    headers = {"authorization": f"Bearer {key}"} if key else {}
    answer = ask(inspector, "GET", "/openapi.json", **headers)
    assert answer.status == 200
    return answer.json, inspector


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if "$ref" in node:
            yield node["$ref"]
        for inner in node.values():
            yield from references(inner)
    elif isinstance(node, list):
        for inner in node:
            yield from references(inner)


def test_every_route_is_described() -> None:
    spec, inspector = described()
    assert spec["openapi"].startswith("3.1")
    for route in inspector.app.router.routes:
        path = "/" + route.path.replace("<ident:str>", "{id}")
        if path != "/<action:str>":
            for method in route.methods:
                assert method.lower() in spec["paths"][path], (path, method)
    assert {path for path, item in spec["paths"].items() if "post" in item} == {
        *("/bare", "/look", "/open", "/plain", "/unknown_type"),
        *("/reload", "/restart", "/scale", "/shutdown", "/stacks", "/upgrade"),
    }
    assert {path for path, item in spec["paths"].items() if "get" in item} > {"/look"}


def test_every_reference_has_a_target() -> None:
    spec, _ = described()
    found = {*references(spec)}
    assert found == {f"#/components/schemas/{name}" for name in spec["components"]["schemas"]}


@pytest.mark.parametrize(
    ("name", "properties"),
    [
        (
            "plain",
            {
                "number": {"type": "integer"},
                "text": {"type": "string"},
                "ratio": {"anyOf": [{"type": "number"}, {"type": "null"}]},
                "flag": {"type": "boolean"},
                "args": {"type": "array"},
            },
        ),
        ("open", {"names": {"type": "array"}, "args": {"type": "array"}}),
        ("unknown_type", {"one": {}, "other": {}, "args": {"type": "array"}}),
    ],
)
def test_the_parameters_of_an_action(name: str, properties: Any) -> None:
    spec, _ = described()
    body = spec["paths"][f"/{name}"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body["properties"] == properties
    assert body["additionalProperties"] is (name == "open")


def test_an_action_has_its_docstring() -> None:
    spec, _ = described()
    assert spec["paths"]["/plain"]["post"]["summary"] == "Do one thing."
    assert "requestBody" not in spec["paths"]["/bare"]["post"]
    assert [one["name"] for one in spec["paths"]["/look"]["get"]["parameters"]] == ["at", "depth"]


def test_a_key_is_described() -> None:
    assert "security" not in described()[0]
    spec, _ = described(api_key="k")
    assert spec["security"] == [{"key": []}]
    assert spec["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    assert '"k"' not in json.dumps(spec)
