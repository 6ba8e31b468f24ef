"""Open-loop load: tasks arrive at their times, whether or not the earlier ones have ended.

arrivals ---> times ---> offer: add each at its time ---> Offered.frame: latency of each, from its time

Users do not wait for each other. A generator that waits for an answer before it sends the next request (a closed loop)
sends less just when the system is slow, and its statistics omit the requests that would have waited longest
("coordinated omission"). So here latency counts from the time at which a task *should* have arrived, even if `add`
was late.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import msgspec
import numpy as np
import pandas as pd

from dtq.lab.fit import Floats
from dtq.queue.manager import QueueManager
from dtq.task.model import Task

COLUMNS = ("task", "status", "scheduled", "added", "started", "finished", "late", "latency")


def arrivals(rate: float, n: int, seed: int = 0, kind: Literal["poisson", "even"] = "poisson") -> Floats:
    """Return the times of n arrivals in seconds from 0, `rate` a second on average: "even", or "poisson", where
    arrivals are independent of each other. Raise ValueError if `rate` or `kind` is not allowed."""
    if rate <= 0:
        raise ValueError(f"rate is {rate!r}; expected: arrivals a second, above 0")
    if kind not in ("poisson", "even"):
        raise ValueError(f"kind is {kind!r}; allowed: 'poisson', 'even'")
    gaps = np.random.default_rng(seed).exponential(1 / rate, n) if kind == "poisson" else np.full(n, 1 / rate)
    return gaps.cumsum()


class Offered(msgspec.Struct, frozen=True):
    """The tasks of an offered load: their ids, and the time planned for each, in seconds since `began` (UTC)."""

    queue: QueueManager
    began: float
    ids: list[str]
    times: list[float]

    def frame(self, timeout: float = 60.0) -> pd.DataFrame:
        """Wait for the tasks and return a row for each. Times are seconds since `began`; `late` is from the planned
        time of a task until it was added, `latency` from the planned time until it ended. Raise TimeoutError after
        `timeout` seconds."""
        give_up_at = time.monotonic() + timeout
        tasks = [self.queue.wait_for(id, max(0.0, give_up_at - time.monotonic())) for id in self.ids]
        return pd.DataFrame(map(self._row, tasks, self.times), columns=[*COLUMNS])

    def _row(self, task: Task, at: float) -> tuple[Any, ...]:
        added, started, finished = (
            moment - self.began if moment else np.nan for moment in (task.created_at, task.started_at, task.finished_at)
        )
        return task.id, str(task.status), at, added, started, finished, added - at, finished - at


def offer(
    queue: QueueManager, type: str, times: Sequence[float] | Floats, payload: Any = None, *,
    stop: threading.Event | None = None, **options: Any,
) -> Offered:  # fmt: skip
    """Add a task at each of the times, and return after the last, or when `stop` is set.

    If adding takes longer than the gap between two times, all tasks that are due by then are added together.

    Args:
        queue: Where the tasks go.
        type: The type of all tasks.
        times: When to add each task, in seconds from now.
        payload: The payload of all tasks, or a function of the task's number.
        stop: Ends the load early when it is set.
        options: The options of `add`.

    Returns:
        The ids of the tasks and their planned times.

    Raises:
        InvalidTask, StoreError: As `add` does.
    """
    due = sorted(float(at) for at in times)
    make: Callable[[int], Any] = payload if callable(payload) else lambda number: payload
    began, ids = time.time(), list[str]()
    for first, last in _batches(due, stop or threading.Event()):
        tasks = [{"type": type, "payload": make(number), **options} for number in range(first, last)]
        ids += [handle.id for handle in queue.add_many(tasks)]
    return Offered(queue, began, ids, due[: len(ids)])


def _batches(due: list[float], stop: threading.Event) -> Iterator[tuple[int, int]]:
    """Wait for the next due times; yield the index of the first and the index after the last that is due."""
    began, first = time.monotonic(), 0
    while first < len(due) and not stop.wait(max(0.0, due[first] - (time.monotonic() - began))):
        now = time.monotonic() - began
        last = first + max(1, int(np.searchsorted(due[first:], now, side="right")))
        yield first, last
        first = last
