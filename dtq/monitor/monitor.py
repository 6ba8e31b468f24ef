"""Monitor: watches a queue, whatever nodes work on it, and keeps what it saw.

    store.stats() --> Readings --> Point --+--> history, in memory and history.jsonl
    (counts, and what nodes publish)       +--> alerts --> listeners
    events of this process ----------------+--> dtq.log

It looks each `metrics_interval`, on a thread of its own, and changes nothing: any number of monitors may watch one
store. What a node did after its last heartbeat and before it left is seen of the node in this process only.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import msgspec

from dtq.errors import DTQError
from dtq.monitor import figures
from dtq.monitor.alerts import DEFAULTS, NAMES, Alert, Threshold, watches
from dtq.monitor.files import RotatingFile
from dtq.monitor.health import Health
from dtq.monitor.hook import AlertWebhook, Hook
from dtq.monitor.logs import LEVELS, Writer, structured, write_event
from dtq.monitor.readings import METRICS, Point, Readings
from dtq.queue.events import Emitter, Event, Listener
from dtq.queue.manager import QueueManager
from dtq.queue.task_queue import TaskQueue
from dtq.stores.protocol import Node, Stats
from dtq.sync.forks import Forkable

__all__ = ["METRICS", "Alert", "AlertWebhook", "Monitor", "Point", "Readings", "Threshold"]

MIB = 1 << 20
A_POINT = 800  # bytes of a line of history, or less


class Monitor(Forkable):
    """Watches the queue from `start` to `stop`, or while it is a context.

    - `log_dir`: where dtq.log and history.jsonl are kept (None: nowhere).
    - `metrics_interval`: seconds between two looks.
    - `alert_thresholds`: metric -> a number, or a Threshold; any number of METRICS may be watched.
    - `webhook`: a URL that alerts are posted to, or an AlertWebhook, which has a secret to sign with.
    - `history`: how many points are kept, in memory and on the disk; the default is a day of intervals of 10 s.
    - `log_level`: "info" writes what goes wrong, workers, alerts and the metrics; "debug" also each task's start and
      end, which costs a busy queue a part of its throughput.
    - `log_bytes`, `log_age`, `log_files`: a log file is put aside when it is so large, or so many seconds old; so many
      of them are kept.
    """

    def __init__(
        self,
        queue: QueueManager,
        log_dir: str | os.PathLike[str] | None = "./logs",
        metrics_interval: float = 10.0,
        alert_thresholds: Mapping[str, float | Threshold] = DEFAULTS,
        history: int = 8640,
        *,
        webhook: str | AlertWebhook | None = None,
        log_level: str = "info",
        log_bytes: int = 10 * MIB,
        log_age: float = 86400.0,
        log_files: int = 7,
        clock: Callable[[], float] = time.time,
        ticks: Callable[[], float] = time.monotonic,
    ) -> None:
        _check(queue, metrics_interval, history, log_level)
        self._queue = queue
        self._interval = metrics_interval
        self._clock = clock
        self._ticks = ticks
        self._readings = Readings()
        self._watches = watches(alert_thresholds)
        self._events = Emitter(NAMES)
        self._webhook = AlertWebhook(webhook) if isinstance(webhook, str) else webhook
        self._hook: Hook | None = None
        self._points: deque[Point] = deque(maxlen=history)
        self._latest: tuple[Stats, Point] | None = None
        self._health = Health()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._directory = None if log_dir is None else Path(log_dir)
        self._log_options = (log_bytes, log_files, clock, log_age)
        self._log_level = log_level
        self._writer: Writer | None = None
        self._log: Any = None
        self._kept: RotatingFile | None = None
        self.follow_forks()

    # --- life

    def start(self) -> Self:
        """Begins to watch: the first look says from where to count."""
        if self._thread is not None:
            raise DTQError("this monitor was started before: make a new one")
        if self._directory is not None:
            self._open(self._directory)
        self._hook = Hook(self._webhook) if self._webhook else None
        self._queue_events("on")
        self.sample()
        self._thread = threading.Thread(target=self._run, name="dtq-monitor", daemon=True)
        self._thread.start()
        return self

    def _open(self, directory: Path) -> None:
        self._writer = Writer(RotatingFile(directory / "dtq.log", *self._log_options))
        node = {"node": self._queue.node} if isinstance(self._queue, TaskQueue) else {}
        self._log = structured(self._writer, self._log_level, **node)
        size = self._points.maxlen or 1
        self._kept = RotatingFile(directory / "history.jsonl", size * A_POINT // 2, 2, self._clock)
        with self._health.noting("history", OSError):
            for line in self._kept.read():
                with suppress(msgspec.DecodeError, msgspec.ValidationError):  # torn, or of another version
                    self._points.append(_to_point(line))

    def _run(self) -> None:
        due = self._ticks() + self._interval
        while not self._stopping.wait(max(0.0, due - self._ticks())):
            self.sample()
            due = max(due + self._interval, self._ticks())

    def stop(self) -> None:
        """Looks once more, and writes what is left. Harmless when repeated."""
        if self._thread is not None and not self._stopping.is_set():
            self._stopping.set()
            self._thread.join()
            self.sample()
            self._queue_events("off")
            self._events.close()
            for part in (self._hook, self._writer, self._kept):
                if part:
                    part.close()

    def in_child(self) -> None:
        """After a fork: the parent goes on watching. The child's copy keeps what was seen, and counts as stopped."""
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        if self._thread is not None:
            self._stopping.set()
        if self._writer:
            self._writer.in_child()
        if self._kept:
            self._kept.close()
        self._writer = self._log = self._kept = self._hook = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    # --- one look

    def sample(self) -> Point | None:
        """Looks now, as it does each interval by itself; None where the store could not be read."""
        with self._lock:
            stats = self._stats()
            if stats is None:
                return None
            at, tick = self._clock(), self._ticks()
            if step := self._health.step(at, tick):
                self._write("warning", "clock:set", at=at, by=step)
            begins = self._latest is None
            point = self._readings.read(stats, at, tick)
            self._latest = (stats, point)
            if not begins:
                self._keep(point, tick)
            return point

    def _stats(self) -> Stats | None:
        """What the store says, and the latest of the node in this process."""
        with self._health.noting("store", Exception):  # also of one that was closed, or is of somebody else's making
            stats = self._queue.stats()
            own = self._own()
            others = [node for node in stats.nodes if own is None or node.id != own.id]
            return msgspec.structs.replace(stats, nodes=[*others, own] if own else others)
        return None

    def _own(self) -> Node | None:
        if isinstance(self._queue, TaskQueue):
            with suppress(TimeoutError):  # its loop is held up: what it said last must do
                return self._queue.snapshot()
        return None

    def _keep(self, point: Point, tick: float) -> None:
        self._points.append(point)
        self._write("info", "metrics", **msgspec.structs.asdict(point))
        if self._kept:
            with self._health.noting("history", OSError):
                self._kept.write(msgspec.json.encode(point) + b"\n")
        for watch in self._watches:
            if alert := watch.step(getattr(point, watch.metric), point.at, tick):
                self._tell(alert)

    def _tell(self, alert: Alert) -> None:
        self._write(
            LEVELS[alert.name], alert.name, at=alert.at, metric=alert.metric, value=alert.value,
            threshold=alert.threshold, message=alert.message,
        )  # fmt: skip
        self._events.post(alert)
        if self._hook:
            self._hook.tell(alert)

    # --- log

    def _queue_events(self, verb: str) -> None:
        """Nothing is heard, and costs anything, that would not be written."""
        if self._log is not None:
            severity = getattr(logging, self._log_level.upper())
            for name, level in LEVELS.items():
                if not name.startswith("alert:") and getattr(logging, level.upper()) >= severity:
                    getattr(self._queue, verb)(name, self._hear)

    def _hear(self, event: Event) -> None:
        write_event(self._log, event)

    def _write(self, level: str, event: str, **fields: Any) -> None:
        if self._log is not None:
            getattr(self._log, level)(event, **fields)

    # --- what it knows

    def on(self, name: str, listener: Listener) -> Listener:
        """Calls `listener(alert)` at each "alert:raised" or "alert:cleared", on a thread of its own."""
        return self._events.on(name, listener)

    def off(self, name: str, listener: Listener) -> None:
        self._events.off(name, listener)

    @property
    def history(self) -> list[Point]:
        """The points that are kept, oldest first, those of earlier runs among them."""
        with self._lock:
            return list(self._points)

    def get_metrics(self) -> dict[str, Any]:
        """All of it, as JSON data:

        - "now": the figures of the last interval, tasks by queue and type, and the nodes, with the utilization of each
          and of its workers;
        - "summary": since the start, in all and by type; "avg_throughput" in tasks "per_second" and "per_minute";
        - "history": the points that are kept;
        - "alerts": the metrics that are beyond their thresholds, since when;
        - "monitor": what went wrong with watching itself: what was lost, and which trouble there is with store, log,
          history and webhook.
        """
        with self._lock:
            return {
                "now": self._now(),
                "summary": self._summary(),
                "history": [msgspec.structs.asdict(point) for point in self._points],
                "alerts": {w.metric: w.raised_at for w in self._watches if w.raised_at is not None},
                "monitor": self._health_now(),
            }

    def _now(self) -> dict[str, Any]:
        if self._latest is None:
            return {}
        stats, point = self._latest
        composition = {"counts": stats.counts, "queues": stats.queues, "types": stats.types}
        return {**msgspec.structs.asdict(point), **composition, "per_node": self._readings.nodes}

    def _summary(self) -> dict[str, Any]:
        totals = self._readings.totals
        found = totals.figures()
        throughput = found.pop("throughput")
        types = sorted(totals.execution.keys() | {type for _, type, _ in totals.ended})
        return {
            "seconds": totals.seconds,
            "avg_throughput": {"per_second": throughput, "per_minute": throughput * 60},
            **found,
            "types": {type: totals.of_type(type) for type in types},
        }

    def _health_now(self) -> dict[str, Any]:
        writer, hook = self._writer, self._hook
        return {
            **self._health.report(),
            "webhook_trouble": hook.trouble if hook else None,
            "lost_alerts": hook.lost if hook else 0,
            "log_trouble": writer.trouble if writer else None,
            "lost_lines": writer.lost if writer else 0,
            "lost_events": self._queue.events.dropped,
        }

    def frame(self) -> Any:
        """The history as a pandas DataFrame: a column for each metric, a row for each interval, by time (UTC)."""
        return figures.frame(self.history)

    def plot(self) -> Any:
        """The history as a matplotlib Figure."""
        return figures.plot(self.history)


_to_point = msgspec.json.Decoder(Point).decode


def _check(queue: object, interval: object, history: object, level: object) -> None:
    if not isinstance(queue, QueueManager):
        raise DTQError(f"a monitor watches a TaskQueue or a QueueManager, not {queue!r}")
    if isinstance(interval, bool) or not isinstance(interval, (int, float)) or not 0.01 <= interval <= 86400:
        raise DTQError(f"metrics_interval is {interval!r}; allowed: 0.01 to 86,400 seconds")
    if isinstance(history, bool) or not isinstance(history, int) or not 1 <= history <= 1_000_000:
        raise DTQError(f"history is {history!r}; allowed: 1 to 1,000,000 points")
    if level not in ("debug", "info", "warning", "error"):
        raise DTQError(f"log_level is {level!r}; allowed: 'debug', 'info', 'warning', 'error'")
