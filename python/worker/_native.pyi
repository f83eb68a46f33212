# ruff: noqa: PYI021 (the documentation is here)
"""The core: what comes down the pipe, one wait for all that happens, and what files have changed.

This one is in Rust. Where it is missing, ``worker._core.pure`` stands in for it, with the same results, but
has no :class:`Table`. The one door to either is :mod:`worker._core`.
"""

from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from os import PathLike
from typing import Any, Literal, final

from worker._core.messages import Command, Event, Opaque

__all__ = ["LIMIT", "PROFILE", "Framer", "Lifeline", "Monitor", "Scanner", "Table", "decode", "parse"]

LIMIT: int
"""The largest payload of a frame that is accepted, in bytes: 16 MiB."""

PROFILE: Literal["release", "debug"]
"""How the core was compiled. ``None`` in the pure core, which is not."""

def parse(text: str) -> Command:
    """Say what a text of the pipe asks for.

    - ``""`` is :class:`~worker._core.messages.Stop`; ``"__TERMINATE__"`` and ``"__TERMINATE_EARLY__"`` are
      :class:`~worker._core.messages.Terminate`.
    - ``"__SCALE__:<n>"`` is :class:`~worker._core.messages.Scale`: ``n`` is a whole number of at most 64
      bits in ASCII digits, with or without a sign and white space around it. Whether so many workers
      can be had is not judged here. Anything else that begins with ``__SCALE__`` is
      :class:`~worker._core.messages.Invalid`, with a reason that says what would be right.
    - Any other text is :class:`~worker._core.messages.Restart`. The names stand before the first colon,
      separated by commas and stripped; ``__ALL_PROCESSES__`` among them means all. What follows the
      colon is the text of the files, colons included, without ``":STARTUP_FIRST"`` at its end.
    """

def decode(payload: bytes) -> Command | Opaque:
    """Say what a pickle asks for, if it is ``None`` or a ``str``. Nothing is executed.

    ``None`` is :class:`~worker._core.messages.Stop`, a ``str`` is parsed as by :func:`parse`. Both are
    recognised in every form that the pickle protocols 2 to 5 have for them. Whatever is not exactly
    such a pickle, down to the last byte, is :class:`~worker._core.messages.Opaque` and left to
    :mod:`pickle`.
    """

@final
class Framer:
    """The framing of :mod:`multiprocessing.connection` for one stream: bytes in, payloads out.

    A frame is its size, a big-endian ``int32``, and its payload; a size of -1 is followed by the real
    one, a big-endian ``uint64``. A size that is negative or above ``limit`` is a fault. After it the
    framer is lost, and looks for the next place where a frame may begin: a possible size, and a
    payload that begins and ends as a pickle of the protocols 2 to 5 does. A place where this cannot
    be told yet is waited for. Each byte is gone over once, however the bytes come.

    ``limit`` is the largest payload, in bytes, :data:`LIMIT` by default; at no time is more than that
    kept, apart from the header and what was fed last. :exc:`ValueError` if it is not positive.
    """

    def __new__(cls, limit: int = ...) -> Framer: ...
    @property
    def pending(self) -> int:
        """How many bytes are kept, as they do not make a whole frame yet."""

    def feed(self, chunk: bytes) -> list[bytes]:
        """Take more bytes; return the payloads that are whole now, in their order.

        A frame of size zero is ``b""``.
        """

    def faults(self) -> list[tuple[str, bytes]]:
        """Return, and forget, what was dropped: for each fault a reason in words and a sample.

        The sample is the first of the bytes that were dropped, at most 64. There is one fault each
        time that the framer gets lost, not one for each chunk in which it still is.
        """

    def finish(self) -> None:
        """Drop what is left, because its writer is gone; an unfinished frame becomes a fault.

        The framer is as new then.
        """

@final
class Lifeline:
    """Ends this process when its main process is gone.

    ``watch`` is a descriptor that becomes readable with the end of main, such as a pidfd. A thread waits for
    it, on a duplicate, with the signal mask of the calling one. Then this process gets SIGINT, once, unless
    :meth:`let_go` came before. After ``grace`` seconds it is killed, and its process group with it if it
    leads its session. The thread of the native core needs nothing of Python, and so ends a process that hangs
    as well.

    :exc:`OSError` if ``watch`` is not open, or there can be no thread; :exc:`ValueError` if ``grace`` is
    negative.
    """

    def __new__(cls, watch: int, grace: float) -> Lifeline: ...
    def let_go(self) -> None:
        """This process has begun to leave: it need not be told."""

    def stoppable(self) -> None:
        """Send SIGINT once more if it was sent before and :meth:`let_go` was not called: it may be lost.

        Called when the handlers for a stop are in place; again: nothing.
        """

@final
class Monitor:
    """One wait for the messages of many writers, for the exits of processes and for wakes.

    ``fd`` is the receiving end of the pipe. It stays the caller's, who may close it: the monitor reads
    a duplicate. A Unix stream socket is made to pass credentials (``SO_PASSCRED``): Linux then never
    mixes the bytes of two writers in one read and tells whose they are, so frames of different
    processes cannot damage each other however they are interleaved, and ``sender`` is known. Anything
    else, such as :func:`os.pipe`, is read as one stream whose ``sender`` is ``None``. Whether the
    descriptor blocks is neither relied upon nor changed.

    ``bell`` is a descriptor that wakes as :meth:`wake` does, by being readable; what there is to be read is
    read. It must not block. The monitor has a duplicate of it too.

    :meth:`wait`, :meth:`watch`, :meth:`unwatch` and :meth:`close` are for one thread at a time: a call
    while another is under way, be it of another thread or of a signal handler, raises
    :exc:`RuntimeError`. :meth:`wake` may be called from any thread and from a signal handler. Except
    for :meth:`close`, all of them raise :exc:`ValueError` once the monitor is closed.

    :exc:`OSError` if ``fd`` is not open, or descriptors have run out.
    """

    def __new__(cls, fd: int, bell: int | None = None) -> Monitor: ...
    @property
    def wakeup_fd(self) -> int:
        """A descriptor that wakes the wait when anything is written to it.

        It is the non-blocking end of a socket pair, as :func:`signal.set_wakeup_fd` wants it, and
        closed by :meth:`close`.
        """

    def watch(self, key: str, pid: int, sentinel: int | None) -> None:
        """Watch a process, until it has exited.

        ``key`` is what its :class:`~worker._core.messages.Exited` will be named. The process is watched by a
        pidfd. Where there can be none, ``sentinel`` stands in: a descriptor that becomes readable when
        the process is dead, which the caller keeps open until the exit or :meth:`unwatch`. A process
        that is gone already exits at the next wait.

        :exc:`ValueError` if ``key`` is watched already or ``pid`` is not positive, :exc:`OSError` if
        there can be no pidfd and there is no sentinel.
        """

    def unwatch(self, key: str) -> None:
        """Watch a process no more. :exc:`KeyError` if it is not watched, as after its exit."""

    def wait(self, timeout: float | None, messages: bool = True) -> list[Event]:
        """Wait for something to happen, and return what did.

        ``timeout`` is in seconds. ``None`` waits for ever, what is not positive does not wait. The
        list is empty when the time is over, or after a wake. :exc:`ValueError` if it is NaN.

        If ``messages`` are wanted, what is in the pipe is read, up to 128 KiB or 250 messages a wait; else
        only what the dead have written. First in the list are
        :class:`~worker._core.messages.Received` and :class:`~worker._core.messages.Corrupt` as they
        arrived, then :class:`~worker._core.messages.Exited`. What a process wrote before it died is in the
        same list as its exit, or in an earlier one; so is what was left of an unfinished frame of it, as
        ``Corrupt``, and this also for a writer that is not watched. Unfinished frames may take 64 MiB
        together: the largest is dropped, as ``Corrupt``. For the messages of others, where
        senders are known, an exit does not wait. The end of the pipe, or an error of it, is one last
        ``Corrupt``.

        An exit code is looked at, the child is not reaped. It is ``None`` for what is no child of this
        process, or was reaped before, or was watched by its sentinel.

        Python's signal handlers run during the wait. What they raise is passed on, and what has been
        read is in the list of the next wait.
        """

    def wake(self) -> None:
        """Make the wait that is under way return, or else the next one. Many wakes may be as one."""

    def close(self) -> None:
        """Let go of all that was opened here. May be repeated, and called in a forked child.

        The pipe, the sentinels and the processes stay as they are. A child that was forked while
        another thread was in :meth:`wait` gets the :exc:`RuntimeError` of that.
        """

@final
class Scanner:
    """What has changed among files, and which files the loaded modules come from.

    ``roots`` are directories, all that is below them is watched, links to directories followed. No
    directory is walked twice, by however many paths it can be reached: what is below the first of them
    is known by that one. More files are added one by one (:meth:`watch`).

    ``ignored`` are rules, of which the last that fits decides: a regular expression, searched for in the
    path below the innermost root (that of a directory ends with a slash), and whether what it fits is passed
    over, with all that is below it. By default that is ``__pycache__``. Passed over as well is what is below
    a directory, other than a root, that has a ``pyvenv.cfg`` or a ``CACHEDIR.TAG`` in it.

    A file is another one when its modification time (ns, either way), its size or its inode is. A link
    counts as what it leads to. Of a directory, and of what is no regular file, its coming and going counts.
    What is on the file systems of ``/proc`` and ``/sys`` is not walked.

    A directory is listed again only when its time of change (``st_ctime``) has moved, which it does
    whenever an entry comes, goes or is replaced. ``settle`` is how long after that time, in seconds,
    this does not suffice, because a second change may bear the same one: no file system's clock is
    coarser than the 2 seconds of the default.

    :meth:`scan` and :meth:`watch` are for one thread at a time, else :exc:`RuntimeError`. The paths
    given may be relative; those returned begin with them. :exc:`ValueError` for a path with a null byte, a
    pattern that is no regular expression, and a negative ``settle`` or ``since``.
    """

    def __new__(
        cls,
        roots: Iterable[str | PathLike[str]],
        ignored: list[tuple[str, bool]] | None = None,
        settle: float = 2.0,
        since: float | None = None,
    ) -> Scanner: ...
    def watch(self, files: Iterable[str | PathLike[str]]) -> None:
        """Watch these files as well from now on.

        What they are like at this moment is no change, but for the first look, see :meth:`scan`; for one
        that does not exist, its coming is. A file that is watched already stays so.
        """

    def scan(self, hints: Iterable[str | PathLike[str]] | None = None) -> list[str]:
        """Look at everything; return what has changed since the last time.

        These are the paths of files that came, went or are other ones, and of directories that came or
        went, once each and sorted (by their bytes). The first look takes note of everything and returns
        the files whose time of change (``st_ctime``) is not before ``since``, seconds from 1970 on; by
        default none. What cannot be told (a directory that may not be read, an error of the disk) counts
        as unchanged; a name that leads nowhere, or in circles, as absent. Names that are not UTF-8 are as
        :func:`os.fsdecode` has them.

        With ``hints``, paths where something may have happened, only the directories that these are in are
        looked at, and all that is known at or below the paths. The first look is at everything, and with the
        pure core every one.
        """

    def folders(self) -> list[str]:
        """Return the directories that are walked, by the paths that are theirs here."""

    def links(self) -> list[str]:
        """Return the symbolic links that are directly in one of them, wherever they lead."""

    def module_files(self, modules: Iterable[object]) -> list[str]:
        """Return the files that modules come from, in the order of the modules.

        A module has a file if its ``__file__`` is a ``str``. Where there is no such file, the nearest of
        its parents that is one counts, as the archive does for a module in an archive. The source stands
        for what is compiled: the last letter of ``.pyc`` and ``.pyo`` is cut off.
        """

    @staticmethod
    def check_file(filename: str | PathLike[str], mtimes: MutableMapping[Any, float]) -> bool:
        """Tell whether a file was modified after the time (seconds) that ``mtimes`` has for it.

        That time is then brought up to date; a file that it does not have yet is added, and counts as
        not modified. :exc:`OSError` as from :func:`os.stat`.
        """

@final
class Table:
    """Entries with keys and values, in memory that several processes share.

    ``memory`` is the descriptor of a file whose size is the ceiling of the table: all zeros at first, then
    used by every process that has a table of it. Nobody may make it shorter. ``wake`` is where eight bytes
    are written to wake main, never waiting: an eventfd, or the end of a pipe. Both stay the caller's and may
    be closed.

    An entry is a ``dict``, of any keys and values that can be pickled; each value is kept by itself. A key
    that is a ``str`` of a class of its own is kept as a plain one. What is handed out is the caller's own.
    Every change is seen whole or not at all, and none is lost because of another. A process that was forked
    may go on with the table of its parent.

    **Whose entry it is.** Everybody sees one entry under a name. It belongs to the process whose pid its key
    ``"pid"`` holds (to everybody, while it has none). A ``pid`` that is given, other than 0, says who acts in
    that name: if the entry is another's, what is written goes to a part that is kept apart, and what is read
    is the entry with that part over it. Where there are many parts, those of the dead are dropped; that of a
    process which had a pid before is not that of the one which has it now.

    **What else is written there.** Every block has a checksum. What something else has changed in the memory
    is a :exc:`RuntimeError` of the read that meets it, and of a write to an entry that cannot be read any
    more. :meth:`put` makes it anew.

    :exc:`OSError` if it cannot be mapped, :exc:`ValueError` if it is too small or holds something else. What
    changes something raises :exc:`MemoryError` where there is no room for it; then nothing is changed.
    """

    def __new__(
        cls,
        memory: int,
        wake: int,
        *,
        owner: str,
        beat: str,
        count: str,
        flags: Sequence[str],
        essential: Sequence[str],
    ) -> Table: ...
    def entry(self, name: str, pid: int = 0) -> dict[Any, Any]:
        """Return an entry. :exc:`KeyError` if there is none.

        With values that cannot be unpickled it is a :class:`~worker._core.codec.PartialEntry`. Where its
        process has written numbers, they are among the keys: ``last_beat`` (an aware ``datetime`` in UTC),
        ``requests``, ``stoppable`` and ``stopping``.
        """

    def value(self, name: str, key: Any, pid: int = 0) -> Any:
        """Return one value of an entry; no other is unpickled.

        :exc:`KeyError` of the name or of the key if there is none,
        :exc:`~worker._core.codec.UnreadableError` if it cannot be unpickled.
        """

    def some(self, name: str, keys: Sequence[str], pid: int = 0) -> dict[str, Any]:
        """Return those of some keys that an entry has, or of what a process has written apart.

        Only plain values: ``None``, ``bool``, ``int``, ``float``, ``str``, ``bytes``, and a ``datetime`` in
        UTC. All else is left out, and no code of anybody's runs.

        Raises:
            KeyError: There is no such entry.
        """

    def check(self, name: str) -> bool:
        """Return whether there is an entry, once all that is kept under its name has been read anew.

        Whatever this process has read before does not count, so damage is found: :exc:`RuntimeError`.
        """

    def entries(self) -> dict[str, dict[Any, Any]]:
        """Return all entries, in the order in which they were made."""

    def names(self) -> list[str]:
        """Return the names of all entries, in the order in which they were made."""

    def put(self, name: str, entry: Mapping[Any, Any]) -> None:
        """Let an entry have these keys and no others. If there is none, or it cannot be read, make it."""

    def update(self, name: str, changes: Mapping[Any, Any], pid: int = 0) -> None:
        """Set some keys of an entry. :exc:`KeyError` if there is none."""

    def discard(self, name: str, key: Any, pid: int = 0) -> None:
        """Remove a key of an entry. :exc:`KeyError` of the name or of the key if there is none."""

    def remove(self, name: str) -> None:
        """Remove an entry, and what is kept apart from it. :exc:`KeyError` if there is none."""

    def part(self, name: str, pid: int) -> dict[Any, Any]:
        """Return what a process has written apart from the entry; empty if it has not."""

    def hand_over(self, name: str, pid: int, changes: Mapping[Any, Any]) -> None:
        """Merge into an entry ``changes``, then what a process has written apart.

        :exc:`KeyError` if there is no such entry.
        """

    def drop(self, name: str, pid: int) -> None:
        """Forget what a process has written apart, if it has."""

    def beat(self, count: int = 0, pid: int = 0) -> None:
        """Note that a process is alive, and that it has served so many more requests.

        0 is the calling process. It may speak as one that has forked it; if that is dead, nothing is noted.
        """

    def flag(self, *, pid: int = 0, **flags: bool | None) -> None:
        """Set or clear the flags of a process; ``None`` leaves one as it is. ``pid`` as for :meth:`beat`."""

    def numbers(self, pid: int) -> dict[str, Any]:
        """Return what a process has said of itself in numbers and flags; empty if nothing."""

    def bury(self, pid: int) -> None:
        """Let others use what a dead process had; one that lives, and has its pid by now, keeps its own."""

    def changes(self, everything: bool = False) -> list[str]:
        """Return, sorted, the names whose entries or parts have changed, come or gone since the last call.

        For one process: each change is told of once. A process that is killed between a change and the mark
        that tells of it leaves one that is found only where ``everything`` is compared. Numbers and flags do
        not count.
        """

    def arm(self) -> bool:
        """Have changes wake, from now on; return whether there has been one since :meth:`changes`."""

    def disarm(self) -> None:
        """Have changes wake no more."""
