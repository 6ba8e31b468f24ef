"""The display of `dtq top`. It is imported only to show something, as rich takes time to import."""

from __future__ import annotations

from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from dtq.cli.common import counted, readable
from dtq.cli.views import span, when
from dtq.monitor.readings import Point, Readings
from dtq.stores.protocol import Stats

MAX_ROWS = 15  # of a table
BAR_WIDTH = 10  # characters


def whole(stats: Stats, point: Point, readings: Readings) -> Group:
    """Render the figures of the last interval, the types since the start, and the nodes as they are now."""
    return Group(_head(point), _types(stats, readings), _nodes(readings.nodes))


def _head(point: Point) -> Text:
    waited = f", the oldest for {span(point.oldest_wait)}" if point.oldest_wait else ""
    lines = [
        f"{when(point.at)}   {point.throughput:,.1f} tasks/s over {span(point.seconds)}",
        f"{point.queue_size:,} waiting{waited}; {point.processing:,} running; "
        f"failed {point.failure_rate:.1%}, retried {point.retry_rate:.1%}, timed out {point.timeout_rate:.1%}",
        f"{counted(point.workers, 'worker')} on {counted(point.nodes, 'node')}, {point.worker_utilization:.0%} of "
        f"their time at work; {point.cpu:.2f} cores, {point.memory / 1e6:,.0f} MB",
    ]
    return Text("\n".join(lines))


def _types(stats: Stats, readings: Readings) -> Table:
    table = Table("type", title="types, since the start of dtq top", title_justify="left")
    for name in ("waiting", "running", "done/s", "failed", "ran p50", "p99", "waited p50", "p99"):
        table.add_column(name, justify="right")
    seen = readings.totals.execution.keys() | stats.types.keys()
    figures = {type: readings.totals.of_type(type) for type in seen}
    for type in sorted(seen, key=lambda type: (-figures[type]["throughput"], type))[:MAX_ROWS]:
        found, counts = figures[type], stats.types.get(type, {})
        waiting = sum(counts.get(status, 0) for status in ("blocked", "pending", "retrying"))
        table.add_row(
            readable(type), f"{waiting:,}", f"{counts.get('processing', 0):,}", f"{found['throughput']:,.1f}",
            f"{found['failed']:,}", *(_span(found[f"{p}_{what}_time"]) for what in ("execution", "waiting")
                                      for p in ("p50", "p99")),
        )  # fmt: skip
    return table


def _nodes(nodes: list[dict[str, Any]]) -> Table:
    table = Table("node", "workers", "at work", "each worker", "cores", "memory", title="nodes", title_justify="left")
    for node in nodes[:MAX_ROWS]:
        parts = [f"{part:.0%}" for part in node["utilization_by_worker"].values()]
        table.add_row(
            readable(node["id"]), str(node["workers"]), _bar(node["worker_utilization"]), " ".join(parts[:MAX_ROWS]),
            f"{node['cpu']:.2f}", f"{node['memory'] / 1e6:,.0f} MB",
        )  # fmt: skip
    return table


def _bar(part: float) -> str:
    full = round(part * BAR_WIDTH)
    return f"{'█' * full}{'░' * (BAR_WIDTH - full)} {part:4.0%}"


def _span(seconds: float | None) -> str:
    return "" if seconds is None else span(seconds)
