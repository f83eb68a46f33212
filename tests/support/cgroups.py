"""Control groups of the tests' own, made inside that of the test process, where it may."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from support.running import until
from worker._system import cgroup

V2 = cgroup.V2


class Group:
    """A control group.

    Attributes:
        path: Its directory.
        is_v2: Whether it is one of version 2.
    """

    def __init__(self, path: Path, is_v2: bool) -> None:
        self.path = path
        self.is_v2 = is_v2

    def add(self, pid: int) -> None:
        """Move a process into the group; with version 1, only its processes of this controller count."""
        self.write("cgroup.procs", pid)

    def write(self, name: str, value: object) -> None:
        """Write a file of the group."""
        (self.path / name).write_text(f"{value}")

    def freeze(self) -> None:
        """Freeze the processes of the group, and wait until they are."""
        if self.is_v2:
            self.write("cgroup.freeze", 1)
            until(lambda: "frozen 1" in (self.path / "cgroup.events").read_text(), "a frozen group")
        else:
            self.write("freezer.state", "FROZEN")
            until(lambda: (self.path / "freezer.state").read_text() == "FROZEN\n", "a frozen group")

    def thaw(self) -> None:
        """Let the processes of the group go on."""
        for name, value in (("cgroup.freeze", "0"), ("freezer.state", "THAWED")):
            if (self.path / name).exists():
                self.write(name, value)

    def _is_removed(self) -> bool:
        try:
            self.path.rmdir()
        except FileNotFoundError:
            return True
        except OSError:
            return False
        return True


@contextmanager
def group(controller: str, parent: Group | None = None) -> Iterator[Group]:
    """Make a control group; skip the test where none can be made.

    Its processes have to be gone at the end, or are moved out.

    Args:
        controller (str): The controller that it needs, such as ``memory``, or :data:`V2`: any of version 2.
        parent (Group | None): The group to make it in. Defaults to ``None``: that of this process.
    """
    hierarchies = cgroup.own()._hierarchies
    is_v2 = controller == V2 or controller not in hierarchies
    found = [parent.path] if parent else [*map(Path, hierarchies.get(V2 if is_v2 else controller, ()))]
    path = found[0] / f"sanic-worker-{os.getpid()}" if found else Path()
    controllers = path.parent / "cgroup.controllers"
    if not found or (is_v2 and controller and controller not in controllers.read_text().split()):
        pytest.skip(f"no control group with {controller or 'version 2'} here")
    try:
        path.mkdir()
    except OSError as refused:
        pytest.skip(f"no control group can be made here: {refused}")
    made = Group(path, is_v2)
    try:
        if is_v2 and controller and not (path / "cgroup.procs").exists():
            pytest.skip(f"the control group has no {controller}")
        yield made
    finally:
        made.thaw()
        for pid in (path / "cgroup.procs").read_text().split():
            # It may exit meanwhile.
            with suppress(ProcessLookupError):
                (path.parent / "cgroup.procs").write_text(pid)
        until(made._is_removed, f"the end of the control group {path}")
