"""Runs a check: starts the throw-away processes, collects their reports, and ends them."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from time import monotonic, sleep
from typing import Any, NoReturn

from worker._system import family, proc, systemd
from worker.cli.check import arguments, imports, text
from worker.cli.check.arguments import Options, UsageError
from worker.cli.check.exits import ExitCode
from worker.cli.check.findings import Findings, Step
from worker.cli.program import PROGRAM

__all__ = ["PIPES", "run"]

# The variable that makes the command a throw-away main process: the descriptors of its pipes.
PIPES = "SANIC_WORKER_CHECK"
# How often the main process is looked at, seconds: a process that it leaves behind may keep its pipes open.
INTERVAL = 0.05
# The time after a limit for the process to show its stacks, seconds.
GRACE = 3.0
# How long other processes may take to end after the main process, seconds.
AFTER = 1.0
# How long the kernel may take to end killed processes, seconds.
KILL_TIMEOUT = 10.0
CHUNK = 1 << 16


def run(args: list[str] | None) -> int:
    """Run a check; return its exit code (:class:`~worker.cli.check.exits.ExitCode`).

    Args:
        args (list[str] | None): The arguments, from ``check`` on; ``None`` for those of the process.
    """
    pipes = os.environ.pop(PIPES, "")
    try:
        options = arguments.parse((sys.argv[1:] if args is None else args)[1:])
    except UsageError as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return ExitCode.USAGE
    if pipes:
        from worker.cli.check import main_process

        main_process.run(options, pipes)
        return ExitCode.FINE
    # As the same program, so that the application finds the same path, options and arguments.
    program = sys.orig_argv[1:] if args is None else ["-m", "worker", *args]
    check = _Check(options, program)
    try:
        with _stops_raised():
            check.run()
            check.show()
        sys.stdout.flush()
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except BrokenPipeError:
        # The reader has seen enough. The interpreter would complain when it flushes once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.FAILED
    return check.findings.code


@contextmanager
def _stops_raised() -> Iterator[None]:
    """Raise an exception at a stop signal, so that no process is left behind."""

    def stop(signum: int, _: Any) -> NoReturn:
        raise SystemExit(128 + signum)

    before = {signum: signal.signal(signum, stop) for signum in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


class _Check:
    """One check, with its processes."""

    def __init__(self, options: Options, program: list[str]) -> None:
        self.findings = Findings(options.server[0])
        self._options = options
        self._program = program
        self._reader = imports.ImportReader()
        self._held: list[Step] = []
        self._buffers: dict[str, bytes] = {"main": b"", "worker": b"", "output": b""}

    def run(self) -> None:
        """Start the throw-away main process, collect its reports, and end all processes."""
        family.adopt_orphans()
        with selectors.DefaultSelector() as selector, self._started(selector) as process:
            selector_map = {str(key.data): key.fd for key in selector.get_map().values()}
            try:
                while process.poll() is None and not self._is_over():
                    ready = {key.data for key, _ in selector.select(INTERVAL)}
                    # The main process reports the start of the worker before the worker reports anything.
                    for name in sorted(ready, reverse=True):
                        self._read(name, selector_map[name], selector)
                    self._apply()
                code = process.poll()
            except KeyboardInterrupt:
                self.findings.was_interrupted = True
                code = None
            finally:
                self._end(process)
            for name, fd in selector_map.items():
                self._read(name, fd, selector)
            self._apply()
            if rest := self._buffers["output"]:
                self._take_output(rest)
        ended = self.findings.conclude(code, monotonic())
        if not self._options.json:
            for step in (*self._held, *ended):
                print(text.step_line(step))

    def show(self) -> None:
        """Print the report, or the rest of it."""
        found = self._reader.result() if self._options.imports else None
        if self._options.json:
            print(json.dumps({**self.findings.report(), "imports": found}))
            return
        text.show(self.findings, found)

    @contextmanager
    def _started(self, selector: selectors.BaseSelector) -> Iterator[subprocess.Popen[bytes]]:
        readers, writers = {}, {}
        for name in ("main", "worker", "output"):
            readers[name], writers[name] = os.pipe()
            os.set_blocking(readers[name], False)
            selector.register(readers[name], selectors.EVENT_READ, name)
        lifeline, held = os.pipe()
        given = (writers["main"], writers["worker"], lifeline)
        flags = imports.FLAGS if self._options.imports else ()
        # A check is no concern of the service manager: `ExecStartPre=` may run one.
        environment = {name: value for name, value in os.environ.items() if name not in systemd.PERSONAL}
        # Output is shown as it was when a process is killed.
        environment |= {PIPES: ",".join(map(str, given)), "PYTHONUNBUFFERED": "1"}
        try:
            try:
                process = subprocess.Popen(
                    [sys.executable, *flags, *self._program],
                    stdin=subprocess.DEVNULL,
                    stdout=writers["output"],
                    stderr=writers["output"],
                    env=environment,
                    pass_fds=given,
                    start_new_session=True,
                )
            finally:
                for descriptor in (*writers.values(), lifeline):
                    os.close(descriptor)
            with process:
                yield process
        finally:
            for descriptor in (*readers.values(), held):
                os.close(descriptor)

    def _is_over(self) -> bool:
        """Return whether the time of the processes is over."""
        findings = self.findings
        if findings.limit is not None and monotonic() > findings.limit[0] + GRACE:
            findings.has_overrun = True
        return findings.has_overrun

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        """End all processes; warn of those that outlive the main process."""
        ended_by_itself = process.poll() is not None
        stops = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
        before = signal.pthread_sigmask(signal.SIG_BLOCK, stops)
        try:
            deadline = monotonic() + AFTER
            while ended_by_itself and family.descendants() and monotonic() < deadline:
                sleep(INTERVAL)
            rest = family.descendants()
            if ended_by_itself and rest:
                names = ", ".join(f"{proc.name(pid)} [{pid}]" for pid in rest[:10])
                self.findings.warnings.append(
                    f"{len(rest)} processes outlive the server, and were killed: {names}"
                )
            if not ended_by_itself:
                process.kill()
            deadline = monotonic() + KILL_TIMEOUT
            while (rest := family.descendants()) and monotonic() < deadline:
                family.kill([pid for pid in rest if pid != process.pid])
                process.poll()
                sleep(INTERVAL)
            process.wait()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _read(self, name: str, descriptor: int, selector: selectors.BaseSelector) -> None:
        """Read all that is in a pipe."""
        while True:
            try:
                data = os.read(descriptor, CHUNK)
            except BlockingIOError:
                return
            if not data:
                with suppress(KeyError):
                    selector.unregister(descriptor)
                return
            self._buffers[name] += data
            if name == "output":
                *lines, self._buffers[name] = self._buffers[name].split(b"\n")
                for line in lines:
                    self._take_output(line)
                # A line without an end.
                self._buffers[name] = self._buffers[name][-CHUNK:]
                return

    def _take_output(self, line: bytes) -> None:
        if not (self._options.imports and self._reader.takes(line)):
            self.findings.add_output(line)

    def _apply(self) -> None:
        """Apply the events read so far, in the order of their times."""
        events = []
        for name in ("main", "worker"):
            *lines, self._buffers[name] = self._buffers[name].split(b"\n")
            events += [json.loads(line) for line in lines]
        for event in sorted(events, key=lambda event: event["at"]):
            step = self.findings.apply(event)
            if step is None or self._options.json:
                continue
            if step.error and step.process == "main":
                # The message of the command may tell more about it.
                self._held.append(step)
            else:
                print(text.step_line(step), flush=True)
