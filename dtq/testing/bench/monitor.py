"""What it costs to be watched: `python -m dtq.testing.bench.monitor [memory|sqlite|file]`.

Ten pairs, each on a queue of its own: no-op tasks in four rounds, of which two are watched, in the order ABBA or BAAB,
so that what drifts strikes both alike. The monitor looks each half second, twenty times as often as by default, and
writes its log and history. What else the machine does moves the throughput of a round by far more than a monitor
does; the processor time that this process needed (loop, store, monitor; not the workers) moves less, and stands beside.
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
from dtq.testing.bench.queue import NOW, URLS, fresh_store, nothing
from dtq.workers.backend import Finished, Report, Started
from dtq.workers.metrics.node import NodeMetrics

PAIRS = 10
TASKS = 20_000  # of each round
INTERVAL = 0.5


def pair(kind: str, order: str) -> dict[str, list[float]]:
    """Seconds, and seconds of processor time, that the rounds took: of those watched ("A") and of the others ("B")."""
    took = {"A": [0.0, 0.0], "B": [0.0, 0.0]}
    with fresh_store(kind) as store, TaskQueue(store, {"nothing": nothing}, 2) as queue:
        queue.add("nothing").result(30)
        for which in order:
            for n, seconds in enumerate(a_round(queue, which == "A")):
                took[which][n] += seconds
    return took


def a_round(queue: TaskQueue, watched: bool) -> tuple[float, float]:
    with tempfile.TemporaryDirectory(dir=".") as logs, Monitor(queue, logs, INTERVAL) if watched else nullcontext():
        began, cpu = time.perf_counter(), time.process_time()
        queue.add_many({"type": "nothing", "payload": n} for n in range(TASKS))
        queue.join(120)
        return time.perf_counter() - began, time.process_time() - cpu


def metering(tasks: int = 50_000) -> float:
    """Microseconds that a node spends on counting one task, watched or not."""
    meter, task = NodeMetrics(), Task(type="a", id="x", created_at=NOW, run_at=NOW)
    said: list[Report] = [Started(task, "w1", NOW), Finished(task, "w1", NOW, 0.01, None, None, "", False)]
    ended = [replace(task, status=Status.COMPLETED)]
    began = time.perf_counter()
    for _ in range(tasks // 32):
        meter.record(said * 32)
        meter.count(ended * 32)
    return (time.perf_counter() - began) / tasks * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description="What it costs a queue to be watched, in pairs of runs.")
    parser.add_argument("kind", nargs="?", default="memory", choices=URLS, help="of the store")
    kind = parser.parse_args().kind
    slower, more = [], []
    for number in range(PAIRS):
        took = pair(kind, "ABBA" if number % 2 == 0 else "BAAB")
        slower.append(took["A"][0] / took["B"][0])
        more.append(took["A"][1] / took["B"][1])
        watched, alone = (2 * TASKS / took[which][0] for which in "AB")
        print(f"{kind}: {watched:10,.0f} tasks/s watched {alone:10,.0f} alone; {more[-1]:.3f} of the processor time")
    print(f"{kind}: median of {PAIRS} pairs: being watched costs {percent(1 - 1 / statistics.median(slower))} of the "
          f"throughput, {percent(statistics.median(more) - 1)} of processor time")  # fmt: skip
    print(f"a node counts a task in {statistics.median(metering() for _ in range(5)):.2f} us")


def percent(part: float) -> str:
    return f"{part * 100:.1f} %"


if __name__ == "__main__":
    main()
