"""A reloader in a process of its own, and its reports.

Run as a script it is that process: its arguments are the interval, the application and the directories.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from signal import SIGCONT, SIGSTOP
from time import monotonic
from typing import Any

PATIENCE = 20.0


def make_site(home: Path, more: str = "") -> None:
    """Make the application, a package."""
    (home / "site_of_mine").mkdir()
    (home / "site_of_mine" / "__init__.py").write_text(f"from sanic import Sanic\n{more}app = Sanic('S')\n")


class Watching:
    """A real reloader, of one core, on real files.

    Args:
        core: The core.
        cwd: The working directory, with the application.
        dirs: The reload directories.
        app: The application.
        interval: In seconds.
        environment: Variables to add.
        under: A command that runs the reloader.
    """

    def __init__(
        self,
        core: str,
        cwd: Path,
        *dirs: Path,
        app: str = "site_of_mine:app",
        interval: float = 3600.0,
        environment: Mapping[str, str] | None = None,
        under: Sequence[str] = (),
    ) -> None:
        self.log = cwd / "reloader.log"
        environ = {**os.environ, "WORKER_CORE": core, "PYTHONDONTWRITEBYTECODE": "1", **(environment or {})}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*under, sys.executable, __file__, str(interval), app, *map(str, dirs)],
                cwd=cwd,
                env=environ,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        assert self.process.stdout is not None
        self._pipe = self.process.stdout.fileno()
        self._rest = b""
        self.told: list[Any] = []
        """All reports: ``"start"``, sets of changed paths, ``"stop"``."""
        self.until(lambda: "watching" in self.told)

    def until(self, condition: Callable[[], bool], patience: float = PATIENCE) -> None:
        """Read reports until a condition holds."""
        deadline = monotonic() + patience
        while not condition():
            left = deadline - monotonic()
            assert left > 0, f"it has told {self.told[-5:]}; {self.log.read_text()}"
            if select.select([self._pipe], [], [], left)[0]:
                assert self._listen(), f"it has ended; {self.log.read_text()}"

    def _listen(self) -> bool:
        data = os.read(self._pipe, 1 << 20)
        *lines, self._rest = (self._rest + data).split(b"\n")
        for told in map(json.loads, lines):
            self.told.append(set(told) if isinstance(told, list) else told)
        return bool(data)

    @contextmanager
    def unaware(self) -> Iterator[None]:
        """Suspend it while the body runs: it finds several steps as one change."""
        self.process.send_signal(SIGSTOP)
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED)
        try:
            yield
        finally:
            self.process.send_signal(SIGCONT)

    @property
    def reloads(self) -> list[set[str]]:
        """Return the changes that it has reported."""
        return [told for told in self.told if isinstance(told, set)]

    @property
    def changed(self) -> set[str]:
        """Return all paths that it has reported."""
        return set().union(*self.reloads)

    def close(self) -> int:
        """Tell it to stop; return its exit code."""
        self.process.terminate()
        try:
            code = self.process.wait(PATIENCE)
            while self._listen():
                pass
            return code
        finally:
            self.process.kill()
            self.process.wait()
            assert self.process.stdout is not None
            self.process.stdout.close()


def main(interval: str, app: str, *dirs: str) -> None:
    from worker.loader import AppLoader
    from worker.reloader import Reloader

    # Log lines go elsewhere.
    report = os.dup(1)
    os.dup2(2, 1)

    def tell(what: Any) -> None:
        os.write(report, json.dumps(what).encode() + b"\n")

    class Told(Reloader):
        """Report the first wait."""

        is_watching = False

        def _wait(self) -> Any:
            if not self.is_watching:
                self.is_watching = True
                tell("watching")
            return super()._wait()

    class Publisher:
        """Drop messages: the listeners report more."""

        def send(self, message: object, /) -> None:
            """Do nothing."""

    loader = AppLoader(app)
    site = loader.load()
    site.register_listener(lambda *_: tell("start"), "reload_process_start")
    site.register_listener(lambda *_: tell("stop"), "reload_process_stop")

    def after(*_: Any, changed: set[str]) -> None:
        tell(sorted(changed))
        for path in changed:
            if path.endswith(".import"):
                sys.path.append(Path(path).read_text())
                import_module(Path(path).stem)

    site.register_listener(after, "after_reload_trigger")
    Told(Publisher(), float(interval), [*map(Path, dirs)], loader)()


if __name__ == "__main__":
    main(*sys.argv[1:])
