"""Feed: what /events tells. One look at the store each second serves all who listen.

store --stats, what has ended--> look --> stats, nodes, finished --> a queue for each listener
                                  '--> history: points of the last minutes, for who comes now

Whatever is shown comes from the store, so a restart forgets nothing but the line of the chart, which begins anew with
the endings that the store still knows.
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
from dtq.queue.manager import QueueManager
from dtq.task.model import TERMINAL, Task

log = logging.getLogger("dtq")
EVERY = 1.0  # seconds between looks
POINTS = 300  # that are remembered
SEED = 3000  # ended tasks, at most, from which the chart begins
SAMPLE = 200  # ended tasks, at most, that one look takes
OVERLAP = 0.25  # seconds: an ending is stored a moment after the time that it bears
BEHIND = 20  # events that a listener may be behind; then it is dropped, and comes again
ENDED = tuple(map(str, TERMINAL))


class Point(msgspec.Struct, frozen=True):
    """One moment of the chart. `rate` in tasks ended a second, None where it is not known (a clean-up took more away
    than has ended); `run` and `wait` are medians in seconds over what has ended, `slow` the 95th percentile of run."""

    at: float
    rate: float | None
    waiting: int | None
    running: int | None
    run: float | None
    slow: float | None
    wait: float | None


class Feed:
    """For one event loop. It looks only while somebody listens. `ask` calls a function in a thread."""

    def __init__(self, manager: QueueManager, ask: Callable[..., Coroutine[Any, Any, Any]]) -> None:
        self._manager = manager
        self._ask = ask
        self._closed = False
        self._listeners: set[asyncio.Queue[bytes | None]] = set()
        self._history: deque[Point] = deque(maxlen=POINTS)
        self._looker: asyncio.Task[None] | None = None
        self._last: StatsView | None = None
        self._seen: set[str] = set()

    async def listen(self) -> AsyncGenerator[bytes, None]:
        """The events as they come, in the form of server-sent events; ends when the server leaves."""
        inbox: asyncio.Queue[bytes | None] = asyncio.Queue(BEHIND)
        self._listeners.add(inbox)
        try:
            if self._looker is None:
                self._looker = asyncio.create_task(self._look())
                self._history = deque(await self._remembered(), maxlen=POINTS)
            yield b"retry: 1000\n\n" + event("history", list(self._history))
            while (message := await inbox.get()) is not None:
                yield message
        finally:
            self._listeners.discard(inbox)

    async def _remembered(self) -> list[Point]:
        """The points of the last minutes, as far as the store knows what has ended then."""
        now = time.time()
        try:
            ended = await self._ask(self._manager.find, finished_after=now - POINTS * EVERY, limit=SEED, brief=True)
        except StoreError:
            return []
        return seed(ended, now) if len(ended) < SEED else list(self._history)

    async def _look(self) -> None:
        try:
            while self._listeners and not self._closed:
                began = time.monotonic()
                self._tell(await self._events())
                await asyncio.sleep(max(0.0, began + EVERY - time.monotonic()))
        finally:
            self._looker = self._last = None

    async def _events(self) -> bytes:
        try:
            stats = StatsView.of(await self._ask(self._manager.stats))
            ended = await self._ended_since(stats.at)
        except StoreError as error:
            log.error("the store failed: %s", error)
            self._last = None
            return event("trouble", {"detail": "the store cannot be read"})
        self._history.append(point(stats, self._last, ended))
        self._last = stats
        summaries = [TaskSummary.of(task) for task in ended]
        told = event("stats", {**msgspec.structs.asdict(stats), "point": self._history[-1]})
        return told + event("nodes", stats.nodes) + (event("finished", summaries) if summaries else b"")

    async def _ended_since(self, now: float) -> list[Task]:
        """What has ended since the last look and was not told of yet, at most SAMPLE tasks; the latest last."""
        since = (self._last.at if self._last else now - EVERY) - OVERLAP
        found = await self._ask(self._manager.find, finished_after=since, limit=SAMPLE, brief=True)
        new = [task for task in found if task.id not in self._seen]
        self._seen = {task.id for task in found}
        return sorted(new, key=lambda task: task.finished_at or 0)

    def _tell(self, message: bytes) -> None:
        for inbox in list(self._listeners):
            if inbox.full():
                self._dismiss(inbox)
            else:
                inbox.put_nowait(message)

    def _dismiss(self, inbox: asyncio.Queue[bytes | None]) -> None:
        self._listeners.discard(inbox)
        while inbox.full():
            inbox.get_nowait()
        inbox.put_nowait(None)

    def close(self) -> None:
        self._closed = True
        for inbox in list(self._listeners):
            self._dismiss(inbox)
        if self._looker is not None:
            self._looker.cancel()


def event(name: str, data: Any) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (name.encode(), msgspec.json.encode(data))


def seed(ended: Sequence[Task], now: float) -> list[Point]:
    """A point for each second of the past. How many waited and ran then, nobody has written down."""
    seconds: dict[int, list[Task]] = {}
    for task in ended:
        seconds.setdefault(int(task.finished_at or 0), []).append(task)
    times = range(int(now) - POINTS, int(now))
    past = [(at, seconds.get(at, [])) for at in times]
    return [Point(float(at), float(len(some)), None, None, *durations(some)) for at, some in past]


def point(stats: StatsView, last: StatsView | None, ended: Sequence[Task]) -> Point:
    counts = stats.counts
    waiting = counts["pending"] + counts["retrying"] + counts["blocked"]
    return Point(stats.at, _rate(stats, last), waiting, counts["processing"], *durations(ended))


def durations(ended: Sequence[Task]) -> tuple[float | None, float | None, float | None]:
    """Of these tasks: how long the latest attempt ran (median, 95th percentile), and how long it was waited for."""
    runs = [t.finished_at - t.started_at for t in ended if t.started_at is not None and t.finished_at is not None]
    waits = [max(0.0, t.started_at - t.run_at) for t in ended if t.started_at is not None]
    return quantile(runs, 0.5), quantile(runs, 0.95), quantile(waits, 0.5)


def _rate(stats: StatsView, last: StatsView | None) -> float | None:
    if last is None or stats.at <= last.at:
        return None
    n = sum(stats.counts[status] - last.counts[status] for status in ENDED)
    return n / (stats.at - last.at) if n >= 0 else None


def quantile(values: Sequence[float], q: float) -> float | None:
    return sorted(values)[min(len(values) - 1, int(q * len(values)))] if values else None
