from __future__ import annotations

import errno
import os
import pickle
import re
import threading
from collections import OrderedDict, UserDict, deque
from collections.abc import Callable
from multiprocessing import Pipe, get_context
from pathlib import Path
from time import monotonic
from types import MappingProxyType
from typing import Any

import pytest
from support.running import until
from support.targets import nothing

from worker._control import receive
from worker._control.receive import ConnectionMonitor, decode_command, fileno, interpret, open_monitor
from worker._core import Monitor
from worker._core.messages import (
    Command,
    Corrupt,
    Event,
    Exited,
    Invalid,
    Manage,
    Opaque,
    Received,
    Restart,
    Scale,
    Stop,
    Terminate,
)
from worker.constants import RestartOrder

EIGHT = ("name", nothing, {"a": 1}, False, None, True, True, 3)


def stable_repr(value: object) -> str:
    """Return a name that each process of pytest gives to the same case."""
    return re.sub(" at 0x[0-9a-f]+", "", repr(value))


class Odd:
    """An object of which one method raises."""

    def __init__(self, error: BaseException, *methods: str) -> None:
        self.error = error
        self.methods = methods

    def _raise(self, method: str, otherwise: Any) -> Any:
        if method in self.methods:
            raise self.error
        return otherwise

    def __bool__(self) -> bool:
        return bool(self._raise("bool", True))

    def __repr__(self) -> str:
        return str(self._raise("repr", "odd"))


class RaisesWhenLoaded:
    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __reduce__(self) -> tuple[Any, ...]:
        return _raise, (self.error,)


class EmptyButLong(tuple[Any, ...]):
    def __len__(self) -> int:
        raise RuntimeError("no length")


class OddKeys(dict[str, Any]):
    def __iter__(self) -> Any:
        raise RuntimeError("no keys")


class NoClass:
    @property
    def __class__(self) -> type:
        raise RuntimeError("no class")


class LeavesAnything(BaseException):
    """An exception that is neither an ``Exception`` nor an exit."""


class HasNoTextError(Exception):
    """An exception whose text is an error."""

    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


def _raise(error: BaseException) -> None:
    raise error


def opaque(message: Any) -> Opaque:
    return Opaque(pickle.dumps(message))


class TestInterpret:
    @pytest.mark.parametrize(
        "message", [None, "", 0, 0.0, False, [], (), {}, set(), b"", 0j, range(0), deque()], ids=stable_repr
    )
    def test_falsy_messages_stop(self, message: Any) -> None:
        assert interpret(message) == Stop()

    @pytest.mark.parametrize(
        ("text", "command"),
        [
            ("__TERMINATE__", Terminate()),
            ("__TERMINATE_EARLY__", Terminate(early=True)),
            ("__SCALE__:4", Scale(4)),
            ("a,b:x:y:STARTUP_FIRST", Restart(("a", "b"), "x:y", RestartOrder.STARTUP_FIRST)),
            ("__ALL_PROCESSES__:", Restart(None, "")),
            ("name", Restart(("name",))),
        ],
    )
    def test_texts_are_parsed(self, text: str, command: Command) -> None:
        assert interpret(text) == command

    def test_a_str_subclass_is_parsed(self) -> None:
        class Text(str):
            __slots__ = ()

        assert interpret(Text("__SCALE__:4")) == Scale(4)

    def test_a_tuple_manages_a_process(self) -> None:
        assert interpret(EIGHT) == Manage("name", nothing, {"a": 1}, False, None, True, True, 3)
        assert interpret(EIGHT[:7]) == Manage("name", nothing, {"a": 1}, False, None, True, True, 1)

    @pytest.mark.parametrize(
        "kwargs", [{}, OrderedDict(a=1), UserDict(a=1), MappingProxyType({"a": 1})], ids=stable_repr
    )
    def test_arguments_may_be_any_mapping(self, kwargs: Any) -> None:
        assert interpret(("n", nothing, kwargs, *EIGHT[3:])) == Manage("n", nothing, kwargs, *EIGHT[3:])

    @pytest.mark.parametrize(
        "message",
        [(1,), EIGHT[:6], (*EIGHT, 9), tuple(range(100)), ("a",), (None,) * 7, (None,) * 8],
        ids=lambda message: str(len(message)),
    )
    def test_other_tuples_are_invalid(self, message: tuple[Any, ...]) -> None:
        command = interpret(message)
        assert isinstance(command, Invalid)
        assert command.message is message
        if len(message) not in (7, 8):
            assert (
                command.reason
                == f"a tuple of {len(message)} is not a command: a tuple of 8 manages a process"
            )

    @pytest.mark.parametrize(
        ("at", "value", "reason"),
        [
            (0, "", "the name must be a str that is not empty"),
            (0, None, "the name must be a str that is not empty"),
            (0, b"name", "the name must be a str that is not empty"),
            (1, "nothing", "the function must be callable"),
            (1, None, "the function must be callable"),
            (2, None, "the arguments must be a dict with str keys"),
            (2, [("a", 1)], "the arguments must be a dict with str keys"),
            (2, {1: 1}, "the arguments must be a dict with str keys"),
            (7, 0, "the number of workers must be a whole number from 1 on"),
            (7, -1, "the number of workers must be a whole number from 1 on"),
            (7, True, "the number of workers must be a whole number from 1 on"),
            (7, 1.0, "the number of workers must be a whole number from 1 on"),
            (7, "1", "the number of workers must be a whole number from 1 on"),
            (7, None, "the number of workers must be a whole number from 1 on"),
        ],
    )
    def test_each_field_is_checked(self, at: int, value: Any, reason: str) -> None:
        message = (*EIGHT[:at], value, *EIGHT[at + 1 :])
        assert interpret(message) == Invalid(message, reason)

    @pytest.mark.parametrize(
        "message", [1, 1.5, True, b"x", ["a"], {"a": 1}, object(), nothing, list(EIGHT)], ids=stable_repr
    )
    def test_other_types_are_invalid(self, message: Any) -> None:
        kind = type(message).__name__
        expected = f"a {kind} is not a command: send a str or a tuple of 8"
        assert interpret(message) == Invalid(message, expected)

    @pytest.mark.parametrize(
        "error", [ValueError("no"), RecursionError(), MemoryError(), SystemExit(3)], ids=stable_repr
    )
    def test_an_object_whose_bool_raises_is_invalid(self, error: BaseException) -> None:
        message = Odd(error, "bool")
        command = interpret(message)
        assert isinstance(command, Invalid)
        assert command.message is message
        assert command.reason == f"it cannot be inspected ({type(error).__name__}: {error})"

    @pytest.mark.parametrize(
        "make",
        [lambda: EmptyButLong(EIGHT), lambda: ("n", nothing, OddKeys(a=1), *EIGHT[3:]), NoClass],
        ids=["length", "keys", "class"],
    )
    def test_an_object_that_raises_on_inspection_is_invalid(self, make: Callable[[], Any]) -> None:
        command = interpret(make())
        assert isinstance(command, Invalid)
        assert "RuntimeError" in command.reason


class TestDecodeCommand:
    @pytest.mark.parametrize("command", [Stop(), Scale(2), Terminate(), Invalid(1, "x"), Restart(None)])
    def test_a_command_is_returned_unchanged(self, command: Command) -> None:
        assert decode_command(command) is command

    @pytest.mark.parametrize("message", [None, "", 0, [], "__SCALE__:2", EIGHT, EIGHT[:7]])
    def test_a_pickled_object_is_interpreted(self, message: Any) -> None:
        assert decode_command(opaque(message)) == interpret(message)

    @pytest.mark.parametrize(
        "payload", [b"", b"x", b"\x80", pickle.dumps(EIGHT)[:-1], b"cnowhere\nnothing\n.", b"\xff" * 64]
    )
    def test_invalid_pickles_are_invalid(self, payload: bytes) -> None:
        command = decode_command(Opaque(payload))
        assert isinstance(command, Invalid)
        assert command.message == payload
        assert command.reason.startswith("it cannot be unpickled (")

    @pytest.mark.parametrize(
        "error",
        [
            ValueError("no"),
            ImportError("no"),
            MemoryError(),
            RecursionError("deep"),
            SystemExit("out"),
            GeneratorExit("gone"),
            LeavesAnything("all"),
        ],
        ids=stable_repr,
    )
    def test_an_object_that_raises_on_unpickling_is_invalid(self, error: BaseException) -> None:
        command = decode_command(opaque(RaisesWhenLoaded(error)))
        assert isinstance(command, Invalid)
        assert command.reason == f"it cannot be unpickled ({type(error).__name__}: {error})"

    def test_an_error_without_a_text_makes_an_invalid_message(self) -> None:
        loaded = decode_command(opaque(RaisesWhenLoaded(HasNoTextError())))
        inspected = decode_command(opaque(Odd(HasNoTextError(), "bool")))
        for command, fault in ((loaded, "unpickled"), (inspected, "inspected")):
            assert isinstance(command, Invalid)
            assert (
                command.reason == f"it cannot be {fault} (HasNoTextError: <HasNoTextError whose repr fails>)"
            )

    def test_an_unpickled_object_whose_bool_raises_is_invalid(self) -> None:
        command = decode_command(opaque(Odd(ValueError("no"), "bool")))
        assert isinstance(command, Invalid)
        assert command.reason == "it cannot be inspected (ValueError: no)"


class TestFileno:
    def test_of_a_pipe(self) -> None:
        one, other = Pipe(True)
        assert fileno(one) == one.fileno()
        number = other.fileno()
        one.close()
        other.close()
        assert fileno(one) is None
        assert number >= 0

    @pytest.mark.parametrize(
        "answer", [None, "3", True, -1, 2.0, OSError(), ValueError(), AttributeError()], ids=stable_repr
    )
    def test_of_a_connection_without_a_descriptor(self, answer: Any) -> None:
        class Connection:
            def fileno(self) -> Any:
                if isinstance(answer, Exception):
                    raise answer
                return answer

        assert fileno(Connection()) is None
        assert fileno(object()) is None

    def test_the_descriptor_decides_on_the_monitor(self) -> None:
        one, other = Pipe(True)
        monitor = open_monitor(one)
        assert isinstance(monitor, Monitor)
        monitor.close()
        one.close()
        other.close()
        assert isinstance(open_monitor(Connection()), ConnectionMonitor)


class Connection:
    """A connection without a file descriptor. An exception in place of a message is raised."""

    def __init__(self, *messages: Any, raises_in: str = "recv") -> None:
        self.messages = deque(messages)
        self.polled: list[float] = []
        self.on_poll: Callable[[], None] = lambda: None
        self._raises_in = raises_in

    def poll(self, timeout: float) -> bool:
        self.polled.append(timeout)
        self.on_poll()
        if self.messages and self._raises_in == "poll":
            self._raise()
        return bool(self.messages)

    def recv(self) -> Any:
        self._raise()
        return self.messages.popleft()

    def _raise(self) -> None:
        if isinstance(self.messages[0], Exception):
            raise self.messages.popleft()


class TestConnectionMonitor:
    def test_one_message_per_wait(self) -> None:
        connection = Connection("__SCALE__:2", "__SCALE__:3")
        monitor = ConnectionMonitor(connection)
        assert monitor.wait(None) == [Received(Scale(2))]
        assert len(connection.messages) == 1
        assert monitor.wait(None) == [Received(Scale(3))]

    def test_no_message_after_a_falsy_message(self) -> None:
        connection = Connection("", "__SCALE__:3")
        monitor = ConnectionMonitor(connection)
        assert monitor.wait(None) == [Received(Stop())]
        assert monitor.wait(0) == []
        assert len(connection.messages) == 1
        assert len(connection.polled) == 1

    def test_messages_after_an_invalid_one_are_received(self) -> None:
        monitor = ConnectionMonitor(Connection(12, "__TERMINATE__"))
        (received,) = monitor.wait(None)
        assert isinstance(received, Received) and isinstance(received.command, Invalid)
        assert monitor.wait(None) == [Received(Terminate())]

    @pytest.mark.parametrize("place", ["poll", "recv"])
    @pytest.mark.parametrize("error", [EOFError(), OSError(errno.EBADF, "bad"), BrokenPipeError()], ids=repr)
    def test_the_end_of_the_connection_is_reported_once(self, error: Exception, place: str) -> None:
        monitor = ConnectionMonitor(Connection(error, "late", raises_in=place))
        assert monitor.wait(None) == [Corrupt(f"the connection has ended ({error!r})", b"")]
        assert monitor.wait(0) == []

    @pytest.mark.parametrize("place", ["poll", "recv"])
    def test_a_message_that_cannot_be_received_is_invalid(self, place: str) -> None:
        monitor = ConnectionMonitor(Connection(KeyError("k"), "__TERMINATE__", raises_in=place))
        assert monitor.wait(None) == [Received(Invalid(None, "it cannot be received (KeyError: 'k')"))]
        assert monitor.wait(None) == [Received(Terminate())]

    def test_a_wait_ends_at_its_timeout(self) -> None:
        connection = Connection()
        monitor = ConnectionMonitor(connection)
        began = monotonic()

        def passes() -> None:
            threading.Event().wait(connection.polled[-1])

        connection.on_poll = passes
        assert monitor.wait(0.25) == []
        assert 0.25 <= monotonic() - began < 10
        assert all(timeout <= receive.TICK for timeout in connection.polled)
        assert connection.polled[0] == receive.TICK

    @pytest.mark.parametrize("ended", [False, True])
    def test_a_wake_ends_the_next_wait(self, ended: bool) -> None:
        monitor = ConnectionMonitor(Connection(*([""] if ended else [])))
        if ended:
            monitor.wait(None)
        monitor.wake()
        monitor.wake()
        assert monitor.wait(None) == []
        assert monitor.wait(0) == []

    @pytest.mark.parametrize("ended", [False, True])
    def test_a_wake_ends_the_current_wait(self, ended: bool) -> None:
        connection = Connection(*([""] if ended else []))
        monitor = ConnectionMonitor(connection)
        waiting = threading.Event()
        if ended:
            monitor.wait(None)
            waiting.set()
        connection.on_poll = waiting.set
        results: list[list[Event]] = []
        thread = threading.Thread(target=lambda: results.append(monitor.wait(None)))
        thread.start()
        assert waiting.wait(10)
        monitor.wake()
        thread.join(10)
        assert results == [[]]

    def test_the_exit_of_a_process_is_reported(self) -> None:
        process = get_context("fork").Process(target=nothing)
        process.start()
        monitor = ConnectionMonitor(Connection(""))
        assert process.pid is not None
        monitor.watch("one", process.pid, process.sentinel)
        events: list[Event] = []
        until(lambda: events.extend(monitor.wait(None)) or len(events) == 2, "both events")
        assert sorted(events, key=str) == [Exited("one", process.pid, None), Received(Stop())]
        assert monitor.wait(0) == []
        process.join()
        process.close()

    @pytest.mark.parametrize("left_alone", ["no sentinel", "unwatched", "closed"])
    def test_an_unwatched_process_is_not_reported(self, left_alone: str) -> None:
        reader, writer = os.pipe()
        os.close(writer)
        monitor = ConnectionMonitor(Connection())
        monitor.watch("one", 1, None if left_alone == "no sentinel" else reader)
        if left_alone == "unwatched":
            monitor.unwatch("one")
        if left_alone == "closed":
            monitor.close()
        assert monitor.wait(0) == []
        monitor.unwatch("one")
        os.close(reader)


def test_an_object_of_an_unknown_module_is_invalid(tmp_path: Path) -> None:
    """Return an object of a module that only its writer has."""
    payload = pickle.dumps(EIGHT).replace(b"support.targets", b"support.nowhere")
    command = decode_command(Opaque(payload))
    assert isinstance(command, Invalid)
    assert "No module named 'support.nowhere'" in command.reason
