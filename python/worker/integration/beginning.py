"""The begin of the main process, once its sockets are bound: the pid file, and the change of the user."""

from __future__ import annotations

from contextlib import suppress

from worker import settings
from worker._child.logs import open_files
from worker._system import pid_file, unix

__all__ = ["begin"]


def begin(*, is_managed: bool) -> None:
    """Write the pid file, then change the user and the group, as the settings say.

    Args:
        is_managed (bool): Whether a manager follows, and not a server of a single process.

    Raises:
        BeginError: One of them is not possible.
    """
    chosen = settings.resolve({})
    account = None
    if chosen.user or chosen.group:
        # Imported on use: with ctypes, it takes milliseconds of a start that needs it rarely.
        from worker._system import privileges

        # Before a file is written.
        account = privileges.find(chosen.user, chosen.group)
    if is_managed and chosen.pid_file:
        pid_file.write(chosen.pid_file)
    if account is not None:
        from worker._spawn.preload.preloads import preloads
        from worker._spawn.preload.process import PreloadError

        # It runs as the user before. That one's processes cannot be killed after the change.
        is_preloading = preloads.current is not None
        preloads.reset()
        privileges.drop(account, [*unix.bound(), *open_files()])
        if is_preloading:
            with suppress(PreloadError):
                preloads.start()
