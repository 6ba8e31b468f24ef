"""Measure what a monitor costs: `python -m dtq.testing.bench.monitor [memory|sqlite|file]`.

Ten pairs, each on a new queue: four rounds of no-op tasks, two of them with a monitor, in order ABBA or BAAB, so
that a drift of the machine affects both alike. The monitor samples every half second, twenty times as often as by
default, and writes its log and history. Other work on the machine changes the throughput of a round far more than a
monitor does; the processor time of this process (loop, store, monitor; not the workers) varies less, so it is printed
too.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from contextlib import nullcontext

from msgspec.structs import replace

from dtq.monitor.monitor import Monitor
from dtq.queue.task_queue import TaskQueue
from dtq.task.model import Status, Task
from dtq.testing.bench.queue import NOW
from dtq.testing.bench.stores import URLS, fresh_store, nothing
from dtq.workers.backend import Finished, Report, Started
from dtq.workers.metrics.node import NodeMetrics

PAIRS = 10
TASKS = 20_000  # of each round
INTERVAL = 0.5  # seconds between samples of the monitor


def pair(kind: str, order: str) -> dict[str, list[float]]:
    """Return the seconds, and the seconds of processor time, of the rounds with a monitor ("A") and without ("B")."""
    took = {"A": [0.0, 0.0], "B": [0.0, 0.0]}
    with fresh_store(kind) as store, TaskQueue(store, {"nothing": nothing}, 2) as queue:
        queue.add("nothing").result(30)
        for which in order:
            for n, seconds in enumerate(run_round(queue, which == "A")):
                took[which][n] += seconds
    return took


def run_round(queue: TaskQueue, watched: bool) -> tuple[float, float]:
    with tempfile.TemporaryDirectory(dir=".") as logs, Monitor(queue, logs, INTERVAL) if watched else nullcontext():
        began, cpu = time.perf_counter(), time.process_time()
        queue.add_many({"type": "nothing", "payload": n} for n in range(TASKS))
        queue.join(120)
        return time.perf_counter() - began, time.process_time() - cpu


def metering_cost(tasks: int = 50_000) -> float:
    """Return the microseconds that a node spends on counting one task, with or without a monitor."""
    meter, task = NodeMetrics(), Task(type="a", id="x", created_at=NOW, run_at=NOW)
    reports: list[Report] = [Started(task, "w1", NOW), Finished(task, "w1", NOW, 0.01, None, None, "", False)]
    ended = [replace(task, status=Status.COMPLETED)]
    began = time.perf_counter()
    for _ in range(tasks // 32):
        meter.record(reports * 32)
        meter.count(ended * 32)
    return (time.perf_counter() - began) / tasks * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what a monitor costs a queue, in pairs of runs.")
    parser.add_argument("kind", nargs="?", default="memory", choices=URLS, help="of the store")
    kind = parser.parse_args().kind
    slower, more = [], []
    for number in range(PAIRS):
        took = pair(kind, "ABBA" if number % 2 == 0 else "BAAB")
        slower.append(took["A"][0] / took["B"][0])
        more.append(took["A"][1] / took["B"][1])
        watched, alone = (2 * TASKS / took[which][0] for which in "AB")
        print(f"{kind}: {watched:10,.0f} tasks/s with a monitor {alone:10,.0f} without; {more[-1]:.3f} of the CPU time")
    print(f"{kind}: median of {PAIRS} pairs: a monitor costs {percent(1 - 1 / statistics.median(slower))} of the "
          f"throughput, {percent(statistics.median(more) - 1)} of processor time")  # fmt: skip
    print(f"a node counts a task in {statistics.median(metering_cost() for _ in range(5)):.2f} us")


def percent(part: float) -> str:
    return f"{part * 100:.1f} %"


if __name__ == "__main__":
    main()
