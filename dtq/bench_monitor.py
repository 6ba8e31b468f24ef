"""What it costs to be watched: `python -m dtq.bench_monitor [memory|sqlite|file]`.

Ten pairs of runs of no-op tasks, one of each pair with a monitor and the other without, in turn, the order changing
from pair to pair. The monitor looks each half second, twenty times as often as by default.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from contextlib import AbstractContextManager
from typing import Any

from msgspec.structs import replace

from dtq.bench import NOW, throughput
from dtq.meter import Meter
from dtq.monitor import Monitor
from dtq.queue import TaskQueue
from dtq.reports import Finished, Report, Started
from dtq.task import Status, Task

PAIRS = 10
TASKS = 40_000


def pair(kind: str, monitor_first: bool) -> tuple[float, float]:
    """Tasks a second with a monitor, and without."""
    with tempfile.TemporaryDirectory(dir=".") as logs:

        def watched(queue: TaskQueue) -> AbstractContextManager[Any]:
            return Monitor(queue, logs, 0.5)

        if monitor_first:
            return throughput(kind, TASKS, beside=watched), throughput(kind, TASKS)
        alone = throughput(kind, TASKS)
        return throughput(kind, TASKS, beside=watched), alone


def metering(tasks: int = 50_000) -> float:
    """Microseconds that a node spends on counting one task, watched or not."""
    meter, task = Meter(), Task(type="a", id="x", created_at=NOW, run_at=NOW)
    said: list[Report] = [Started(task, "w1", NOW), Finished(task, "w1", NOW, 0.01, None, None, "", False)]
    ended = [replace(task, status=Status.COMPLETED)]
    began = time.perf_counter()
    for _ in range(tasks // 32):
        meter.hear(said * 32)
        meter.count(ended * 32)
    return (time.perf_counter() - began) / tasks * 1e6


def main() -> None:
    kind = sys.argv[1] if len(sys.argv) > 1 else "memory"
    pairs = [pair(kind, number % 2 == 0) for number in range(PAIRS)]
    for watched, alone in pairs:
        print(f"{kind}: {watched:10,.0f} tasks/s watched {alone:10,.0f} alone   {watched / alone:.3f}")
    ratio = statistics.median(watched / alone for watched, alone in pairs)
    print(f"{kind}: median of {PAIRS} pairs: being watched costs {(1 - ratio) * 100:.1f} % of the throughput")
    print(f"a node counts a task in {statistics.median(metering() for _ in range(5)):.2f} us")


if __name__ == "__main__":
    main()
