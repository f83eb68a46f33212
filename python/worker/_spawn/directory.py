"""The working directory of the main process, in which its children begin."""

from __future__ import annotations

import errno
import os

from sanic.log import logger

__all__ = ["enter"]

# The working directory at the start of the last process.
_path = ""


def enter(*, needed: bool) -> None:
    """Enter the working directory anew if it has been deleted and made again.

    The main process stays in the deleted directory, where no file can be found or made. A spawned child
    receives the path.

    Args:
        needed (bool): Whether no process can be started without the directory.

    Raises:
        FileNotFoundError: The directory is gone and needed.
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
            text = "The working directory was deleted. Create it again"
            raise FileNotFoundError(errno.ENOENT, f"{text}, or restart the server", _path) from None
    else:
        logger.warning(
            "The working directory was deleted and created again. New processes start in the new one."
        )
