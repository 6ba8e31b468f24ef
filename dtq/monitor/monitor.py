"""Monitor: reads the state of a queue and all of its nodes at intervals, and keeps the metrics.

    store.stats() --> Readings --> Point --+--> history, in memory and history.jsonl
    (counts, and what nodes publish)       +--> alerts --> listeners
    events of this process ----------------+--> dtq.log

A thread reads the store each `metrics_interval` and changes nothing in it, so any number of monitors may watch one
store. Work that a node does between its last heartbeat and its end is seen only for a node in this process.
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
from dtq.monitor.alerts import DEFAULTS, NAMES, Alert, Threshold, alert_states
from dtq.monitor.files import RotatingFile
from dtq.monitor.health import MonitorHealth
from dtq.monitor.logs import LEVELS, Writer, structured, write_event
from dtq.monitor.readings import METRICS, Point, Readings
from dtq.monitor.webhook import AlertSender, AlertWebhook
from dtq.queue.events import Emitter, Event, Listener
from dtq.queue.manager import QueueManager
from dtq.queue.task_queue import TaskQueue
from dtq.stores.protocol import Node, Stats
from dtq.sync.forks import Forkable

__all__ = ["METRICS", "Alert", "AlertWebhook", "Monitor", "Point", "Readings", "Threshold"]

MIB = 1 << 20
POINT_BYTES = 800  # at most, of a line of history


class Monitor(Forkable):
    """Watches a queue from `start` to `stop`, or as a context manager.

    Args:
        queue: the TaskQueue or QueueManager to watch.
        log_dir: the directory for dtq.log and history.jsonl; None: no files.
        metrics_interval: seconds between two samples.
        alert_thresholds: metric -> a number or a Threshold, for any of METRICS.
        history: how many points are kept, in memory and on the disk; the default is one day of 10 s intervals.
        webhook: a URL that alerts are posted to, or an AlertWebhook, which can sign them.
        log_level: "info" logs failures, workers, alerts and metrics; "debug" also the start and end of each task, which
            lowers the throughput of a busy queue.
        log_bytes: a log file is rotated when it has this size.
        log_age: a log file is rotated when it is this old, in seconds.
        log_files: how many rotated log files are kept.
        clock: returns the time, UTC seconds.
        ticks: returns the time of a monotonic clock, in seconds.

    Raises:
        DTQError: an option is not allowed.
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
        self._alert_states = alert_states(alert_thresholds)
        self._events = Emitter(NAMES)
        self._webhook = AlertWebhook(webhook) if isinstance(webhook, str) else webhook
        self._sender: AlertSender | None = None
        self._points: deque[Point] = deque(maxlen=history)
        self._latest: tuple[Stats, Point] | None = None
        self._health = MonitorHealth()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._directory = None if log_dir is None else Path(log_dir)
        self._log_options = (log_bytes, log_files, clock, log_age)
        self._log_level = log_level
        self._writer: Writer | None = None
        self._log: Any = None
        self._history_file: RotatingFile | None = None
        self.follow_forks()

    # --- life

    def start(self) -> Self:
        """Start to watch. Return the monitor. Raises DTQError if it was started before."""
        if self._thread is not None:
            raise DTQError("this monitor was started before: make a new one")
        if self._directory is not None:
            self._open(self._directory)
        self._sender = AlertSender(self._webhook) if self._webhook else None
        self._subscribe_log("on")
        self.sample()
        self._thread = threading.Thread(target=self._run, name="dtq-monitor", daemon=True)
        self._thread.start()
        return self

    def _open(self, directory: Path) -> None:
        self._writer = Writer(RotatingFile(directory / "dtq.log", *self._log_options))
        node = {"node": self._queue.node} if isinstance(self._queue, TaskQueue) else {}
        self._log = structured(self._writer, self._log_level, **node)
        size = self._points.maxlen or 1
        self._history_file = RotatingFile(directory / "history.jsonl", size * POINT_BYTES // 2, 2, self._clock)
        with self._health.noting("history", OSError):
            for line in self._history_file.read():
                with suppress(msgspec.DecodeError, msgspec.ValidationError):  # cut off, or of another version
                    self._points.append(_to_point(line))

    def _run(self) -> None:
        due = self._ticks() + self._interval
        while not self._stopping.wait(max(0.0, due - self._ticks())):
            self.sample()
            due = max(due + self._interval, self._ticks())

    def stop(self) -> None:
        """Take a last sample and write what is left. A repeated call does nothing."""
        if self._thread is not None and not self._stopping.is_set():
            self._stopping.set()
            self._thread.join()
            self.sample()
            self._subscribe_log("off")
            self._events.close()
            for part in (self._sender, self._writer, self._history_file):
                if part:
                    part.close()

    def in_child(self) -> None:
        """After a fork: the parent goes on watching. The child's copy keeps its history, and counts as stopped."""
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        if self._thread is not None:
            self._stopping.set()
        if self._writer:
            self._writer.in_child()
        if self._history_file:
            self._history_file.close()
        self._writer = self._log = self._history_file = self._sender = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    # --- one sample

    def sample(self) -> Point | None:
        """Take a sample now, besides those of each interval. Return its Point, or None if the store cannot be read."""
        with self._lock:
            stats = self._stats()
            if stats is None:
                return None
            at, tick = self._clock(), self._ticks()
            if step := self._health.step(at, tick):
                self._write("warning", "clock:set", at=at, by=step)
            is_first = self._latest is None
            point = self._readings.read(stats, at, tick)
            self._latest = (stats, point)
            if not is_first:
                self._record(point, tick)
            return point

    def _stats(self) -> Stats | None:
        """Return the store's Stats, with the present state of the node in this process."""
        with self._health.noting("store", Exception):  # also those of a closed store, or of the user's own store class
            stats = self._queue.stats()
            own = self._local_node()
            others = [node for node in stats.nodes if own is None or node.id != own.id]
            return msgspec.structs.replace(stats, nodes=[*others, own] if own else others)
        return None

    def _local_node(self) -> Node | None:
        if isinstance(self._queue, TaskQueue):
            with suppress(TimeoutError):  # its loop is busy: use its last heartbeat
                return self._queue.snapshot()
        return None

    def _record(self, point: Point, tick: float) -> None:
        self._points.append(point)
        self._write("info", "metrics", **msgspec.structs.asdict(point))
        if self._history_file:
            with self._health.noting("history", OSError):
                self._history_file.write(msgspec.json.encode(point) + b"\n")
        for state in self._alert_states:
            if alert := state.step(getattr(point, state.metric), point.at, tick):
                self._publish(alert)

    def _publish(self, alert: Alert) -> None:
        self._write(
            LEVELS[alert.name], alert.name, at=alert.at, metric=alert.metric, value=alert.value,
            threshold=alert.threshold, message=alert.message,
        )  # fmt: skip
        self._events.post(alert)
        if self._sender:
            self._sender.send(alert)

    # --- log

    def _subscribe_log(self, verb: str) -> None:
        """Listen ("on" or "off") to the events that the log level writes; no others cost anything."""
        if self._log is not None:
            severity = getattr(logging, self._log_level.upper())
            for name, level in LEVELS.items():
                if not name.startswith("alert:") and getattr(logging, level.upper()) >= severity:
                    getattr(self._queue, verb)(name, self._log_event)

    def _log_event(self, event: Event) -> None:
        write_event(self._log, event)

    def _write(self, level: str, event: str, **fields: Any) -> None:
        if self._log is not None:
            getattr(self._log, level)(event, **fields)

    # --- results

    def on(self, name: str, listener: Listener) -> Listener:
        """Call `listener(alert)` for each event `name`: "alert:raised" or "alert:cleared", on the event thread.

        Returns the listener. Raises DTQError if there is no event of this name.
        """
        return self._events.on(name, listener)

    def off(self, name: str, listener: Listener) -> None:
        """Stop calling the listener for events of this `name`."""
        self._events.off(name, listener)

    @property
    def history(self) -> list[Point]:
        """The points that are kept, oldest first, including those of earlier runs."""
        with self._lock:
            return list(self._points)

    def get_metrics(self) -> dict[str, Any]:
        """Return all metrics as JSON data:

        - "now": the metrics of the last interval, tasks by queue and type, and the nodes with the utilization of each
          node and worker;
        - "summary": since the start, in total and by type; "avg_throughput" in tasks "per_second" and "per_minute";
        - "history": the points that are kept;
        - "alerts": metric -> since when its alert is raised, UTC seconds;
        - "monitor": problems of the monitor itself: lost lines, events and alerts, and the present trouble with store,
          log, history and webhook.
        """
        with self._lock:
            return {
                "now": self._now(),
                "summary": self._summary(),
                "history": [msgspec.structs.asdict(point) for point in self._points],
                "alerts": {
                    state.metric: state.raised_at for state in self._alert_states if state.raised_at is not None
                },
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
        writer, sender = self._writer, self._sender
        return {
            **self._health.report(),
            "webhook_trouble": sender.trouble if sender else None,
            "lost_alerts": sender.lost if sender else 0,
            "log_trouble": writer.trouble if writer else None,
            "lost_lines": writer.lost if writer else 0,
            "lost_events": self._queue.events.dropped,
        }

    def frame(self) -> Any:
        """Return the history as a pandas DataFrame: a row for each interval (UTC), a column for each metric."""
        return figures.frame(self.history)

    def plot(self) -> Any:
        """Return the history as a matplotlib Figure."""
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
