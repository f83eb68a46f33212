"""A dump of all that a process has taken over from others, and of the state of its interpreter."""

from __future__ import annotations

import atexit
import ctypes
import decimal
import faulthandler
import gc
import locale
import logging
import multiprocessing
import os
import random
import re
import resource
import signal
import socket
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import process as processes
from pathlib import Path
from typing import Any

PROC = Path("/proc/self")
STATUS = (
    "Umask Uid Gid Groups Threads SigBlk SigIgn SigCgt SigPnd ShdPnd CapInh CapPrm CapEff CapBnd CapAmb "
    "NoNewPrivs Seccomp Seccomp_filters Cpus_allowed Mems_allowed THP_enabled VmLck"
)
FILES = "cgroup oom_score_adj coredump_filter timerslack_ns personality comm"
# The options of prctl(2) that read a flag of the process, with their numbers.
PRCTL = {"DUMPABLE": 3, "KEEPCAPS": 7, "SECUREBITS": 27, "TIMERSLACK": 30}


def dump() -> dict[str, Any]:
    """Return the conditions of the calling process, by name. All can be compared and written as JSON."""
    return {
        **_system(),
        **_interpreter(),
        **{f"stream {name}": _stream(name) for name in ("stdin", "stdout", "stderr")},
        **_multiprocessing(),
        **_logging(),
    }


def _system() -> dict[str, Any]:
    libc = ctypes.CDLL(None)
    libc.getenv.restype = ctypes.c_char_p
    found = {f"variable {name}": value for name, value in os.environ.items()}
    differs = [name for name in os.environ if libc.getenv(name.encode()) != os.environb[name.encode()]]
    fields = dict(line.split(":\t", 1) for line in _read("status").splitlines())
    found |= {"environment of libc that differs": differs}
    found |= {name: fields.get(name, "").strip() for name in STATUS.split()}
    found |= {name: _read(name).strip() for name in FILES.split()}
    found |= {f"PR_GET_{name}": libc.prctl(number, 0, 0, 0, 0) for name, number in PRCTL.items()}
    limits = [name for name in dir(resource) if name.startswith("RLIMIT_")]
    found |= {name: resource.getrlimit(getattr(resource, name)) for name in limits}
    is_leader = {"session": os.getsid(0) == os.getpid(), "group": os.getpgid(0) == os.getpid()}
    return found | {
        "leads": is_leader,
        "terminal": os.path.exists("/dev/tty") and _opens("/dev/tty"),
        "directory": os.getcwd(),
        "root directory": os.stat("/").st_ino,
        "nice": os.getpriority(os.PRIO_PROCESS, 0),
        "affinity": sorted(os.sched_getaffinity(0)),
        "scheduling": [os.sched_getscheduler(0), os.sched_getparam(0).sched_priority],
        "namespaces": {name.name: os.readlink(name) for name in (PROC / "ns").iterdir()},
        "blocked signals": sorted(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, ()))),
        "handlers": {int(number): _name(signal.getsignal(number)) for number in signal.valid_signals()},
        "timer": signal.getitimer(signal.ITIMER_REAL),
        "descriptors": Counter(sorted(_descriptors())),
        "standard files": [[os.fstat(fd).st_dev, os.fstat(fd).st_ino] for fd in range(3)],
        "parent": os.getppid() == getattr(processes.parent_process(), "pid", 0),
        "initial environment": sorted(_read("environ").split("\0")),
        "command line": _read("cmdline").split("\0"),
    }


def _interpreter() -> dict[str, Any]:
    main = sys.modules["__main__"]
    hooks = ("excepthook", "displayhook", "unraisablehook", "breakpointhook")
    values = "argv orig_argv path executable prefix warnoptions _xoptions dont_write_bytecode pycache_prefix"
    calls = "getswitchinterval getrecursionlimit getdlopenflags getfilesystemencoding gettrace getprofile"
    return {
        **{f"sys.{name}": getattr(sys, name) for name in values.split()},
        **{f"sys.{name}()": getattr(sys, name)() for name in calls.split()},
        **{f"sys.{name}": _name(getattr(sys, name)) for name in hooks},
        "sys.flags": str(sys.flags),
        "sys.meta_path": [_name(finder) for finder in sys.meta_path],
        "sys.path_hooks": [_name(hook) for hook in sys.path_hooks],
        "missing directories": sorted(
            path for path, finder in sys.path_importer_cache.items() if not finder and os.path.isdir(path)
        ),
        "modules": sorted(sys.modules),
        "__main__": [main.__name__, getattr(main, "__file__", None), sys.modules.get("__mp_main__") is main],
        "names in __main__": sorted(vars(main)),
        "warnings": [repr(found) for found in warnings.filters],
        "warnings.showwarning": _name(warnings.showwarning),
        "threading.excepthook": _name(threading.excepthook),
        "threads": [thread.name for thread in threading.enumerate()],
        "main thread": [threading.main_thread().native_id == os.getpid(), threading.stack_size()],
        "gc": [gc.isenabled(), gc.get_threshold(), gc.get_debug(), len(gc.callbacks)],
        "frozen objects": gc.get_freeze_count() > 0,
        "random": _name(type(random._inst)),  # type: ignore[attr-defined]
        "hash of a text": hash("text"),
        "faulthandler": faulthandler.is_enabled(),
        "exit functions": atexit._ncallbacks(),
        "locale": locale.setlocale(locale.LC_ALL),
        "encoding": locale.getpreferredencoding(),
        "time zone": [time.tzname, time.strftime("%Z", time.localtime(0)), _c_time_zone()],
        "temporary files": tempfile.gettempdir(),
        "socket timeout": socket.getdefaulttimeout(),
        "decimal": str(decimal.getcontext()),
    }


def _multiprocessing() -> dict[str, Any]:
    me, parent = multiprocessing.current_process(), multiprocessing.parent_process()
    assert parent is not None
    return {
        "process": [me.name, me.daemon, type(me).__name__, me.pid == os.getpid()],
        "authkey": bytes(me.authkey).hex(),
        "parent process": [parent.name, parent.is_alive()],
        "pid of the parent process": parent.pid,
        "children": len(multiprocessing.active_children()),
        "start method": multiprocessing.get_start_method(allow_none=True),
        "original directory": processes.ORIGINAL_DIR,  # type: ignore[attr-defined]
    }


def _logging() -> dict[str, Any]:
    found = {
        name: [_logger(one), [_handler(handler) for handler in one.handlers]]
        for name, one in [("root", logging.root), *logging.root.manager.loggerDict.items()]
        if isinstance(one, logging.Logger)
    }
    formatter = getattr(sys.modules.get("sanic.logging.formatter"), "AutoFormatter", None)
    marks = {name: getattr(formatter, name, None) for name in ("IDENT", "NO_COLOR", "LOG_EXTRA", "SETUP")}
    colorize = getattr(sys.modules.get("sanic.logging.color"), "COLORIZE", None)
    return {
        **{f"logger {name}": value for name, value in found.items()},
        "log formatter": {**marks, "COLORIZE": colorize},
        "logging": [logging.raiseExceptions, logging.root.manager.disable],
        "log records": _name(logging.getLogRecordFactory()),
    }


def _logger(logger: logging.Logger) -> list[Any]:
    return [logger.level, logger.propagate, logger.disabled, [_name(one) for one in logger.filters]]


def _handler(handler: logging.Handler) -> list[Any]:
    stream = getattr(getattr(handler, "stream", None), "name", None)
    return [type(handler).__name__, handler.level, type(handler.formatter).__name__, stream]


def _stream(name: str) -> list[Any]:
    stream = getattr(sys, name)
    fields = ("encoding", "errors", "line_buffering", "write_through", "mode", "newlines")
    return [
        type(stream).__name__,
        stream.isatty(),
        {field: getattr(stream, field, None) for field in fields},
        _target(stream.fileno()),
        getattr(sys, f"__{name}__") is stream,
    ]


def _descriptors() -> list[str]:
    """Return the kind of each open descriptor above 2, with the name of a file."""
    found = []
    for fd in map(int, os.listdir("/proc/self/fd")):
        if fd > 2:
            # The descriptor that has listed the directory is closed.
            with suppress(OSError):
                found.append(_target(fd))
    return found


def _target(fd: int) -> str:
    return re.sub(r":\[\d+\]", "", os.readlink(f"/proc/self/fd/{fd}"))


def _c_time_zone() -> str:
    libc = ctypes.CDLL(None)
    buffer = ctypes.create_string_buffer(64)
    seconds = ctypes.c_long(0)
    libc.localtime.restype = ctypes.c_void_p
    libc.strftime(buffer, 64, b"%Z %z", ctypes.c_void_p(libc.localtime(ctypes.byref(seconds))))
    return buffer.value.decode()


def _opens(path: str) -> bool:
    try:
        os.close(os.open(path, os.O_RDWR))
    except OSError:
        return False
    return True


def _read(name: str) -> str:
    try:
        return (PROC / name).read_text()
    except OSError as error:
        return str(error)


def _name(found: Callable[..., Any] | object) -> str:
    """Return the name of a function or a class, or what it is otherwise, without addresses."""
    if name := getattr(found, "__qualname__", None):
        return f"{getattr(found, '__module__', '')}.{name}"
    return re.sub(r" at 0x\w+|0x\w+", "", repr(found))
