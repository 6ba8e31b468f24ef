"""What a handler sees of the queue: its Context, and a `print` that ends up in the task's own log.

context.progress --> throttle -------> Progress ---+
context.log ---+                                   +--> send
print --> router --> log --> throttle --> Log -----+
                      |
                      +--> the end of it, 16 Ki characters, travels with Done
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
INTERVAL = 0.05  # seconds between two reports of progress, or two pieces of log, when there are many
BURST = 10  # so many may come faster than that

current: ContextVar[Context | None] = ContextVar("dtq_current_call", default=None)


class Context:
    """What a handler gets as its second argument. `cancelled` is true once the attempt was asked to stop; `parents` are
    the results of the tasks that this one waited for."""

    __slots__ = (
        "_handed", "_log", "_number", "_parents", "_pending", "_send", "_throttle", "attempt", "began", "cancelled",
        "started_at", "task_id", "timeout", "worker_id",
    )  # fmt: skip

    def __init__(self, call: wire.Call, worker_id: str, send: Send) -> None:
        self.task_id = call.id
        self.worker_id = worker_id
        self.attempt = call.attempt
        self.timeout = call.timeout
        self.cancelled = False
        self.started_at = self.began = 0.0
        self._number = call.number
        self._handed = call.parents
        self._parents: Parents | None = None
        self._send = send
        self._throttle: _Throttle | None = None  # these three are made when they are first needed
        self._pending: tuple[float, str] | None = None
        self._log: _Log | None = None

    # --- for the handler -----------------------------------------------------------------------------------------

    @property
    def parents(self) -> Parents:
        """name -> result, in the order of `after`. The name is that in the flow; outside of a flow it is the id.
        `parents.missing` says of which there is none, and why."""
        if self._parents is None:
            self._parents = Parents.of(self._handed)
        return self._parents

    def progress(self, percent: float, note: str = "") -> None:
        """Says how far the task is, 0 to 100. Call it as often as you like: about 20 a second are passed on, and the
        last one in any case. Raises ValueError for anything but a number from 0 to 100."""
        if not _is_percentage(percent):
            raise ValueError(f"progress is {percent!r}; allowed: a number from 0 to 100")
        self._pending = (percent, note)
        if self._throttle is None:
            self._throttle = _Throttle()
        if self._throttle.allows():
            self._send_progress()

    def log(self, *values: object) -> None:
        """Adds a line to the task's log, as `print` does too."""
        self.write(" ".join(map(str, values)) + "\n")

    def write(self, text: str) -> None:
        """Adds text to the task's log as it is."""
        if self._log is None:
            self._log = _Log(self._number, self._send)
        self._log.write(text)

    # --- for the runner ------------------------------------------------------------------------------------------

    def start(self, loading: bool) -> None:
        """Says that the clock runs from here; once more, where loading the handler took time."""
        self.started_at, self.began = time(), monotonic()
        self._send(wire.Started(self._number, self.started_at, loading))

    def end(
        self, result: bytes = b"null", error: ErrorInfo | None = None, final: bool = False, delay: float | None = None,
        discarded: bool = False,
    ) -> wire.Done:  # fmt: skip
        """The report that ends the call; what was held back is sent before it."""
        seconds = monotonic() - self.began
        if self._pending is not None:
            self._send_progress()
        if self._log is not None:
            self._log.flush()
        log = self.printed()
        return wire.Done(self._number, self.started_at, seconds, result, error, log, final, delay, discarded)

    def printed(self) -> str:
        """The log as it is now."""
        return self._log.tail if self._log is not None else ""

    def _send_progress(self) -> None:
        pending, self._pending = self._pending, None
        if pending is not None:  # another thread of the handler may have been faster
            self._send(wire.Progress(self._number, float(pending[0]), encodable(str(pending[1]))))


class _Throttle:
    """Lets BURST through at once, then one each INTERVAL."""

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
    """The end of what a call has printed; whole lines are sent on their way while it runs."""

    def __init__(self, number: int, send: Send) -> None:
        self._number = number
        self._send = send
        self.tail = ""
        self._unsent = ""
        self._throttle = _Throttle()
        self._lock = Lock()  # a handler may log from threads of its own

    def write(self, text: str) -> None:
        text = encodable(text)
        with self._lock:
            self.tail = (self.tail + text)[-MAX_LOG:]
            self._unsent = (self._unsent + text)[-MAX_LOG:]
            if ("\n" in text or "\r" in text) and self._throttle.allows():
                self._pass_on()

    def flush(self) -> None:
        with self._lock:
            if self._unsent:
                self._pass_on()

    def _pass_on(self) -> None:
        text, self._unsent = self._unsent, ""
        self._send(wire.Log(self._number, text))


def _is_percentage(value: Any) -> bool:
    try:
        return bool(0 <= value <= 100)
    except (TypeError, ValueError):  # not comparable with a number, or an array
        return False


def encodable(text: str) -> str:
    """The text with its half surrogates written out: no message could carry them."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


# --- print ------------------------------------------------------------------------------------------------------------


class _Router:
    """Stands in for sys.stdout or sys.stderr: what a call prints goes to its log, all else where it always went.

    The call is found through a context variable, so threads and tasks of an event loop do not mix. A thread that a
    handler starts by itself has no such variable (unless it runs in a copy of the context, as `asyncio.to_thread`
    does): what it prints is not in the log.
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
        return getattr(self._stream, name)  # a notebook's stream has methods of its own, which the kernel calls


def route_prints() -> None:
    """From here on, what a call prints goes to its log. Cheap to repeat: someone may replace the streams."""
    if type(sys.stdout) is not _Router:
        sys.stdout = _Router(sys.stdout)
    if type(sys.stderr) is not _Router:
        sys.stderr = _Router(sys.stderr)
