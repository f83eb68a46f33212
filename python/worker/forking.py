"""Forked children. Where the system refuses the fork, the standard library's own leaks its pipes."""

from __future__ import annotations

import os
from contextlib import ExitStack
from multiprocessing import popen_fork, util
from typing import Any

__all__ = ["ForkPopen"]


class ForkPopen(popen_fork.Popen):
    """A forked child, and the pipes by which each of the two sees that the other has ended."""

    def _launch(self, process_obj: Any) -> None:
        with ExitStack() as undo:
            pipes = []
            for _ in range(2):
                pipes.append(os.pipe())
                undo.callback(_close, *pipes[-1])
            (ended_here, child_lives), (main_ended, main_lives) = pipes
            self.pid = os.fork()
            undo.pop_all()
        if self.pid == 0:
            code = 1
            try:
                _close(ended_here, main_lives)
                code = process_obj._bootstrap(parent_sentinel=main_ended)
            finally:
                os._exit(code)
        _close(child_lives, main_ended)
        self.sentinel = ended_here
        self.finalizer = util.Finalize(self, _close, (ended_here, main_lives))


def _close(*descriptors: int) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
