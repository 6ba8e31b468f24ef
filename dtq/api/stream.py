"""EventStream: the server-sent events of /events. One poll of the store each second serves all readers.

store --stats, ended tasks--> poll --> stats, nodes, finished --> a queue for each reader
                                '--> history: points of the last minutes, for new readers

All of it comes from the store. A restarted server loses only the history, and makes it again from the ended tasks that
the store still has.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from typing import Any

import msgspec

from dtq.api.responses import StatsView, TaskSummary
from dtq.errors import StoreError
from dtq.monitor.moment import Moment, quantile
from dtq.queue.manager import QueueManager
from dtq.task.model import Task

log = logging.getLogger("dtq")
POLL_INTERVAL = 1.0  # seconds
HISTORY_POINTS = 300
MAX_SEED_TASKS = 3000  # ended tasks from which the history begins
MAX_FINISHED = 200  # ended tasks in one poll
OVERLAP = 0.25  # seconds: a task is stored a moment after its `finished_at`, so each poll reads some of them again
MAX_LAG = 20  # messages that a reader may be behind; then it is disconnected, and connects again


class ChartPoint(msgspec.Struct, frozen=True):
    """One moment of the chart on the page.

    `rate` is ended tasks per second, None if it is unknown (a clean-up removed more tasks than ended). `run` and `wait`
    are medians in seconds over the ended tasks; `slow` is the 95th percentile of run.
    """

    at: float
    rate: float | None
    waiting: int | None
    running: int | None
    run: float | None
    slow: float | None
    wait: float | None


class EventStream:
    """Polls the store while there are readers. It belongs to one event loop; `call` runs a function in a thread."""

    def __init__(self, manager: QueueManager, call: Callable[..., Coroutine[Any, Any, Any]]) -> None:
        self._manager = manager
        self._call = call
        self._closed = False
        self._readers: set[asyncio.Queue[bytes | None]] = set()
        self._history: deque[ChartPoint] = deque(maxlen=HISTORY_POINTS)
        self._poller: asyncio.Task[None] | None = None
        self._last: StatsView | None = None
        self._seen: set[str] = set()

    async def read(self) -> AsyncGenerator[bytes, None]:
        """Yield server-sent events as they come. End when the server stops, or the reader falls behind."""
        inbox: asyncio.Queue[bytes | None] = asyncio.Queue(MAX_LAG)
        self._readers.add(inbox)
        try:
            if self._poller is None:
                self._poller = asyncio.create_task(self._poll())
                self._history = deque(await self._stored_history(), maxlen=HISTORY_POINTS)
            yield b"retry: 1000\n\n" + event("history", list(self._history))
            while (message := await inbox.get()) is not None:
                yield message
        finally:
            self._readers.discard(inbox)

    async def _stored_history(self) -> list[ChartPoint]:
        """Return the points of the last minutes, from the tasks that ended then and are still stored."""
        now = time.time()
        since = now - HISTORY_POINTS * POLL_INTERVAL
        try:
            ended = await self._call(self._manager.find, finished_after=since, limit=MAX_SEED_TASKS, brief=True)
        except StoreError:
            return []
        return past_points(ended, now) if len(ended) < MAX_SEED_TASKS else list(self._history)

    async def _poll(self) -> None:
        try:
            while self._readers and not self._closed:
                began = time.monotonic()
                self._send(await self._message())
                await asyncio.sleep(max(0.0, began + POLL_INTERVAL - time.monotonic()))
        finally:
            self._poller = self._last = None

    async def _message(self) -> bytes:
        """Return the events of this poll."""
        try:
            stats = StatsView.of(await self._call(self._manager.stats))
            ended = await self._newly_ended(stats.at)
        except StoreError as error:
            log.error("the store failed: %s", error)
            self._last = None
            return event("trouble", {"detail": "the store cannot be read"})
        self._history.append(point(stats, self._last, ended))
        self._last = stats
        summaries = [TaskSummary.of(task) for task in ended]
        message = event("stats", {**msgspec.structs.asdict(stats), "point": self._history[-1]})
        return message + event("nodes", stats.nodes) + (event("finished", summaries) if summaries else b"")

    async def _newly_ended(self, now: float) -> list[Task]:
        """Return the tasks that ended since the last poll and were not sent yet, at most MAX_FINISHED, latest last."""
        since = (self._last.at if self._last else now - POLL_INTERVAL) - OVERLAP
        found = await self._call(self._manager.find, finished_after=since, limit=MAX_FINISHED, brief=True)
        new = [task for task in found if task.id not in self._seen]
        self._seen = {task.id for task in found}
        return sorted(new, key=lambda task: task.finished_at or 0)

    def _send(self, message: bytes) -> None:
        for inbox in list(self._readers):
            if inbox.full():
                self._disconnect(inbox)
            else:
                inbox.put_nowait(message)

    def _disconnect(self, inbox: asyncio.Queue[bytes | None]) -> None:
        self._readers.discard(inbox)
        while inbox.full():
            inbox.get_nowait()
        inbox.put_nowait(None)

    def close(self) -> None:
        self._closed = True
        for inbox in list(self._readers):
            self._disconnect(inbox)
        if self._poller is not None:
            self._poller.cancel()


def event(name: str, data: Any) -> bytes:
    """Return a server-sent event with this data as JSON."""
    return b"event: %s\ndata: %s\n\n" % (name.encode(), msgspec.json.encode(data))


def past_points(ended: Sequence[Task], now: float) -> list[ChartPoint]:
    """Return a point for each second of the past. The store does not know how many tasks waited and ran then."""
    seconds: dict[int, list[Task]] = {}
    for task in ended:
        seconds.setdefault(int(task.finished_at or 0), []).append(task)
    times = range(int(now) - HISTORY_POINTS, int(now))
    past = [(at, seconds.get(at, [])) for at in times]
    return [ChartPoint(float(at), float(len(some)), None, None, *durations(some)) for at, some in past]


def point(stats: StatsView, last: StatsView | None, ended: Sequence[Task]) -> ChartPoint:
    """Return the point of this poll."""
    now, before = Moment(stats.at, stats.counts), Moment(last.at, last.counts) if last else None
    return ChartPoint(now.at, now.rate_since(before), now.waiting, now.running, *durations(ended))


def durations(ended: Sequence[Task]) -> tuple[float | None, float | None, float | None]:
    """Return how long the last attempts of these tasks ran (median, 95th percentile), and how long the tasks waited
    until then (median), in seconds."""
    runs = [t.finished_at - t.started_at for t in ended if t.started_at is not None and t.finished_at is not None]
    waits = [max(0.0, t.started_at - t.run_at) for t in ended if t.started_at is not None]
    return quantile(runs, 0.5), quantile(runs, 0.95), quantile(waits, 0.5)
