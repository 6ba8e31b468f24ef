"""Recorder: listens to a queue, and gives what it heard as tables.

events, as they come --> where each task stands (waiting, running, ended) --> frame: attempts; depth: counts over time
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
    """What happens in the queue from now on. Times in its tables are seconds since it began to listen."""

    def __init__(self, queue: QueueManager) -> None:
        self.began = time.time()
        self._events: list[Event] = []
        self._queue = queue
        self._start = _start_method(queue)
        queue.on("*", self._events.append)

    def stop(self) -> None:
        self._queue.off("*", self._events.append)

    def facts(self) -> dict[str, str]:
        """For the stamp of a figure: the kind of store, and how workers start."""
        store = getattr(self._queue.store, "store", self._queue.store)  # what is behind a FaultyStore
        self._start = self._start or _start_method(self._queue)  # it may have been started since
        return {"store": type(store).__name__} | ({"start": self._start} if self._start else {})

    def frame(self) -> pd.DataFrame:
        """One row for each attempt that has ended: task, type, worker, attempt, started, finished, seconds, outcome."""
        rows = [self._row(event, task) for event, task, stood in self._moves() if _ends_attempt(event, task, stood)]
        return pd.DataFrame(rows, columns=[*COLUMNS])

    def _row(self, event: Event, task: Task) -> dict[str, Any]:
        started = (task.started_at or event.at) - self.began
        # a worker that is quick ends a call before the time that the loop has read for its turn
        finished = max(started, (task.finished_at or event.at) - self.began)
        worker = (task.worker or "").rpartition("/")[2]
        row = (task.id, task.type, worker, task.attempts, started, finished, finished - started, _outcome(event, task))
        return dict(zip(COLUMNS, row, strict=True))

    def depth(self) -> pd.DataFrame:
        """How many of the tasks heard of wait, run and have ended, after each event."""
        counts: Counter[str] = Counter()
        rows, seconds = [], 0.0
        for event, _, stood in self._moves():
            counts.update([STANDS[event.name]])
            counts.subtract([stood] if stood else [])
            seconds = max(seconds, event.at - self.began)  # workers and loop read the clock each for themselves
            rows.append((seconds, counts["waiting"], counts["running"], counts["ended"]))
        return pd.DataFrame(rows, columns=["seconds", "waiting", "running", "ended"])

    def _moves(self) -> Iterator[tuple[Event, Task, str | None]]:
        """The events that move a task, as they came, each with where the task stood before (None: not heard of)."""
        self._queue.events.catch_up()  # a result may be had before its event was heard
        stands: dict[str, str] = {}
        for event in self._events.copy():
            if event.task is None or event.name not in STANDS:
                continue
            stood = stands.get(event.task.id)
            if event.name == "task:added" and stood:
                continue  # a worker may begin with a task before its `add` has told of it
            stands[event.task.id] = STANDS[event.name]
            yield event, event.task, stood


def _start_method(queue: QueueManager) -> str:
    """How its workers came to be; nothing where it has none at the moment."""
    pids = {worker.pid for worker in queue.workers()} if isinstance(queue, TaskQueue) else set()
    return "" if not pids else "thread" if os.getpid() in pids else "fork"


def _ends_attempt(event: Event, task: Task, stood: str | None) -> bool:
    """Whether an attempt ended here: a task can be cancelled while it waits, or fail with its parent, without one."""
    if event.name == "task:cancelled":
        return stood == "running"
    return event.name in OUTCOMES and task.attempts > 0


def _outcome(event: Event, task: Task) -> str:
    died = event.name in ("task:retrying", "task:failed") and task.error is not None and task.error.type == DEATHS
    return "worker killed" if died else OUTCOMES[event.name]
