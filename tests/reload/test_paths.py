"""Paths on the wire are data, with any bytes in them."""

from __future__ import annotations

import os
from types import ModuleType

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from worker._core.messages import Restart, decoded_files, encoded_files
from worker._supervisor.model import RestartRequest
from worker._supervisor.rollout import merge

paths = st.lists(st.binary(min_size=1).map(os.fsdecode).map(lambda path: f"/{path}"), min_size=1, max_size=5)


@pytest.mark.parametrize(
    ("path", "wire"),
    [
        ("/a b/c-d_e.py", "/a b/c-d_e.py"),
        ("/100%", "/100%25"),
        ("C:\\a,b", "C%3A\\a%2Cb"),
        ("/new\nline\r", "/new%0Aline%0D"),
        ("/\udcff\udc80\udcc3", "/%FF%80%C3"),
        ("/ü/\t\x00\x7f'\"#?&=+", "/ü/\t\x00\x7f'\"#?&=+"),
        ("/%41%2C", "/%2541%252C"),
    ],
)
def test_special_characters_are_encoded(path: str, wire: str) -> None:
    assert encoded_files([path]) == wire
    assert decoded_files(wire) == path


@pytest.mark.parametrize("text", ["foobar", "/a%20b", "/50%", "/%2c%zz%", "a,b", "%00%41%7F"])
def test_other_texts_are_decoded_unchanged(text: str) -> None:
    assert decoded_files(text) == text


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(paths=paths)
def test_any_paths_survive_encoding_and_decoding(core: ModuleType, paths: list[str]) -> None:
    wire = encoded_files(paths)
    assert not {*":\r\n"} & {*wire}
    assert wire.encode().count(b",") == len(paths) - 1
    assert [decoded_files(one) for one in wire.split(",")] == paths
    assert decoded_files(wire) == ",".join(paths)
    assert core.parse(f"__ALL_PROCESSES__:{wire}") == Restart(None, wire)


def test_merging_restarts_keeps_a_comma_in_a_path() -> None:
    first, second = (RestartRequest(None, 0.0, {"reloaded_files": files}) for files in ("/a,b,/c", "/c,/d"))  # type: ignore[arg-type]
    assert merge(first, second).config["reloaded_files"] == "/a,b,/c,/d"
