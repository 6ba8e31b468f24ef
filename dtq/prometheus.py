"""The state of a queue in Prometheus' text format, from what the store knows: right on every process that is asked."""

from __future__ import annotations

import time
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from dtq.stores import Stats


class _State(Collector):
    def __init__(self, stats: Stats) -> None:
        self._stats = stats

    def collect(self) -> Iterator[GaugeMetricFamily]:
        stats = self._stats
        tasks = GaugeMetricFamily("dtq_tasks", "Tasks in the store, by queue and status.", labels=["queue", "status"])
        for queue, counts in stats.queues.items():
            for status, n in counts.items():
                tasks.add_metric([queue, status], n)
        yield tasks
        age = max(0.0, time.time() - stats.oldest) if stats.oldest is not None else 0.0
        yield GaugeMetricFamily("dtq_oldest_task_age_seconds", "How long the oldest due task has waited.", value=age)
        workers = GaugeMetricFamily("dtq_workers", "Worker processes, by node and state.", labels=["node", "state"])
        for node in stats.nodes:
            workers.add_metric([node.id, "busy"], node.busy)
            workers.add_metric([node.id, "idle"], node.workers - node.busy)
        yield workers


def exposition(stats: Stats) -> str:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_State(stats))
    return generate_latest(registry).decode()
