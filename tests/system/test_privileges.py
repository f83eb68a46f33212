"""Another user and group: which they are, and that the rights of root are gone for good."""

from __future__ import annotations

import json
import os
import pwd
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from worker._system import privileges
from worker._system.privileges import Account, PrivilegeError

NOBODY = pwd.getpwnam("nobody")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can change the user")


def forked(act: Callable[[], Any]) -> Any:
    """Return the result of a call in a forked child; its error as text."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            result = act()
        except BaseException as error:
            result = f"{type(error).__name__}: {error}"
        os.write(writer, json.dumps(result).encode())
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as pipe:
        result = json.loads(pipe.read())
    os.waitpid(pid, 0)
    return result


def refused(act: Callable[[], Any]) -> bool:
    try:
        act()
    except PermissionError:
        return True
    return False


@pytest.mark.parametrize(
    ("user", "group", "account"),
    [
        ("nobody", "", Account(NOBODY.pw_uid, NOBODY.pw_gid, "nobody", NOBODY.pw_dir)),
        (str(NOBODY.pw_uid), "", Account(NOBODY.pw_uid, NOBODY.pw_gid, "nobody", NOBODY.pw_dir)),
        ("nobody", "root", Account(NOBODY.pw_uid, 0, "nobody", NOBODY.pw_dir)),
        ("nobody", "4242", Account(NOBODY.pw_uid, 4242, "nobody", NOBODY.pw_dir)),
        ("4242", "root", Account(4242, 0, "", "")),
        ("", "root", Account(None, 0, "", "")),
    ],
)
def test_an_account_is_found_by_name_and_number(user: str, group: str, account: Account) -> None:
    assert privileges.find(user, group) == account


@pytest.mark.parametrize(
    ("user", "group", "text"),
    [
        ("no-such-user", "", "There is no user no-such-user"),
        ("nobody", "no-such-group", "There is no group no-such-group"),
        ("4242", "", "name it with --group"),
        # To the system call, this number is the present user.
        ("4294967295", "root", "There is no user 4294967295"),
        ("4294967296", "root", "There is no user 4294967296"),
        ("", "4294967295", "There is no group 4294967295"),
    ],
)
def test_an_unknown_account_is_named(user: str, group: str, text: str) -> None:
    with pytest.raises(PrivilegeError, match=text):
        privileges.find(user, group)


@needs_root
def test_the_rights_of_root_are_gone(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.touch()

    def act() -> Any:
        privileges.drop(privileges.find("nobody", ""), [str(log), str(tmp_path / "missing")])
        return {
            "ids": [*os.getresuid(), *os.getresgid()],
            "groups": os.getgroups(),
            "environment": [os.environ[name] for name in ("HOME", "USER", "LOGNAME")],
            "regained": not all(
                refused(lambda call=call: call(0)) for call in (os.setuid, os.seteuid, os.setgid)
            ),  # type: ignore[misc]
            "proc": os.stat("/proc/self/environ").st_uid,
        }

    uid, gid = NOBODY.pw_uid, NOBODY.pw_gid
    assert forked(act) == {
        "ids": [uid] * 3 + [gid] * 3,
        "groups": os.getgrouplist("nobody", gid),
        "environment": [NOBODY.pw_dir, "nobody", "nobody"],
        "regained": False,
        "proc": uid,
    }
    assert log.stat().st_uid == uid


@needs_root
@needs_root
def test_the_group_of_root_is_kept_if_it_is_wanted() -> None:
    def act() -> Any:
        privileges.drop(privileges.find("nobody", "root"))
        return [os.getuid(), os.getgid(), refused(lambda: os.setuid(0))]

    assert forked(act) == [NOBODY.pw_uid, 0, True]


def test_a_user_without_an_entry_has_no_name() -> None:
    def act() -> Any:
        privileges.drop(Account(4242, 4243, "", ""))
        names = [name for name in ("HOME", "USER", "LOGNAME") if name in os.environ]
        return [os.getuid(), os.getgid(), os.getgroups(), names]

    assert forked(act) == [4242, 4243, [4243], []]


@needs_root
def test_only_root_can_change_the_user() -> None:
    def act() -> None:
        nobody = privileges.find("nobody", "")
        privileges.drop(nobody)
        # It is that user.
        privileges.drop(nobody)
        privileges.drop(privileges.find("root", ""))

    assert "Cannot run as user root: only root can change" in forked(act)


@needs_root
def test_rights_that_could_be_regained_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "setresuid", lambda *_: None)
    result = forked(lambda: privileges.drop(Account(4242, 4243, "", "")))
    assert result == "PrivilegeError: Cannot run as user 4242: the rights of root could be regained."
