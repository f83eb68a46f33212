"""Gives up the rights of root: the server goes on as another user, for good."""

from __future__ import annotations

import ctypes
import grp
import os
import pwd
from collections.abc import Iterable
from contextlib import suppress
from typing import NamedTuple

from sanic.log import logger

from worker._system.errors import BeginError

__all__ = ["Account", "PrivilegeError", "drop", "find"]

PR_SET_DUMPABLE = 4
# The number that stands for no user and no group. Larger ones do not exist.
NO_ID = 2**32 - 1
# The name that stands for a user whose number has none.
UNKNOWN = ""


class PrivilegeError(BeginError):
    """The server cannot run as the user or the group; the message has the reason and the remedy."""


class Account(NamedTuple):
    """A user and a group.

    Attributes:
        uid: The number of the user; ``None``: it stays.
        gid: The number of the group.
        name: The name of the user; empty if it has none.
        home: The home directory of the user; empty if it has none.
    """

    uid: int | None
    gid: int
    name: str
    home: str


def find(user: str, group: str) -> Account:
    """Return the account of a user and a group, each a name or a number. One of them may be empty.

    Raises:
        PrivilegeError: There is no such user or group, or the group of a number is not known.
    """
    known = _user(user) if user else None
    gid = None if known is None else known.pw_gid
    if group:
        gid = _group(group)
    if gid is None:
        raise _refused(f"The user {user} has no entry, so its group is not known: name it with --group.")
    if known is not None:
        return Account(known.pw_uid, gid, known.pw_name, known.pw_dir)
    return Account(int(user) if user else None, gid, UNKNOWN, "")


def drop(account: Account, files: Iterable[int | str] = ()) -> None:
    """Go on as another user and group, with the supplementary groups of that user alone.

    The environment names the user then. ``/proc`` shows this process to it, as it shows its own.

    Args:
        account (Account): The user and the group.
        files (Iterable[int | str]): Files of root, as descriptors or paths, that the user is to own.

    Raises:
        PrivilegeError: This process may not change to them, or could change back.
    """
    uid, gid = account.uid, account.gid
    wanted = f"user {account.name or uid}" if uid is not None else f"group {gid}"
    if os.geteuid() != 0:
        if uid in (None, os.geteuid()) and gid == os.getegid():
            return
        raise _refused(
            f"Cannot run as {wanted}: only root can change the user or the group, and this is the user "
            f"{os.geteuid()}. Start the server as root, or without --user and --group."
        )
    for file in files:
        # A path may be gone, or be on a file system without owners.
        with suppress(OSError):
            os.chown(file, -1 if uid is None else uid, gid)
    try:
        if account.name:
            os.initgroups(account.name, gid)
        else:
            os.setgroups([gid])
        os.setresgid(gid, gid, gid)
        if uid is not None:
            os.setresuid(uid, uid, uid)
    except OSError as error:
        raise _refused(f"Cannot run as {wanted}: {error.strerror}.", error.errno) from error
    if uid:
        _check(wanted, gid)
    if uid is not None:
        for name, value in (("HOME", account.home), ("USER", account.name), ("LOGNAME", account.name)):
            if value:
                os.environ[name] = value
            else:
                os.environ.pop(name, None)
    # The kernel hides a process that has changed its user from its own, and from the inspector.
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)
    logger.info("Running as %s, group %d", wanted, gid)


def _check(wanted: str, gid: int) -> None:
    """Make sure that the rights of root cannot be regained; those of its group, unless that is wanted."""
    for regain in (os.setuid, os.setgid) if gid else (os.setuid,):
        with suppress(PermissionError):
            regain(0)
            raise _refused(f"Cannot run as {wanted}: the rights of root could be regained.")


def _user(text: str) -> pwd.struct_passwd | None:
    """Return the entry of a user; ``None`` for a number that has none."""
    with suppress(KeyError):
        return pwd.getpwnam(text)
    if not text.isdecimal() or int(text) >= NO_ID:
        raise _refused(f"There is no user {text}: --user takes the name or the number of a user.")
    with suppress(KeyError, OverflowError):
        return pwd.getpwuid(int(text))
    return None


def _group(text: str) -> int:
    with suppress(KeyError):
        return grp.getgrnam(text).gr_gid
    if not text.isdecimal() or int(text) >= NO_ID:
        raise _refused(f"There is no group {text}: --group takes the name or the number of a group.")
    return int(text)


def _refused(text: str, code: int | None = None) -> PrivilegeError:
    error = PrivilegeError(code, text)
    # The system itself gives a code.
    error.is_wrong_usage = code is None
    return error
