"""Events: what happens in a queue, delivered to listeners on a separate thread.

    loop, workers, callers --emit--> bounded queue --> one thread --> listeners, one after the other

A listener may be slow or fail, and may add tasks and wait for them. Only other listeners are delayed. When the bounded
queue is full, events are dropped and counted, because tasks must not wait for listeners.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Set
from queue import Empty, SimpleQueue
from typing import Any

import msgspec

from dtq.errors import DTQError
from dtq.sync.forks import Forkable
from dtq.task.model import Task

log = logging.getLogger("dtq")

TASK_EVENTS = ("added", "started", "progress", "log", "completed", "failed", "retrying", "cancelled", "expired")
WORKER_EVENTS = ("started", "ready", "exited")
QUEUE_EVENTS = ("idle", "paused", "resumed", "shutdown")
NAMES = frozenset(
    f"{subject}:{what}"
    for subject, events in (("task", TASK_EVENTS), ("worker", WORKER_EVENTS), ("queue", QUEUE_EVENTS))
    for what in events
)
ALL = "*"
CAPACITY = 100_000


class Event(msgspec.Struct, frozen=True):
    """Something that happened in a queue.

    `name` is the kind of event, such as "task:completed", and `at` its time in UTC seconds. `task` is the task as it
    was then; `worker` is the worker that ran it, as "node/worker"; `data` has details by name.
    """

    name: str
    at: float
    task: Task | None = None
    worker: str | None = None
    data: dict[str, Any] = {}


Listener = Callable[[Event], object]


class Emitter(Forkable):
    """Delivers events to listeners by name; "*" stands for all names. Thread-safe.

    A child made by os.fork starts without listeners, and its events are not delivered to the parent's listeners.

    Args:
        names: The names that events may have.
        capacity: How many events may wait for delivery before further ones are dropped (see `dropped`).
    """

    def __init__(self, names: frozenset[str] = NAMES, capacity: int = CAPACITY) -> None:
        self.dropped = 0
        self._names = names
        self._capacity = capacity
        self._begin()
        self.follow_forks()

    def _begin(self) -> None:
        self._listeners: dict[str, list[tuple[Listener, bool]]] = {}
        self._events: SimpleQueue[Event | SimpleQueue[None] | None] = (
            SimpleQueue()
        )  # an interrupt cannot leave it locked
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def in_child(self) -> None:
        self._begin()

    def on(self, name: str, listener: Listener, *, once: bool = False) -> Listener:
        """Call `listener(event)` for each event with this name, or only for the first one (`once`). Return the
        listener. Raise DTQError if no event has this name, or if the listener is not a function."""
        if name != ALL and name not in self._names:
            raise DTQError(f"no event is named {name!r}; there are: {', '.join(sorted(self._names))}, and '*' for all")
        if not callable(listener):
            raise DTQError(f"the listener for {name!r} is {listener!r}; expected a function that takes an event")
        with self._lock:
            self._listeners[name] = [*self._listeners.get(name, ()), (listener, once)]
            if self._thread is None:
                thread = threading.Thread(target=self._deliver, name="dtq-events", daemon=True)
                thread.start()
                self._thread = thread  # set only once started: an interrupt may prevent the start
        return listener

    def once(self, name: str, listener: Listener) -> Listener:
        """Call `listener(event)` for the next event with this name only. Return the listener. Raise as `on` does."""
        return self.on(name, listener, once=True)

    def off(self, name: str, listener: Listener) -> None:
        """Stop calling this listener for events with this name."""
        with self._lock:
            left = [entry for entry in self._listeners.get(name, ()) if entry[0] != listener]
            self._listeners[name] = left
            if not left:
                del self._listeners[name]

    def has_listeners(self, name: str) -> bool:
        """Return whether an event with this name has a listener, so that a busy caller need not build it."""
        return name in self._listeners or ALL in self._listeners

    def has_any_listener(self, names: Set[str]) -> bool:
        """Return whether one of these names has a listener."""
        return ALL in self._listeners or not names.isdisjoint(self._listeners)

    def emit(self, name: str, at: float, task: Task | None = None, worker: str | None = None, **data: Any) -> None:
        """Queue an event for delivery, and return at once."""
        if self.has_listeners(name):
            self.post(Event(name, at, task, worker, data))

    def post(self, event: Event) -> None:
        """Queue this event for delivery, and return at once."""
        if self.has_listeners(event.name):
            if self._events.qsize() < self._capacity:
                self._events.put(event)
            else:
                self.dropped += 1

    def _deliver(self) -> None:
        while (event := self._events.get()) is not None:
            if isinstance(event, SimpleQueue):  # from `catch_up`, which waits until it is reached
                event.put(None)
                continue
            for name in (event.name, ALL):
                for listener, once in self._listeners.get(name, ()):
                    if once:
                        self.off(name, listener)
                    self._call(listener, event)

    def _call(self, listener: Listener, event: Event) -> None:
        try:
            listener(event)
        except Exception:
            log.exception("a listener for %s failed", event.name)

    def catch_up(self, timeout: float = 5.0) -> None:
        """Wait until the listeners have received all events so far, `timeout` seconds at most."""
        thread, here = self._thread, SimpleQueue[None]()
        if thread is not None and thread is not threading.current_thread():
            self._events.put(here)
            with contextlib.suppress(Empty):
                here.get(timeout=timeout)

    def close(self, timeout: float = 1.0) -> None:
        """Deliver the events so far, waiting `timeout` seconds at most, and end the thread."""
        with self._lock:
            thread, self._thread = self._thread, None
        if thread is None:
            return
        is_listener = thread is threading.current_thread()  # a listener calls this: the thread ends after it returns
        self._events.put(None)
        if not is_listener:
            thread.join(timeout)
