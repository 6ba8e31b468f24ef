"""The history as a table and as a figure. pandas and matplotlib are imported only when they are needed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from dtq.monitor.readings import Point


def frame(points: Sequence[Point]) -> Any:
    """Return a pandas DataFrame: a row for each interval, by the time of its end (UTC), a column for each metric."""
    import pandas as pd

    rows = [msgspec.structs.asdict(point) for point in points]
    table = pd.DataFrame(rows, columns=list(Point.__struct_fields__))
    times = [name for name in table if name.endswith("_time")]
    table[times] = table[times].astype(float)  # a None becomes a NaN
    table.index = pd.to_datetime(table.pop("at"), unit="s", utc=True)
    table.index.name = "time"
    return table


def plot(points: Sequence[Point]) -> Any:
    """Return a matplotlib Figure with four panels: tasks, throughput, durations, and ratios from 0 to 1."""
    from matplotlib import pyplot

    table = frame(points)
    figure, panels = pyplot.subplots(4, 1, sharex=True, figsize=(10, 9), layout="constrained")
    pyplot.close(figure)  # the notebook shows the returned figure; pyplot need not keep it
    for axes, (label, columns) in zip(panels, _PANELS.items(), strict=True):
        for name in columns:
            axes.plot(table.index, table[name], label=name.replace("_", " "))
        axes.set_ylabel(label)
        axes.set_ylim(bottom=0)
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize="small", frameon=False)  # beside the axes
    panels[-1].set_xlabel("time (UTC)")
    figure.autofmt_xdate()
    return figure


_PANELS = {
    "tasks": ("queue_size", "processing"),
    "tasks/s": ("throughput",),
    "seconds": ("p50_execution_time", "p99_execution_time", "p50_waiting_time", "p99_waiting_time"),
    "part of 1": ("worker_utilization", "failure_rate", "retry_rate"),
}
