# ruff: noqa: PYI021 (the documentation is here)
"""The native core: the control channel, the wait of the main process, the shared state, the scan of files.

It is written in Rust. :mod:`worker._core.pure` stands in where it is missing. That core returns the same
results but has no :class:`Table` and no :class:`Questions`. Only :mod:`worker._core` imports either of them.
It is longer than 450 lines: it is one module, with the documentation of every class.
"""

from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from os import PathLike
from typing import Any, Literal, final

from worker._core.messages import Command, Event, Opaque

__all__ = [
    "LIMIT",
    "PROFILE",
    "Framer",
    "Monitor",
    "ParentWatch",
    "Questions",
    "Scanner",
    "Table",
    "decode",
    "parse",
]

LIMIT: int
"""The largest payload of a frame that is accepted, in bytes: 16 MiB."""

PROFILE: Literal["release", "debug"]
"""The profile with which the core was compiled; ``None`` in the pure core."""

def parse(text: str) -> Command:
    """Parse a text of the control channel.

    - ``""`` is :class:`~worker._core.messages.Stop`; ``"__TERMINATE__"`` and ``"__TERMINATE_EARLY__"`` are
      :class:`~worker._core.messages.Terminate`.
    - ``"__SCALE__:<n>"`` is :class:`~worker._core.messages.Scale`. ``n`` is a whole number of at most 64 bits
      in ASCII digits, with or without a sign and white space around it. Whether that many workers are
      possible is not checked here. Any other text that begins with ``__SCALE__`` is
      :class:`~worker._core.messages.Invalid`, with a reason that says what is allowed.
    - Any other text is :class:`~worker._core.messages.Restart`. The names come before the first colon,
      separated by commas and stripped; ``__ALL_PROCESSES__`` among them means all. The text after the colon
      lists the files, colons included, without ``":STARTUP_FIRST"`` at its end.
    """

def decode(payload: bytes) -> Command | Opaque:
    """Decode the command in a pickle of ``None`` or of a ``str``. No code is run.

    ``None`` is :class:`~worker._core.messages.Stop`; a ``str`` is parsed as by :func:`parse`. Both are
    recognised in every form that the pickle protocols 2 to 5 have for them. A payload that differs from such
    a pickle in any byte is :class:`~worker._core.messages.Opaque` and left to :mod:`pickle`.
    """

@final
class Framer:
    """The framing of :mod:`multiprocessing.connection` for one stream: bytes in, payloads out.

    A frame is a size, a big-endian ``int32``, and a payload. A size of -1 is followed by the real one, a
    big-endian ``uint64``. A size that is negative or above ``limit`` is a fault. The framer is then out of
    sync, and searches for the next place where a frame may begin: a possible size, and a payload that begins
    and ends as a pickle of the protocols 2 to 5 does. Where more bytes are needed to tell, it waits for them.
    Each byte is inspected once, in chunks of any size.

    ``limit`` is the largest payload in bytes, :data:`LIMIT` by default. Apart from the header and the last
    chunk, no more bytes than that are kept. :exc:`ValueError` if it is not positive.
    """

    def __new__(cls, limit: int = ...) -> Framer: ...
    @property
    def pending(self) -> int:
        """The number of bytes kept, which do not make a whole frame yet."""

    def feed(self, chunk: bytes) -> list[bytes]:
        """Take more bytes; return the payloads that they complete, in their order.

        The payload of a frame of size zero is ``b""``.
        """

    def faults(self) -> list[tuple[str, bytes]]:
        """Return the faults since the last call: for each a reason in words and a sample.

        The sample is the first of the bytes that were dropped, at most 64. There is one fault each time that
        the framer gets out of sync, not one for each chunk in which it still is.
        """

    def finish(self) -> None:
        """Drop the unfinished frame of a sender that has exited; it becomes a fault.

        After that, the framer is as new.
        """

@final
class ParentWatch:
    """Ends this process when its main process exits.

    ``parent`` is a descriptor that becomes readable when the main process exits, such as a pidfd. A thread
    waits for a duplicate of it, with the signal mask of the calling thread. It then sends SIGINT to this
    process, once, unless :meth:`stop_begun` was called before. After ``grace`` seconds it kills this process,
    and its process group if it leads its session. The thread of the native core needs no GIL, and therefore
    ends a process that hangs, too.

    :exc:`OSError` if ``parent`` is not open, or no thread can be started; :exc:`ValueError` if ``grace`` is
    negative.
    """

    def __new__(cls, parent: int, grace: float) -> ParentWatch: ...
    def stop_begun(self) -> None:
        """Note that this process has begun to stop, so that no SIGINT is sent."""

    def stop_handlers_set(self) -> None:
        """Note that the handlers of the stop signals are set. A SIGINT before that may be lost.

        If SIGINT was sent and no stop has begun, it is sent once more. Another call does nothing.
        """

@final
class Monitor:
    """One wait for messages of many senders, for exits of processes and for wakeups.

    ``fd`` is the receiving end of the control channel. The caller keeps it and may close it: the monitor
    reads a duplicate. A Unix stream socket is made to pass credentials (``SO_PASSCRED``). Linux then never
    mixes the bytes of two senders in one read, and names the sender of each read. Frames of different
    processes cannot damage each other then, however they are interleaved, and ``sender`` is known. Any other
    descriptor, such as :func:`os.pipe`, is read as one stream whose ``sender`` is ``None``. The blocking mode
    of the descriptor is neither used nor changed.

    ``notify_fd`` is a descriptor that also wakes the monitor, by being readable. Its bytes are read. It must
    not block. The monitor has a duplicate of it, too.

    :meth:`wait`, :meth:`watch`, :meth:`unwatch` and :meth:`close` are for one thread at a time. A call during
    another one, from another thread or a signal handler, raises :exc:`RuntimeError`. :meth:`wake` may be
    called from any thread and from a signal handler. Except for :meth:`close`, all of them raise
    :exc:`ValueError` once the monitor is closed.

    :exc:`OSError` if ``fd`` is not open, or no more descriptors can be opened.
    """

    def __new__(cls, fd: int, notify_fd: int | None = None) -> Monitor: ...
    @property
    def wakeup_fd(self) -> int:
        """A descriptor for :func:`signal.set_wakeup_fd`: bytes written to it end the wait.

        It is the non-blocking end of a socket pair, and closed by :meth:`close`.
        """

    def watch(self, key: str, pid: int, sentinel: int | None) -> None:
        """Watch a process, until it has exited.

        ``key`` is the name in its :class:`~worker._core.messages.Exited`. The process is watched by a pidfd.
        Where none can be opened, ``sentinel`` stands in: a descriptor that becomes readable when the process
        exits. The caller keeps it open until the exit or :meth:`unwatch`. The exit of a process that has
        exited already is reported by the next wait.

        :exc:`ValueError` if ``key`` is watched already or ``pid`` is not positive; :exc:`OSError` if no pidfd
        can be opened and there is no sentinel.
        """

    def unwatch(self, key: str) -> None:
        """Stop watching a process. :exc:`KeyError` if it is not watched, as after its exit."""

    def wait(self, timeout: float | None, messages: bool = True) -> list[Event]:
        """Wait for events and return them.

        ``timeout`` is in seconds. ``None`` waits without limit; zero or less does not wait. The list is empty
        after the timeout or a wakeup. :exc:`ValueError` if it is NaN.

        If ``messages`` is true, the channel is read, up to 128 KiB or 250 messages per wait. Otherwise only
        the messages of processes that have exited are received. First in the list are
        :class:`~worker._core.messages.Received` and :class:`~worker._core.messages.Corrupt` as they arrived,
        then :class:`~worker._core.messages.Exited`. The messages of a process are in the same list as its
        exit, or in an earlier one. So is its unfinished frame, as ``Corrupt``, even for a sender that is not
        watched. Unfinished frames may take 64 MiB together; beyond that, the largest is dropped, as
        ``Corrupt``. Where senders are known, an exit does not wait for messages of other processes. The end
        of the channel, or an error of it, is one last ``Corrupt``.

        An exit code is read without reaping the child. It is ``None`` for a process that is not a child of
        this one, was reaped before, or was watched by its sentinel.

        Python's signal handlers run during the wait. An exception that one raises is passed on, and the
        events stay for the next wait.
        """

    def wake(self) -> None:
        """Make the running wait return, or else the next one. Several wakeups may count as one."""

    def close(self) -> None:
        """Close all descriptors that were opened here. May be repeated, and called in a forked child.

        The channel, the sentinels and the processes are not touched. In a child that was forked while another
        thread was in :meth:`wait`, this raises :exc:`RuntimeError` as above.
        """

@final
class Questions:
    """Questions between the processes of one table whether one of them is stuck.

    A question is a number, 2 for the first one of a process, and an answer is the number of the last question
    that was answered. Each process that has called :meth:`open` has two threads that wait for questions to
    it: a native one, which answers at once and never waits for the GIL, and a thread of Python in
    :meth:`next`. Both wait for a futex in the shared memory, without a descriptor and without a timeout. In a
    fork of such a process, nothing answers, and the methods without a ``pid`` do nothing.
    """

    def __new__(cls, table: Table) -> Questions: ...
    def ask(self, pid: int) -> int:
        """Put a question to a process; return its number, or 0 if that process takes none."""

    def answers(self, pid: int) -> tuple[int, int]:
        """Return the last questions that the native thread of a process, and its interpreter, have answered.

        Both are 0 for a process that never took any.
        """

    def signal(self, pid: int) -> int:
        """Return the number of the signal at which a process dumps its stacks; 0 if there is none."""

    def open(self) -> None:
        """Take questions to this process, and start its native thread, with the signal mask of this thread.

        :exc:`OSError` if the thread cannot be started, :exc:`MemoryError` without room for the process.
        """

    def next(self, after: int) -> int:
        """Wait, without the GIL, until the last question is another one than ``after``, and return it.

        1 is the number before the first question. The result is 0 if the process takes no questions.
        """

    def answer(self, number: int) -> None:
        """Note that the interpreter of this process has answered a question."""

    def set_signal(self, signum: int) -> None:
        """Publish the signal at which this process dumps its stacks, after its handler was set; 0 for none.

        The native thread withdraws it when it finds another handler at a question.
        """

    def close(self) -> None:
        """Take no more questions: :meth:`next` returns 0, and the native thread ends. May be repeated."""

@final
class Scanner:
    """Finds changes of files, and the files of the loaded modules.

    ``roots`` are directories. Everything below them is watched; links to directories are followed. No
    directory is walked twice, under any of its paths: the first path is the one that is returned. Single
    files are added by :meth:`watch`.

    ``ignored`` is a list of rules, of which the last one that matches decides. A rule is a regular
    expression, searched for in the path below the innermost root, and whether that path is excluded with
    everything below it. The path of a directory ends with a slash. By default ``__pycache__`` is excluded. A
    directory other than a root that contains ``pyvenv.cfg`` or ``CACHEDIR.TAG`` is excluded, too.

    A file has changed when its modification time (ns, in either direction), its size or its inode differs. A
    link has the state of its target. Of a directory, and of a file that is not regular, only creation and
    removal count. The file systems of ``/proc`` and ``/sys`` are not walked.

    A directory is listed again only when its time of change (``st_ctime``) has moved, as it does when an
    entry is created, removed or replaced. For ``settle`` seconds after that time it is listed at every scan,
    because a second change may have the same time. No file system has a clock coarser than the default of 2
    seconds.

    :meth:`scan` and :meth:`watch` are for one thread at a time, else :exc:`RuntimeError`. The given paths may
    be relative; returned paths begin with them. :exc:`ValueError` for a path with a null byte, a pattern that
    is no regular expression, and a negative ``settle`` or ``since``.
    """

    def __new__(
        cls,
        roots: Iterable[str | PathLike[str]],
        ignored: list[tuple[str, bool]] | None = None,
        settle: float = 2.0,
        since: float | None = None,
    ) -> Scanner: ...
    def watch(self, files: Iterable[str | PathLike[str]]) -> None:
        """Watch these files, too.

        Their present state is no change, except for the first :meth:`scan`. The creation of a file that does
        not exist yet is one. A file that is watched already stays so.
        """

    def scan(self, paths: Iterable[str | PathLike[str]] | None = None) -> list[str]:
        """Scan everything; return the paths that have changed since the last scan.

        These are the paths of files that were created, removed or changed, and of directories that were
        created or removed, once each and sorted (by their bytes). The first scan records everything and
        returns the files whose time of change (``st_ctime``) is not before ``since``, in seconds since 1970;
        by default none. A file that cannot be inspected (in an unreadable directory, after a disk error)
        counts as unchanged; a dangling or circular link as absent. Names that are not UTF-8 are decoded as by
        :func:`os.fsdecode`.

        With ``paths``, only their directories, and all known directories at or below the paths, are scanned.
        The first scan covers everything, and in the pure core every scan does.
        """

    def folders(self) -> list[str]:
        """Return the directories that are walked, each by the path under which it is known."""

    def links(self) -> list[str]:
        """Return the symbolic links that are directly in one of these directories."""

    def module_files(self, modules: Iterable[object]) -> list[str]:
        """Return the files of modules, in the order of the modules.

        A module has a file if its ``__file__`` is a ``str``. If there is no such file, its nearest parent
        that is a file counts, such as the archive of a module in an archive. The source stands for compiled
        code: the last letter of ``.pyc`` and ``.pyo`` is removed.
        """

    @staticmethod
    def check_file(filename: str | PathLike[str], mtimes: MutableMapping[Any, float]) -> bool:
        """Return whether a file was modified after its time in ``mtimes``, in seconds.

        That time is then updated. A file that ``mtimes`` lacks is added and counts as not modified.
        :exc:`OSError` as from :func:`os.stat`.
        """

@final
class Table:
    """Entries with keys and values, in memory that several processes map.

    ``memory`` is the descriptor of a file. Its size is the limit of the table. It is all zeros at first, and
    then used by every process that has a table of it. No process may shorten it. ``wake`` is a descriptor to
    which eight bytes are written, without blocking, to wake the main process: an eventfd, or the end of a
    pipe. The caller keeps both and may close them.

    An entry is a ``dict`` with any keys and values that can be pickled. Each value is stored by itself. A key
    of a subclass of ``str`` is stored as a plain ``str``. Returned objects belong to the caller. Every change
    is visible as a whole or not at all, and none is lost because of another one. A forked process may use the
    table of its parent.

    **Schema.** The table knows the keys with a meaning by the names that it is opened with. ``owner`` holds
    the pid of the process to which the entry belongs. ``beat``, ``count``, ``gauges`` (whole numbers),
    ``seconds`` (durations; at most 5 together with the gauges) and ``flags`` (at most 63) are the names of
    the numbers that :meth:`beat` and :meth:`flag` write. A change of ``essential`` keys alone may use the
    space that is reserved for a full table.

    **Sheets.** ``sheets`` names tables of cells, each with its number of cells and the bytes that a cell may
    hold, below 2³² each. They are beside the entries, in a place of fixed size. A cell takes memory once it,
    or one behind it, is written. Each table of one memory has the same sheets.

    **Owner.** All processes see one current entry under a name. It belongs to the process whose pid its
    ``owner`` key holds, and to all processes while it has none. A method with a ``pid`` other than 0 acts for
    that process. If the entry belongs to another process, a write goes to a staged entry, and a read returns
    the current entry overlaid by the staged one. Where a name has many staged entries, those of exited
    processes are dropped. A staged entry never passes to a later process with the same pid.

    **Damage.** Every block has a checksum. A read of memory that another program has changed raises
    :exc:`RuntimeError`, as does a write to an entry that cannot be read. :meth:`put` replaces such an entry.

    :exc:`OSError` if the file cannot be mapped; :exc:`ValueError` if it is too small or is no table. A method
    that changes the table raises :exc:`MemoryError` if there is no space for the change, and then changes
    nothing.
    """

    def __new__(
        cls,
        memory: int,
        wake: int,
        *,
        owner: str,
        beat: str,
        count: str,
        gauges: Sequence[str],
        seconds: Sequence[str],
        flags: Sequence[str],
        essential: Sequence[str],
        sheets: dict[str, tuple[int, int]],
    ) -> Table: ...
    def entry(self, name: str, pid: int = 0) -> dict[Any, Any]:
        """Return an entry. :exc:`KeyError` if there is none.

        With values that cannot be unpickled it is a :class:`~worker._core.codec.PartialEntry`. If its owner
        has written numbers, they are among the keys: the last beat (an aware ``datetime`` in UTC), the count,
        the gauges that were written, and the flags. A key that was set hides a gauge of its name.
        """

    def value(self, name: str, key: Any, pid: int = 0) -> Any:
        """Return one value of an entry; no other value is unpickled.

        :exc:`KeyError` of the name or of the key if there is none,
        :exc:`~worker._core.codec.UnreadableError` if it cannot be unpickled.
        """

    def some(self, name: str, keys: Sequence[str], pid: int = 0) -> dict[str, Any]:
        """Return the plain values of some keys, of the current entry or of the one that ``pid`` has staged.

        Plain are ``None``, ``bool``, ``int``, ``float``, ``str``, ``bytes``, and a ``datetime`` in UTC. Any
        other value is left out, so no code of a user runs.

        Raises:
            KeyError: There is no such entry.
        """

    def check(self, name: str) -> bool:
        """Return whether there is an entry, after all of its versions were read anew.

        The cache of this process is not used, so damage is found: :exc:`RuntimeError`.
        """

    def entries(self) -> dict[str, dict[Any, Any]]:
        """Return all entries, in the order of their creation."""

    def names(self) -> list[str]:
        """Return the names of all entries, in the order of their creation."""

    def put(self, name: str, entry: Mapping[Any, Any]) -> None:
        """Replace all keys of an entry. Create it if there is none, or if it cannot be read."""

    def update(self, name: str, changes: Mapping[Any, Any], pid: int = 0) -> None:
        """Set some keys of an entry. :exc:`KeyError` if there is none."""

    def discard(self, name: str, key: Any, pid: int = 0) -> None:
        """Remove a key of an entry. :exc:`KeyError` of the name or of the key if there is none."""

    def remove(self, name: str) -> None:
        """Remove an entry, and those staged for its name. :exc:`KeyError` if there is none."""

    def staged(self, name: str, pid: int) -> dict[Any, Any]:
        """Return the entry that a process has staged; empty if there is none."""

    def hand_over(self, name: str, pid: int, changes: Mapping[Any, Any]) -> None:
        """Merge ``changes`` into an entry, then the keys that a process has staged.

        :exc:`KeyError` if there is no such entry.
        """

    def drop_staged(self, name: str, pid: int) -> None:
        """Drop the entry that a process has staged, if there is one."""

    def beat(self, count: int = 0, pid: int = 0, gauges: tuple[float | None, ...] | None = None) -> None:
        """Write the present time as the last beat of a process, add to its count, and set its gauges.

        0 is the calling process, which may also write for the process that it was forked from. Nothing is
        written for a process that has exited. The gauges are in the order in which the table was opened with
        them, ``seconds`` last; ``None`` leaves one as it is. :exc:`ValueError` for too many of them;
        :exc:`OverflowError` or :exc:`ValueError` for a negative one.
        """

    def flag(self, *, pid: int = 0, **flags: bool | None) -> None:
        """Set or clear flags of a process; ``None`` leaves one as it is. ``pid`` as for :meth:`beat`.

        :exc:`TypeError` for a flag that the table was not opened with.
        """

    def numbers(self, pid: int) -> dict[str, Any]:
        """Return the last beat, the count, the gauges and the flags of a process; empty if it has none."""

    def last_beat(self, pid: int) -> float | None:
        """Return when a process has last beaten, seconds of the monotonic clock; ``None``: never."""

    def write_cell(self, sheet: str, index: int, data: bytes) -> None:
        """Write a cell of a sheet; for one process at a time.

        A process that is killed meanwhile leaves a cell without data, until the next write of it.
        :exc:`KeyError` if there is no such sheet, :exc:`IndexError` if it has fewer cells, and
        :exc:`ValueError` if the data are too long.
        """

    def cells(self, sheet: str) -> list[bytes | None]:
        """Return the data of all cells of a sheet; :exc:`KeyError` if there is no such sheet.

        ``None`` stands for a cell that was never written, is being written, or was damaged.
        """

    def usage(self) -> tuple[int, int]:
        """Return the bytes that are taken for entries, in segments of 16 KiB, and those that there are."""

    def reclaim(self, pid: int) -> None:
        """Make the space of a process that has exited available to others.

        A running process that has its pid by now keeps its own.
        """

    def changes(self, everything: bool = False) -> list[str]:
        """Return, sorted, the names whose current or staged entries have changed since the last call.

        For one process: each change is reported once. A process that is killed between a change and its dirty
        bit leaves a change that is found only if ``everything`` is compared. Numbers and flags do not count.
        """

    def arm(self) -> bool:
        """Have changes wake the main process; return whether there was one since :meth:`changes`."""

    def disarm(self) -> None:
        """Have changes wake no more."""
