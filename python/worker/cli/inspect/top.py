"""``top``: the workers of a server, live in the terminal."""

from __future__ import annotations

from collections import deque
from http.client import HTTPException
from threading import Event, Thread
from urllib.parse import urlencode

from rich.console import Console

from worker.cli.inspect import events, screen
from worker.cli.inspect.client import Client, Stream
from worker.cli.inspect.exits import CommandError, ExitCode
from worker.cli.inspect.operations import PAUSE, outcome, wait
from worker.cli.inspect.terminal import Terminal
from worker.cli.inspect.view import Action, View
from worker.cli.inspect.workers import Status, rows

__all__ = ["run"]

# The events that are kept.
KEPT = 50
# The time without a message after which the connection counts as lost, in seconds, beside the interval.
SILENCE = 10.0
# The time that the end of the command waits for the thread of the connection, in seconds.
JOIN = 1.0


def run(client: Client, interval: float) -> ExitCode:
    """Show the server until the user quits.

    Args:
        client (Client): Sends the requests.
        interval (float): The time between two updates, in seconds.

    Raises:
        CommandError: There is no answer to the first request, or it is an error. Later on, a lost connection
            is shown and made anew.
    """
    feed = Feed(client, interval)
    view = View()
    console = Console(highlight=False)
    with Terminal() as terminal:
        feed.start(terminal)
        try:
            while not view.is_over:
                status, previous = feed.statuses
                view.show(rows(status, previous))
                frame = screen.Frame(status, view, [*feed.events], feed.message, feed.error)
                width, height = terminal.size
                terminal.draw(screen.lines(console, frame, width, height))
                for key in terminal.read_keys():
                    feed.message = ""
                    if action := view.press(key):
                        feed.send(action)
        except EOFError:
            pass
        finally:
            feed.close()
    return ExitCode.DONE


class Feed:
    """The last statuses and events of a server, kept current by a thread.

    Args:
        client (Client): Sends the requests.
        interval (float): The time between two statuses, in seconds.

    Raises:
        CommandError: There is no answer to the first request, or it is an error.
    """

    def __init__(self, client: Client, interval: float) -> None:
        self._client = client
        self._interval = interval
        self._closed = Event()
        self._stream: Stream | None = None
        self._thread = Thread(target=self._follow, daemon=True)
        # The last one, and the one before it. A pair is read and replaced as a whole.
        self.statuses: tuple[Status, Status | None] = (client.get("/status"), None)
        self.events: deque[events.Event] = deque(maxlen=KEPT)
        self.message = ""
        self.error = ""

    def start(self, terminal: Terminal) -> None:
        """Start the thread; each change wakes the terminal."""
        self._terminal = terminal
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._closed.set()
        if stream := self._stream:
            stream.close()
        # A thread that is connecting ends with the process.
        self._thread.join(JOIN)

    def send(self, action: Action) -> None:
        """Send an action from a thread of its own; the message follows its operation to the end."""
        self.message = f"{action.text} ..."
        Thread(target=self._send, args=(action,), daemon=True).start()

    def _send(self, action: Action) -> None:
        try:
            answer = self._client.request("POST", f"/{action.name}", action.arguments, prefer="respond-async")
            if isinstance(operation := answer.result, dict):
                self._say(outcome(operation))
                self._say(outcome(wait(self._client, operation["id"], None, shows=False)))
            else:
                self._say(f"{action.text}: requested")
        except CommandError as error:
            self._say(f"{action.text}: {error}")

    def _say(self, message: str) -> None:
        self.message = message
        self._terminal.wake()

    def _follow(self) -> None:
        while not self._closed.is_set():
            try:
                self._read()
                self.error = "The connection was lost."
            except CommandError as error:
                self.error = str(error)
            except (OSError, HTTPException, ValueError) as error:
                self.error = f"The connection was lost: {error}"
            if not self._closed.is_set():
                self._terminal.wake()
            self._closed.wait(PAUSE)

    def _read(self) -> None:
        """Follow one connection to its end."""
        kept = self._client.get(f"/events?limit={KEPT}")
        query = urlencode({"interval": self._interval})
        stream = self._stream = self._client.stream(f"/status?{query}", self._interval + SILENCE)
        try:
            self.events = deque(kept["events"], KEPT)
            # The status of an earlier connection may be old, or of another server.
            self.error, previous = "", None
            for message in stream:
                if self._closed.is_set():
                    return
                if message.event == "status":
                    self.statuses, previous = (message.data, previous), message.data
                elif not self.events or message.data["seq"] > self.events[-1]["seq"]:
                    self.events.append(message.data)
                self._terminal.wake()
        finally:
            self._stream = None
            stream.release()
