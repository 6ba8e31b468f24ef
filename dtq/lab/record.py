"""Recorder: collects the events of a queue and turns them into tables.

events, in order --> the state of each task (waiting, running, ended) --> frame: attempts; depth: counts over time
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pandas as pd

from dtq.queue.events import Event
from dtq.queue.manager import QueueManager
from dtq.queue.task_queue import TaskQueue
from dtq.task.model import Task

OUTCOMES = {
    "task:completed": "completed",
    "task:failed": "failed",
    "task:retrying": "retried",
    "task:cancelled": "cancelled",
}
STANDS = {
    "task:added": "waiting",
    "task:started": "running",
    "task:retrying": "waiting",
    "task:completed": "ended",
    "task:failed": "ended",
    "task:cancelled": "ended",
}
DEATHS = "WorkerDied"
COLUMNS = ("task", "type", "worker", "attempt", "started", "finished", "seconds", "outcome")


class Recorder:
    """Records the events of a queue from its creation on. Times in its tables are seconds since then."""

    def __init__(self, queue: QueueManager) -> None:
        self.began = time.time()
        self._events: list[Event] = []
        self._queue = queue
        self._start = _start_method(queue)
        queue.on("*", self._events.append)

    def stop(self) -> None:
        """Stop recording. The tables stay."""
        self._queue.off("*", self._events.append)

    def facts(self) -> dict[str, str]:
        """Return the kind of store and how workers start, for the stamp of a figure."""
        store = getattr(self._queue.store, "store", self._queue.store)  # inside a FaultyStore
        self._start = self._start or _start_method(self._queue)  # the queue may have started since
        return {"store": type(store).__name__} | ({"start": self._start} if self._start else {})

    def frame(self) -> pd.DataFrame:
        """Return a row for each attempt that has ended: task, type, worker, attempt, started, finished, seconds,
        outcome."""
        rows = [self._row(event, task) for event, task, stood in self._moves() if _ends_attempt(event, task, stood)]
        return pd.DataFrame(rows, columns=[*COLUMNS])

    def _row(self, event: Event, task: Task) -> dict[str, Any]:
        started = (task.started_at or event.at) - self.began
        # a fast worker may end a call before the time that the loop read at the start of its turn
        finished = max(started, (task.finished_at or event.at) - self.began)
        worker = (task.worker or "").rpartition("/")[2]
        row = (task.id, task.type, worker, task.attempts, started, finished, finished - started, _outcome(event, task))
        return dict(zip(COLUMNS, row, strict=True))

    def depth(self) -> pd.DataFrame:
        """Return how many of the recorded tasks wait, run and have ended, after each event."""
        counts: Counter[str] = Counter()
        rows, seconds = [], 0.0
        for event, _, stood in self._moves():
            counts.update([STANDS[event.name]])
            counts.subtract([stood] if stood else [])
            seconds = max(seconds, event.at - self.began)  # workers and loop read the clock separately
            rows.append((seconds, counts["waiting"], counts["running"], counts["ended"]))
        return pd.DataFrame(rows, columns=["seconds", "waiting", "running", "ended"])

    def _moves(self) -> Iterator[tuple[Event, Task, str | None]]:
        """Yield the events that change a task's state, in order, each with the state before it (None: a new task)."""
        self._queue.events.catch_up()  # a result may be available before its event was delivered
        stands: dict[str, str] = {}
        for event in self._events.copy():
            if event.task is None or event.name not in STANDS:
                continue
            stood = stands.get(event.task.id)
            if event.name == "task:added" and stood:
                continue  # a worker may start a task before `add` has emitted its event
            stands[event.task.id] = STANDS[event.name]
            yield event, event.task, stood


def _start_method(queue: QueueManager) -> str:
    """Return how the workers were started; "" if there are none at the moment."""
    pids = {worker.pid for worker in queue.workers()} if isinstance(queue, TaskQueue) else set()
    return "" if not pids else "thread" if os.getpid() in pids else "fork"


def _ends_attempt(event: Event, task: Task, stood: str | None) -> bool:
    """Return whether an attempt ended here. A task that is cancelled while it waits, or fails with its parent, ends
    without an attempt."""
    if event.name == "task:cancelled":
        return stood == "running"
    return event.name in OUTCOMES and task.attempts > 0


def _outcome(event: Event, task: Task) -> str:
    died = event.name in ("task:retrying", "task:failed") and task.error is not None and task.error.type == DEATHS
    return "worker killed" if died else OUTCOMES[event.name]
