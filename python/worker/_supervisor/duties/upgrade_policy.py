"""Decides whether an upgrade may begin, and whether it succeeds or has failed."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Verdict", "judge", "why_refused"]

# Parents that take the end of the process that they have started for the end of the service.
WAITING_PARENTS = frozenset(
    {"catatonit", "docker-init", "dumb-init", "runsv", "s6-supervise", "supervise", "supervisord", "tini"}
)


class Verdict(NamedTuple):
    """The outcome of a look at an upgrade.

    Attributes:
        succeeds: Whether the successor takes over now.
        failure: Why it has failed; empty if it has not.
    """

    succeeds: bool = False
    failure: str = ""


def judge(
    *, exit_text: str, is_ready: bool, is_stopping: bool, overdue_after: float = 0.0, is_overdue: bool = False
) -> Verdict:
    """Decide whether an upgrade succeeds or has failed; neither of both: it goes on.

    Args:
        exit_text (str): How the successor has exited; empty while it runs.
        is_ready (bool): Whether all its servers serve.
        is_stopping (bool): Whether the server is being stopped.
        overdue_after (float): How long a stage of its start may take, seconds.
        is_overdue (bool): Whether that time is over.
    """
    if exit_text:
        return Verdict(failure=f"it exited before its workers served: {exit_text}")
    if is_stopping:
        return Verdict(failure="the server is stopping")
    if is_ready:
        return Verdict(succeeds=True)
    if is_overdue:
        limit = f"within {overdue_after:g} s (WorkerManager.THRESHOLD)"
        return Verdict(failure=f"its workers did not all serve {limit}")
    return Verdict()


def why_refused(
    *,
    is_running: bool,
    is_stopping: bool,
    pid: int,
    parent: str,
    is_exclusive: bool,
    has_sockets: bool,
    is_candidate: bool = False,
    is_awaited: bool = False,
    may_write_pid: bool = True,
    other: int = 0,
) -> str:
    """Return why no upgrade may begin; empty if one may.

    Args:
        is_running (bool): Whether the start of the server is over.
        is_stopping (bool): Whether the server is stopping.
        pid (int): The pid of this process.
        parent (str): The name of the parent process; empty if it is not known.
        is_exclusive (bool): Whether a server binds an address that only one process can have.
        has_sockets (bool): Whether this process has bound sockets for the servers.
        is_candidate (bool): Whether another main process still is the server. Defaults to ``False``.
        is_awaited (bool): Whether the parent is known to wait for this process. Defaults to ``False``.
        may_write_pid (bool): Whether a successor could replace the pid file. Defaults to ``True``.
        other (int): The pid of a successor that still runs. Defaults to 0: there is none.
    """
    if other:
        return f"the main process of an upgrade still runs [{other}]"
    if is_stopping or not is_running:
        return "the server is stopping" if is_stopping else "the server is still starting"
    if is_candidate:
        return "the main process before this one still is the server"
    if pid == 1:
        return (
            "this process is PID 1, and its container ends with it. Replace the container, or reload the "
            "workers by SIGHUP"
        )
    if is_awaited or parent in WAITING_PARENTS:
        return (
            f"the parent process, {parent or 'of the container'}, takes the end of this process for the end "
            f"of the service. Restart the service by it, or reload the workers by SIGHUP"
        )
    if is_exclusive:
        return "two processes cannot listen on a port for HTTP/3. Restart the service"
    if not has_sockets:
        return "this process has bound no socket that another one could inherit. Restart the service"
    if not may_write_pid:
        return (
            "the user of this process may not write in the directory of the pid file, which would keep the "
            "old pid. Give that directory to the user, or restart the service"
        )
    return ""
