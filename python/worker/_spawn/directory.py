"""The working directory of the main process, which its children begin in."""

from __future__ import annotations

import errno
import os

from sanic.log import logger

__all__ = ["enter"]

# Where the last process was started.
_path = ""


def enter(*, needed: bool) -> None:
    """Enter the working directory anew if it has been deleted and made again.

    Main keeps the one that was deleted, where nothing can be found or made; a spawned child is told its path.

    Args:
        needed (bool): Whether no process can be started without it.

    Raises:
        FileNotFoundError: It is gone and needed.
    """
    global _path
    try:
        _path = os.getcwd()
        return
    except FileNotFoundError:
        pass
    try:
        os.chdir(_path)
    except OSError:
        if needed:
            text = "The working directory was deleted; no process can be started without it. Create it again"
            raise FileNotFoundError(errno.ENOENT, f"{text}, or restart the server", _path) from None
    else:
        logger.warning(
            "The working directory was deleted and created again. New processes start in the new one."
        )
