"""Context: a handler's view of the queue. Also routes `print` to the task's own log.

context.progress --> throttle -------> Progress ---+
context.log ---+                                   +--> send
print --> router --> log --> throttle --> Log -----+
                      |
                      +--> its last 16 Ki characters are sent with Done
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from threading import Lock
from time import monotonic, time
from typing import Any

from dtq.task.model import ErrorInfo
from dtq.workers import wire
from dtq.workers.run.parents import Parents

Send = Callable[[wire.ToPool], None]

MAX_LOG = 16 << 10  # characters
INTERVAL = 0.05  # seconds between two messages of progress, or two pieces of log, when there are many
BURST = 10  # how many may be sent without that pause

current: ContextVar[Context | None] = ContextVar("dtq_current_call", default=None)


class Context:
    """The second argument of a handler.

    `task_id`, `worker_id` and `attempt` (1, 2, ...) name this attempt. `timeout` is its limit in seconds. `cancelled`
    becomes true when the attempt must stop. `parents` holds the results of the tasks that this one waited for.
    """

    __slots__ = (
        "_encoded_parents", "_log", "_number", "_parents", "_pending", "_send", "_throttle", "attempt", "began",
        "cancelled", "started_at", "task_id", "timeout", "worker_id",
    )  # fmt: skip

    def __init__(self, call: wire.Call, worker_id: str, send: Send) -> None:
        self.task_id = call.id
        self.worker_id = worker_id
        self.attempt = call.attempt
        self.timeout = call.timeout
        self.cancelled = False
        self.started_at = self.began = 0.0
        self._number = call.number
        self._encoded_parents = call.parents
        self._parents: Parents | None = None
        self._send = send
        self._throttle: _Throttle | None = None  # these three are created on first use
        self._pending: tuple[float, str] | None = None
        self._log: _Log | None = None

    # --- for the handler -----------------------------------------------------------------------------------------

    @property
    def parents(self) -> Parents:
        """Return the results of the parents by name, in the order of `after`.

        The name is the one in the flow; outside of a flow it is the id. `parents.missing` maps the name of each parent
        without a result to the reason.
        """
        if self._parents is None:
            self._parents = Parents.of(self._encoded_parents)
        return self._parents

    def progress(self, percent: float, note: str = "") -> None:
        """Report the progress of the task.

        Call it as often as you like: about 20 reports a second are sent, and always the last one.

        Args:
            percent: a number from 0 to 100.
            note: text to show beside it.

        Raises:
            ValueError: `percent` is not a number from 0 to 100.
        """
        if not _is_percentage(percent):
            raise ValueError(f"progress is {percent!r}; allowed: a number from 0 to 100")
        self._pending = (percent, note)
        if self._throttle is None:
            self._throttle = _Throttle()
        if self._throttle.allows():
            self._send_progress()

    def log(self, *values: object) -> None:
        """Add a line to the task's log, as `print` does."""
        self.write(" ".join(map(str, values)) + "\n")

    def write(self, text: str) -> None:
        """Add text to the task's log, unchanged."""
        if self._log is None:
            self._log = _Log(self._number, self._send)
        self._log.write(text)

    # --- for the runner ------------------------------------------------------------------------------------------

    def start(self, loading: bool) -> None:
        """Start the clock and send Started. Called again when loading the handler has taken time."""
        self.started_at, self.began = time(), monotonic()
        self._send(wire.Started(self._number, self.started_at, loading))

    def end(
        self, result: bytes = b"null", error: ErrorInfo | None = None, final: bool = False, delay: float | None = None,
        discarded: bool = False,
    ) -> wire.Done:  # fmt: skip
        """Return the report that ends the call, after sending progress and log that were held back."""
        seconds = monotonic() - self.began
        if self._pending is not None:
            self._send_progress()
        if self._log is not None:
            self._log.flush()
        log = self.printed()
        return wire.Done(self._number, self.started_at, seconds, result, error, log, final, delay, discarded)

    def printed(self) -> str:
        """Return the log so far."""
        return self._log.tail if self._log is not None else ""

    def _send_progress(self) -> None:
        pending, self._pending = self._pending, None
        if pending is not None:  # another thread of the handler may have sent it
            self._send(wire.Progress(self._number, float(pending[0]), encodable(str(pending[1]))))


class _Throttle:
    """Allows BURST messages at once, then one each INTERVAL."""

    __slots__ = ("_next",)

    def __init__(self) -> None:
        self._next = 0.0

    def allows(self) -> bool:
        now = monotonic()
        if self._next > now:
            return False
        self._next = max(self._next, now - BURST * INTERVAL) + INTERVAL
        return True


class _Log:
    """The last part of what a call has printed. Whole lines are sent while the call runs."""

    def __init__(self, number: int, send: Send) -> None:
        self._number = number
        self._send = send
        self.tail = ""
        self._unsent = ""
        self._throttle = _Throttle()
        self._lock = Lock()  # a handler may log from several threads

    def write(self, text: str) -> None:
        text = encodable(text)
        with self._lock:
            self.tail = (self.tail + text)[-MAX_LOG:]
            self._unsent = (self._unsent + text)[-MAX_LOG:]
            if ("\n" in text or "\r" in text) and self._throttle.allows():
                self._send_unsent()

    def flush(self) -> None:
        with self._lock:
            if self._unsent:
                self._send_unsent()

    def _send_unsent(self) -> None:
        text, self._unsent = self._unsent, ""
        self._send(wire.Log(self._number, text))


def _is_percentage(value: Any) -> bool:
    try:
        return bool(0 <= value <= 100)
    except (TypeError, ValueError):  # not comparable with a number, or an array
        return False


def encodable(text: str) -> str:
    """Return the text with lone surrogates escaped: no message can carry them."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


# --- print ------------------------------------------------------------------------------------------------------------


class _Router:
    """Replaces sys.stdout or sys.stderr: output of a call goes to its log, all other output to the original stream.

    A context variable names the call, so that threads and tasks of an event loop do not mix. A thread that a handler
    starts has no such variable, unless it runs in a copy of the context, as with `asyncio.to_thread`: its output goes
    to the original stream.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        context = current.get()
        if context is None:
            return self._stream.write(text)  # type: ignore[no-any-return]
        context.write(text)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)  # the kernel calls further methods of a notebook's stream


def route_prints() -> None:
    """Send the output of calls to their logs. Cheap to repeat, in case other code has replaced the streams."""
    if type(sys.stdout) is not _Router:
        sys.stdout = _Router(sys.stdout)
    if type(sys.stderr) is not _Router:
        sys.stderr = _Router(sys.stderr)
