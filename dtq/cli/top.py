"""`dtq top`: show live what happens in the queue."""

from __future__ import annotations

import time
from itertools import count
from typing import Annotated

import typer

from dtq.cli import common
from dtq.cli.common import StoreOption, existing


def top(
    store: StoreOption = common.STORE,
    every: Annotated[float, typer.Option(min=0.1, max=3600, help="Seconds between updates.")] = 1.0,
    looks: Annotated[int, typer.Option(min=0, help="End after this many updates; 0 goes on until Ctrl-C.")] = 0,
) -> None:
    """Show live: throughput, times, failures, and how busy the workers are.

    It reads what the nodes publish, so it can run wherever the store can be
    read, any number of times at once. Ctrl-C ends it, and is not an error.
    """
    from dtq.cli import screen, views
    from dtq.monitor.readings import Readings

    readings = Readings()
    try:
        with existing(store) as manager, views.live() as show:
            readings.read(manager.stats(), time.time(), time.monotonic())
            for number in count(1):
                time.sleep(every)
                stats = manager.stats()
                point = readings.read(stats, time.time(), time.monotonic())
                show(screen.whole(stats, point, readings))
                if number == looks:
                    return
    except KeyboardInterrupt:
        return
