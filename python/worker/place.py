"""A place in the table: its name, its entry in the state, and the one or two processes that bear its name."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from multiprocessing.process import BaseProcess
from signal import SIGTERM
from threading import Condition
from typing import Any, Protocol

from sanic.log import Colors, logger

from worker._state.entry import Entry
from worker._supervisor.restart_policy import Life
from worker.constants import SERVER_LABEL, Phase, ProcessState, RestartOrder

__all__ = ["Overseer", "Place"]


class Overseer(Protocol):
    """Who watches over places while it is at work: the manager's loop."""

    @property
    def at_work(self) -> bool:
        """Whether it watches now."""

    def watch(self, place: Any) -> None:
        """Watch over the process that has just been started in this place."""

    def moved(self, place: Any) -> None:
        """Take note that the state of this place has changed."""

    def stops(self, process: Any, signum: int) -> bool:
        """Whether to send a process this signal to stop; it is not, if the process was sent one before."""

    def wish(self, place: Any, order: RestartOrder, config: Mapping[str, Any]) -> None:
        """Restart this place when it is its turn."""


class Place:
    """What outlives a process: the name, the entry in ``worker_state``, and who is whose successor.

    The entry belongs to one of two processes that bear one name for a while: to the predecessor until the
    successor is ready.
    """

    SERVER_LABEL = SERVER_LABEL
    """What the manager calls its servers; the name decides where nobody else says what is one."""

    _current_process: Any

    def __init__(
        self,
        name: str,
        worker_state: MutableMapping[str, Any],
        overseer: Overseer | None = None,
        is_server: bool | None = None,
    ) -> None:
        self.state = ProcessState.IDLE
        self.name = name
        self.is_server = self.SERVER_LABEL in name if is_server is None else is_server
        self.life = Life()
        self.worker_state = worker_state
        self.overseer = overseer
        # Re-entrant: whoever starts the waiting thread may run its target in the same thread.
        self._changed = Condition()
        self._current_process = None
        self._old_process: Any = None
        # What main has to say of the process that is to fill this place: said when the entry is handed over
        # to it. (Over a foreign mapping, two who write one entry at once lose one of the two writes: said
        # again.)
        self._facts: dict[str, Any] = {}

    @property
    def pid(self) -> int:
        """The process id; ``None`` before the start."""
        return self._current_process.pid  # type: ignore[no-any-return]

    @property
    def predecessor(self) -> BaseProcess | None:
        """The process that still holds this place's name while its successor starts."""
        return self._old_process  # type: ignore[no-any-return]

    @property
    def is_overseen(self) -> bool:
        """Whether a loop is at work on it."""
        return self.overseer is not None and self.overseer.at_work

    def hand_over(self) -> None:
        """Let the predecessor go: its successor is ready."""
        old, self._old_process = self._old_process, None
        self._inherit_entry()
        self._log("Process acked. Terminating", old.pid)
        self._stop(old)

    def _stop(self, process: Any) -> None:
        """Tell a process to leave by SIGTERM, as in a restart."""
        if self._is_first_stop(process, SIGTERM):
            process.terminate()

    def _is_first_stop(self, process: Any, signum: int) -> bool:
        return not self.is_overseen or self.overseer.stops(process, signum)  # type: ignore[union-attr]

    def lose_predecessor(self) -> None:
        """The predecessor has ended by itself."""
        self._old_process = None
        if not self._entry.is_foreign:
            self._inherit_entry()

    def take_back(self) -> None:
        """Give the place back to the predecessor: its successor has failed."""
        self._current_process, self._old_process = self._old_process, None
        self._move(ProcessState.ACKED)
        if self._entry.is_foreign:
            self._entry.record({"state": ProcessState.ACKED.name, "serving": True, "pid": self.pid})

    def acked(self) -> None:
        """The process has acknowledged its start."""
        self._move(ProcessState.ACKED)
        if self._old_process is None:
            self._take_entry(state=self.state.name)

    def ceases_to_serve(self) -> None:
        """Nobody serves under this name, whatever the last one has said."""
        if self._entry.read().get("serving"):
            self._record({"serving": False})

    def left(self, pid: int, serves: bool) -> None:
        """A process that had this place has ended: what it wrote last, under its name, does not count.

        Args:
            pid (int): Which it was.
            serves (bool): Whether the present one serves.
        """
        if self._entry.is_foreign and self.is_server and serves and pid != self.pid:
            self._take_entry(serving=True)
        self._entry.drop_part(pid)

    def said(self, pid: int | None = None) -> Mapping[str, Any]:
        """Return what a process has said of itself; by default the present one, and not its predecessor."""
        if pid is None:
            pid = self.pid if self._waits_for_entry else 0
        return self._entry.read(pid)

    def enter(self, phase: Phase) -> None:
        """Be in a phase from now on, and show it in the entry."""
        self.life.phase = phase
        name: str | None = phase.name.lower()
        # Where writes do not merge, this one may undo one of the process itself at the same moment:
        # there only the phases without a process are shown.
        if not self._entry.merges and phase not in (Phase.STOPPED, Phase.BACKOFF, Phase.FAILED):
            name = None
        if self._facts.get("phase") != name:
            self.note({"phase": name})

    def note(self, facts: Mapping[str, Any]) -> None:
        """Record what main has to say of this place, whosever its entry is."""
        self._facts.update(facts)
        self._entry.record(facts)

    def forget(self) -> None:
        """Remove the entry of the process."""
        self._entry.remove()

    @property
    def _entry(self) -> Entry:
        return Entry(self.worker_state, self.name, self._last_known)

    @property
    def _waits_for_entry(self) -> bool:
        """Whether the entry is a predecessor's until this process is ready."""
        return self._old_process is not None and not self._entry.is_foreign

    def _last_known(self) -> dict[str, Any]:
        """What main knows of the process that has, or had, the entry; nothing before the first one."""
        pid = getattr(self._old_process or self._current_process, "pid", None)
        if type(pid) is not int or self._entry.is_foreign:
            return {}
        # With its pid: what a successor writes is kept apart from it until it is handed over.
        serving = self._old_process is not None or self.life.phase is Phase.READY
        return {
            "server": self.is_server,
            "state": self.state.name,
            **self._facts,
            "serving": serving,
            "pid": pid,
        }

    def _inherit_entry(self) -> None:
        """Let the predecessor's entry be that of the present process: it serves if it has said so itself."""
        entry = self._entry
        serving = {"serving": False} if entry.read().get("serving") and not entry.is_foreign else {}
        self._take_entry(state=self.state.name, **serving)

    def _take_entry(self, **changes: Any) -> None:
        """Let the entry be that of the present process."""
        self._entry.hand_over(self.pid, {**self._facts, **changes})

    def _record(self, changes: Mapping[str, Any]) -> None:
        if not self._waits_for_entry:
            self._entry.record(changes)

    def _state_facts(self, facts: Mapping[str, Any], more: Mapping[str, Any] | None = None) -> None:
        """Record what main alone knows, and remember it."""
        self._facts.update(facts)
        self._record({**facts, **(more or {})})

    def _move(self, state: ProcessState) -> None:
        with self._changed:
            self.state = state
            self._changed.notify_all()
        if self.overseer is not None:
            self.overseer.moved(self)

    def _log(self, what: str, *pid: int | None) -> None:
        """A line of the debug log; what it says, and in which order, is relied upon."""
        where = f" {Colors.BLUE}[%s]" if pid else ""
        logger.debug(
            f"{Colors.BLUE}{what}: {Colors.BOLD}{Colors.SANIC}%s{where}{Colors.END}", self.name, *pid
        )
