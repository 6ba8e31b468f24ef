"""The exposition of a store for Prometheus: one pure function from Stats to text.

    stats = store.stats()  -->  exposition(stats)  -->  GET /metrics

The store has all of it: counts of tasks, and the metrics that each node publishes with its heartbeat. So each process
that can read the store returns the same text. Scrape one of them (or all behind one name): the same figures under two
`instance` labels would be counted twice. The series of a node begin with it and disappear when it leaves, as those of a
process do; `sum by (type) (rate(...))` over them is right across nodes and restarts.

Names follow https://prometheus.io/docs/practices/naming/: base units, and `_total` for counters.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from dtq.stores.protocol import Counts, Node, Stats
from dtq.workers.metrics.histogram import Histogram

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
BOUNDS = range(-10, 13)  # powers of two, where a Histogram's counts are exact: 1 ms to 68 min


def exposition(stats: Stats) -> str:
    """Return the text that Prometheus reads. Serve it as CONTENT_TYPE."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Families(stats))
    return generate_latest(registry).decode()


class _Families(Collector):
    def __init__(self, stats: Stats) -> None:
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        yield from _tasks(self._stats)
        yield from _nodes(self._stats.nodes)
        yield from _outcomes(self._stats.nodes)
        yield _times("dtq_task_execution_seconds", "How long attempts ran.", "execution", self._stats.nodes)
        yield _times(
            "dtq_task_waiting_seconds", "From when a task was due until it started.", "waiting", self._stats.nodes
        )


def _tasks(stats: Stats) -> Iterator[Metric]:
    yield _counts("dtq_queue_tasks", "Tasks in the store, by queue and status.", "queue", stats.queues)
    yield _counts("dtq_type_tasks", "Tasks in the store, by type and status.", "type", stats.types)
    oldest = GaugeMetricFamily(
        "dtq_oldest_waiting_task_due_timestamp_seconds",
        "When the task that waits longest was due; absent if none does.",
    )
    if stats.oldest is not None:
        oldest.add_metric([], stats.oldest)
    yield oldest
    paused = GaugeMetricFamily("dtq_queue_paused", "1 for a queue that is paused; absent otherwise.", labels=["queue"])
    for limit in stats.limits:
        if limit.paused and limit.queue and limit.type is None and limit.key is None:
            paused.add_metric([limit.queue], 1)
    yield paused


def _counts(name: str, help: str, label: str, tables: dict[str, Counts]) -> Metric:
    family = GaugeMetricFamily(name, help, labels=[label, "status"])
    for key, counts in tables.items():
        for status, n in counts.items():
            family.add_metric([key, status], n)
    return family


def _nodes(nodes: Iterable[Node]) -> Iterator[Metric]:
    workers = GaugeMetricFamily("dtq_node_workers", "Workers of a node.", labels=["node", "host"])
    at_work = GaugeMetricFamily("dtq_node_busy_workers", "Workers that have a call.", labels=["node", "host"])
    busy = CounterMetricFamily(
        "dtq_node_busy_seconds", "Seconds in which workers ran a call; over all its workers.", labels=["node", "host"]
    )
    cpu = CounterMetricFamily(
        "dtq_node_cpu_seconds", "Processor time of a node and its workers.", labels=["node", "host"]
    )
    memory = GaugeMetricFamily(
        "dtq_node_resident_memory_bytes", "Memory of a node and its workers.", labels=["node", "host"]
    )
    started = GaugeMetricFamily("dtq_node_start_time_seconds", "When a node began, UTC.", labels=["node", "host"])
    for node in nodes:
        labels = [node.id, node.host]
        workers.add_metric(labels, node.workers)
        at_work.add_metric(labels, node.busy)
        started.add_metric(labels, node.started_at)
        for family, name in ((busy, "busy"), (cpu, "cpu"), (memory, "memory")):
            if name in node.metrics:
                family.add_metric(labels, node.metrics[name])
    yield from (workers, at_work, busy, cpu, memory, started)


def _outcomes(nodes: Iterable[Node]) -> Iterator[Metric]:
    """Attempts by outcome. Timeouts are a metric of their own: they are also counted as failed or retried."""
    labels = ["node", "queue", "type"]
    ended = CounterMetricFamily("dtq_attempts", "Attempts, by how they ended.", labels=[*labels, "outcome"])
    overdue = CounterMetricFamily("dtq_attempt_timeouts", "Attempts that ran longer than they may.", labels=labels)
    for node in nodes:
        for queue, types in node.metrics.get("ended", {}).items():
            for type, outcomes in types.items():
                overdue.add_metric([node.id, queue, type], outcomes.get("timed_out", 0))
                for outcome in outcomes.keys() - {"timed_out"}:
                    ended.add_metric([node.id, queue, type, outcome], outcomes[outcome])
    yield from (ended, overdue)


def _times(name: str, help: str, key: str, nodes: Iterable[Node]) -> Metric:
    family = HistogramMetricFamily(name, help, labels=["node", "type"])
    for node in nodes:
        for type, data in node.metrics.get(key, {}).items():
            histogram = Histogram.from_json(data)
            buckets = [(str(2.0**bound), float(n)) for bound, n in zip(BOUNDS, histogram.up_to(BOUNDS), strict=True)]
            family.add_metric([node.id, type], [*buckets, ("+Inf", float(histogram.count))], histogram.sum)
    return family
