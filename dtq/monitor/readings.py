"""Readings: compare two readings of the store and its nodes, and compute the metrics of the time between them.

    Stats now  --+
                 +--> difference --> Point (one row of numbers) --> history, alerts, log
    Stats then --+         +-------> Totals (since the start)   --> summary

The numbers that nodes publish only grow, so nothing is lost between two readings. Durations are differences of `tick`,
a monotonic clock; `at` is the wall clock, for people. No difference is negative.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import msgspec

from dtq.stores.protocol import Node, Stats
from dtq.workers.metrics.histogram import Histogram

OutcomeKey = tuple[str, str, str]  # queue, type, outcome
QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}


class Point(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """The metrics of one interval, or at its end. Times are in seconds, None if nothing ran; rates are from 0 to 1.

    - `at`: the end of the interval, UTC seconds; `seconds`: its length.
    - `queue_size`: tasks that wait (blocked, pending, retrying); `oldest_wait`: how long the oldest has been due.
    - `completed`, `failed`, `retried`, `cancelled`, `timed_out`: attempts that ended so in the interval.
    - `throughput`: tasks per second that completed or failed; `failure_rate`: the failed part of them.
    - `retry_rate`, `timeout_rate`: parts of all attempts.
    - `cpu` in cores and `memory` in bytes: of all nodes and their workers.
    """

    at: float
    seconds: float
    queue_size: int = 0
    blocked: int = 0
    pending: int = 0
    retrying: int = 0
    processing: int = 0
    oldest_wait: float = 0.0
    completed: int = 0
    failed: int = 0
    retried: int = 0
    cancelled: int = 0
    timed_out: int = 0
    throughput: float = 0.0
    failure_rate: float = 0.0
    retry_rate: float = 0.0
    timeout_rate: float = 0.0
    avg_execution_time: float | None = None
    p50_execution_time: float | None = None
    p90_execution_time: float | None = None
    p99_execution_time: float | None = None
    avg_waiting_time: float | None = None
    p50_waiting_time: float | None = None
    p90_waiting_time: float | None = None
    p99_waiting_time: float | None = None
    nodes: int = 0
    workers: int = 0
    busy_workers: int = 0
    worker_utilization: float = 0.0
    memory: int = 0
    cpu: float = 0.0


METRICS = frozenset(Point.__struct_fields__) - {"at", "seconds"}


class Totals:
    """The sums of one or more intervals."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.ended: Counter[OutcomeKey] = Counter()
        self.execution: dict[str, Histogram] = {}  # by type
        self.waiting: dict[str, Histogram] = {}
        self.busy = 0.0  # worker-seconds, as is `capacity`
        self.capacity = 0.0
        self.cpu = 0.0

    def merge(self, other: Totals) -> None:
        self.seconds += other.seconds
        self.ended.update(other.ended)
        for mine, theirs in ((self.execution, other.execution), (self.waiting, other.waiting)):
            for type, histogram in theirs.items():
                mine.setdefault(type, Histogram()).merge(histogram)
        self.busy += other.busy
        self.capacity += other.capacity
        self.cpu += other.cpu

    def outcomes(self) -> Counter[str]:
        found: Counter[str] = Counter()
        for (_, _, outcome), n in self.ended.items():
            found[outcome] += n
        return found

    def figures(self) -> dict[str, Any]:
        """Return counts, rates, times and utilization, by their names in Point."""
        n = self.outcomes()
        ended = n["completed"] + n["failed"]
        attempts = ended + n["retried"]
        return {
            **{name: n[name] for name in ("completed", "failed", "retried", "cancelled", "timed_out")},
            "throughput": _part(ended, self.seconds),
            "failure_rate": _part(n["failed"], ended),
            "retry_rate": _part(n["retried"], attempts),
            "timeout_rate": _part(n["timed_out"], attempts),
            "worker_utilization": min(1.0, _part(self.busy, self.capacity)),
            "cpu": _part(self.cpu, self.seconds),
            **_times("execution_time", self.execution),
            **_times("waiting_time", self.waiting),
        }

    def of_type(self, type: str) -> dict[str, Any]:
        """Return the figures of one type, without those of workers, which run all types."""
        part = Totals()
        part.seconds = self.seconds
        part.ended = Counter({key: n for key, n in self.ended.items() if key[1] == type})
        for name in ("execution", "waiting"):
            if (histogram := getattr(self, name).get(type)) is not None:
                getattr(part, name)[type] = histogram
        return {name: value for name, value in part.figures().items() if name not in ("worker_utilization", "cpu")}


def _part(some: float, whole: float) -> float:
    return some / whole if whole > 0 else 0.0


def _times(name: str, histograms: dict[str, Histogram]) -> dict[str, float | None]:
    whole = Histogram()
    for histogram in histograms.values():
        whole.merge(histogram)
    return {f"avg_{name}": whole.mean, **{f"{p}_{name}": whole.quantile(q) for p, q in QUANTILES.items()}}


class NodeSample:
    """What a node had published at some tick, with its own uptime."""

    def __init__(self, node: Node, tick: float) -> None:
        metrics = node.metrics
        self.tick = tick
        self.uptime = float(metrics.get("uptime", 0.0))
        self.busy = float(metrics.get("busy", 0.0))
        self.cpu = float(metrics.get("cpu", 0.0))
        self.workers: dict[str, float] = metrics.get("workers", {})
        self.ended = Counter(dict(_outcomes(metrics.get("ended", {}))))
        self.execution = {type: Histogram.from_json(data) for type, data in metrics.get("execution", {}).items()}
        self.waiting = {type: Histogram.from_json(data) for type, data in metrics.get("waiting", {}).items()}


def _outcomes(ended: dict[str, dict[str, dict[str, int]]]) -> Iterator[tuple[OutcomeKey, int]]:
    for queue, types in ended.items():
        for type, outcomes in types.items():
            for outcome, n in outcomes.items():
                yield (queue, type, outcome), n


class Readings:
    """Turns successive Stats into Points. The first reading is only the baseline of the next."""

    def __init__(self) -> None:
        self.totals = Totals()
        self.nodes: list[dict[str, Any]] = []  # of the latest reading, with the utilization of each node and worker
        self._seen: dict[str, NodeSample] = {}
        self._tick: float | None = None

    def read(self, stats: Stats, at: float, tick: float) -> Point:
        """Return the metrics since the last call. `at` is the wall clock, `tick` the monotonic clock."""
        seconds = 0.0 if self._tick is None else max(0.0, tick - self._tick)
        change = Totals()
        change.seconds = seconds
        seen, self.nodes = {}, []
        for node in stats.nodes:
            seen[node.id] = now = NodeSample(node, tick)
            then = self._seen.get(node.id)
            if then is None:
                then = now if self._tick is None else _new_node(now, seconds)
            self.nodes.append(_compare(node, now, then, seconds, change))
        self._seen, self._tick = seen, tick
        self.totals.merge(change)
        return _point(stats, change, at)


def _new_node(now: NodeSample, seconds: float) -> NodeSample:
    """Return the baseline of a node that was not there at the last reading: all of its work is new."""
    then = NodeSample(Node(""), now.tick)
    then.uptime = max(0.0, now.uptime - seconds)
    return then


def _compare(node: Node, now: NodeSample, then: NodeSample, seconds: float, change: Totals) -> dict[str, Any]:
    """Add the node's work to `change`. Return the figures of the node."""
    elapsed = _elapsed(node, now, then, seconds)
    busy = max(0.0, now.busy - then.busy)
    change.busy += min(busy, elapsed * node.workers)
    change.capacity += elapsed * node.workers
    change.cpu += max(0.0, now.cpu - then.cpu)
    change.ended.update(now.ended - then.ended)
    for field in ("execution", "waiting"):
        for type, histogram in getattr(now, field).items():
            earlier = getattr(then, field).get(type)
            getattr(change, field).setdefault(type, Histogram()).merge(
                histogram.since(earlier) if earlier else histogram
            )
    return {
        "id": node.id, "host": node.host, "pid": node.pid, "started_at": node.started_at, "seen_at": node.seen_at,
        "types": list(node.types), "workers": node.workers, "busy_workers": node.busy,
        "worker_utilization": min(1.0, _part(busy, elapsed * node.workers)),
        "utilization_by_worker": {
            name: min(1.0, max(0.0, _part(total - then.workers.get(name, 0.0), elapsed)))
            for name, total in now.workers.items()
        },
        "memory": node.metrics.get("memory", 0), "cpu": _part(max(0.0, now.cpu - then.cpu), elapsed),
        "trouble": node.metrics.get("trouble", ""),
    }  # fmt: skip


def _elapsed(node: Node, now: NodeSample, then: NodeSample, seconds: float) -> float:
    """Return the seconds between the node's two publications. A busy node publishes its uptime each second; an idle one
    publishes nothing, so its time is the time between the readings."""
    elapsed = now.uptime - then.uptime
    if node.busy and elapsed > 0:
        return elapsed
    now.uptime = max(now.uptime, then.uptime + seconds)
    return seconds


def _point(stats: Stats, change: Totals, at: float) -> Point:
    waiting = {status: stats.counts[status] for status in ("blocked", "pending", "retrying")}
    return Point(
        at=at, seconds=change.seconds, queue_size=sum(waiting.values()), processing=stats.running, **waiting,
        oldest_wait=0.0 if stats.oldest is None else max(0.0, at - stats.oldest), nodes=len(stats.nodes),
        workers=stats.workers.total, busy_workers=stats.workers.active,
        memory=sum(node.metrics.get("memory", 0) for node in stats.nodes), **change.figures(),
    )  # fmt: skip
