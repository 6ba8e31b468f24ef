"""Events: what happens in the queue, told to whoever listens, on a thread of their own.

    loop, workers, callers --emit--> bounded queue --> one thread --> listeners, one after the other

A listener may be slow, may fail, may add tasks or wait for one: nothing but other listeners waits for it. When the
queue between is full, events are dropped and counted, for the work must not wait for those who watch it.
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
    """What happened: `name`, when (UTC seconds), to which task (as it is now) or by which worker, and details in
    `data`."""

    name: str
    at: float
    task: Task | None = None
    worker: str | None = None
    data: dict[str, Any] = {}


Listener = Callable[[Event], object]


class Emitter(Forkable):
    """on, once, off, emit. Listeners of "*" hear everything. In a child made by os.fork there are none: those of the
    parent hear what happens there."""

    def __init__(self, names: frozenset[str] = NAMES, capacity: int = CAPACITY) -> None:
        self.dropped = 0
        self._names = names
        self._capacity = capacity
        self._begin()
        self.follow_forks()

    def _begin(self) -> None:
        self._listeners: dict[str, list[tuple[Listener, bool]]] = {}
        self._events: SimpleQueue[Event | SimpleQueue[None] | None] = SimpleQueue()  # no interrupt leaves it locked
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def in_child(self) -> None:
        self._begin()

    def on(self, name: str, listener: Listener, *, once: bool = False) -> Listener:
        """Calls `listener(event)` for each event of this name. Raises DTQError where there is none of it."""
        if name != ALL and name not in self._names:
            raise DTQError(f"no event is named {name!r}; there are: {', '.join(sorted(self._names))}, and '*' for all")
        if not callable(listener):
            raise DTQError(f"the listener for {name!r} is {listener!r}; expected a function that takes an event")
        with self._lock:
            self._listeners[name] = [*self._listeners.get(name, ()), (listener, once)]
            if self._thread is None:
                thread = threading.Thread(target=self._deliver, name="dtq-events", daemon=True)
                thread.start()
                self._thread = thread  # only now: an interrupt may have come before the thread began
        return listener

    def once(self, name: str, listener: Listener) -> Listener:
        return self.on(name, listener, once=True)

    def off(self, name: str, listener: Listener) -> None:
        with self._lock:
            left = [entry for entry in self._listeners.get(name, ()) if entry[0] != listener]
            self._listeners[name] = left
            if not left:
                del self._listeners[name]

    def hears(self, name: str) -> bool:
        """Whether anybody would hear it: lets a busy caller spare itself the making of the event."""
        return name in self._listeners or ALL in self._listeners

    def hears_any(self, names: Set[str]) -> bool:
        """Whether anybody would hear one of these."""
        return ALL in self._listeners or not names.isdisjoint(self._listeners)

    def emit(self, name: str, at: float, task: Task | None = None, worker: str | None = None, **data: Any) -> None:
        """Hands the event over and returns at once."""
        if self.hears(name):
            self.post(Event(name, at, task, worker, data))

    def post(self, event: Event) -> None:
        """As `emit`, of an event that is made already."""
        if self.hears(event.name):
            if self._events.qsize() < self._capacity:
                self._events.put(event)
            else:
                self.dropped += 1

    def _deliver(self) -> None:
        while (event := self._events.get()) is not None:
            if isinstance(event, SimpleQueue):  # of somebody who waits until we are here
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
        """Returns when the listeners have heard what has happened so far, or after `timeout` seconds."""
        thread, here = self._thread, SimpleQueue[None]()
        if thread is not None and thread is not threading.current_thread():
            self._events.put(here)
            with contextlib.suppress(Empty):
                here.get(timeout=timeout)

    def close(self, timeout: float = 1.0) -> None:
        """Lets the listeners hear what has happened so far, but waits for them no longer than `timeout` seconds."""
        with self._lock:
            thread, self._thread = self._thread, None
        if thread is None:
            return
        is_listener = thread is threading.current_thread()  # who closes: it ends when it comes back from here
        self._events.put(None)
        if not is_listener:
            thread.join(timeout)
