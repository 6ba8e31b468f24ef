"""Recorder: listens to a queue, and gives what it heard as tables."""

from __future__ import annotations

import time
from typing import Any

import pandas as pd

from dtq.events import Event
from dtq.manager import QueueManager

OUTCOMES = {
    "task:completed": "completed",
    "task:failed": "failed",
    "task:retrying": "retried",
    "task:cancelled": "cancelled",
}
DEATHS = "WorkerDied"


class Recorder:
    """What happens in the queue from now on. Times in its tables are seconds since it began to listen."""

    def __init__(self, queue: QueueManager) -> None:
        self.began = time.time()
        self._events: list[Event] = []
        self._queue = queue
        queue.on("*", self._events.append)

    def stop(self) -> None:
        self._queue.off("*", self._events.append)

    def frame(self) -> pd.DataFrame:
        """One row for each attempt that has ended: task, type, worker, attempt, started, finished, seconds, outcome."""
        rows = [self._row(event) for event in list(self._events) if event.name in OUTCOMES and event.task]
        return pd.DataFrame(rows, columns=[*_COLUMNS])

    def _row(self, event: Event) -> dict[str, Any]:
        task = event.task
        assert task is not None
        started = (task.started_at or event.at) - self.began
        finished = (task.finished_at or event.at) - self.began
        died = event.name != "task:completed" and task.error is not None and task.error.type == DEATHS
        worker = (task.worker or "").rpartition("/")[2]
        outcome = "worker killed" if died else OUTCOMES[event.name]
        return dict(
            zip(
                _COLUMNS,
                (task.id, task.type, worker, task.attempts, started, finished, finished - started, outcome),
                strict=True,
            )
        )

    def depth(self) -> pd.DataFrame:
        """How many tasks wait, run and have ended, at each event."""
        rows, waiting, running, ended = [], 0, 0, 0
        for event in list(self._events):
            added, begun = event.name == "task:added", event.name == "task:started"
            back, over = event.name == "task:retrying", event.name in ("task:completed", "task:failed")
            waiting += added - begun + back
            running += begun - back - over
            ended += over
            if added or begun or back or over:
                rows.append((event.at - self.began, waiting, running, ended))
        return pd.DataFrame(rows, columns=["seconds", "waiting", "running", "ended"])


_COLUMNS = ("task", "type", "worker", "attempt", "started", "finished", "seconds", "outcome")
