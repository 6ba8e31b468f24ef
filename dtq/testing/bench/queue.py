"""Benchmarks: `python -m dtq.testing.bench` measures this machine and prints figures side by side. With the URL of a
Redis or Valkey server as its argument, it measures the store there too.

Machines are noisy and differ, so a single figure means little. Each figure is the median of some rounds, printed with
the worst and best; figures to compare come from rounds that alternate within one run.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from dtq.queue.task_queue import TaskQueue
from dtq.stores.open import open_store
from dtq.stores.protocol import Node, Store
from dtq.task.model import Task, new_id
from dtq.task.transitions import succeed
from dtq.testing.bench import one_by_one
from dtq.testing.bench.stores import URLS, fresh_store, nothing

NOW = 1_700_000_000.0
TYPE = "bench"
Beside = Callable[[TaskQueue], AbstractContextManager[Any]]


def throughput(kind: str, tasks: int = 10_000, workers: int = 2, beside: Beside = nullcontext) -> float:
    """Return no-op tasks a second, from the first add to the last outcome. Each task must have run exactly once.
    `beside(queue)` is entered meanwhile."""
    with fresh_store(kind) as store, TaskQueue(store, {"nothing": nothing}, workers) as queue:
        queue.add("nothing").result(30)
        with beside(queue):
            began = time.perf_counter()
            queue.add_many({"type": "nothing", "payload": n} for n in range(tasks))
            queue.join(60)
            seconds = time.perf_counter() - began
        assert queue.stats().counts["completed"] == tasks + 1
    return tasks / seconds


def latency(kind: str, tasks: int = 500) -> float:
    """Return the median time from add to result, in milliseconds, one task at a time."""
    with fresh_store(kind) as store, TaskQueue(store, {"nothing": nothing}, 2) as queue:
        queue.add("nothing").result(30)
        times = []
        for _ in range(tasks):
            began = time.perf_counter()
            queue.add("nothing").result(30)
            times.append(time.perf_counter() - began)
    return statistics.median(times) * 1000


def recovery(kind: str, tasks: int = 10_000) -> float:
    """Return the milliseconds from opening a store with this many waiting tasks until the first of them is claimed."""
    with tempfile.TemporaryDirectory(dir=".") as directory:
        url = URLS[kind].format(directory)
        store = open_store(url)
        store.add([_task() for _ in range(tasks)])
        store.close()
        began = time.perf_counter()
        store = open_store(url)
        assert store.claim("bench", 1, 30, NOW, {TYPE})
        took = time.perf_counter() - began
        store.close()
    return took * 1000


def claim_cost(store: Store, rounds: int = 40, n: int = 32) -> float:
    """Return the median time for each task of a claim of n, in microseconds. Claimed tasks are completed between
    rounds."""
    store.heartbeat(Node("bench"), (), 30, NOW)
    store.add([_task() for _ in range(rounds * n)])
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        tasks = store.claim("bench", n, 30, NOW, {TYPE})
        times.append(time.perf_counter() - began)
        assert len(tasks) == n
        store.update([(succeed(task, None, NOW), ()) for task in tasks])
    return statistics.median(times) / n * 1e6


def _task(**options: object) -> Task:
    return Task(type=TYPE, id=new_id(NOW), created_at=NOW, **{"run_at": NOW, **options})  # type: ignore[arg-type]


def with_future(store: Store, tasks: int = 200_000) -> None:
    """Add this many tasks of the highest priority that become due in an hour."""
    store.add([_task(priority=1000, run_at=NOW + 3600) for _ in range(tasks)])


def with_throttled(store: Store, tasks: int = 100_000) -> None:
    """Add this many tasks of the highest priority in a lane whose limit is reached."""
    store.set_lane(key="throttled", rate=0.001)
    store.add([_task(priority=1000, limit_key="throttled") for _ in range(tasks)])
    store.claim("bench", 1, 30, NOW, {TYPE})


def bare(store: Store) -> None:
    """Add no further tasks."""


def claim_costs(kind: str) -> dict[str, float]:
    costs = {}
    for prepare in (bare, with_future, with_throttled):
        with fresh_store(kind) as store:
            prepare(store)
            costs[prepare.__name__] = claim_cost(store)
    return costs


def rounds(measure: Callable[[], float], n: int = 5) -> str:
    figures = sorted(measure() for _ in range(n))
    return f"{statistics.median(figures):10,.2f}   ({figures[0]:,.2f} to {figures[-1]:,.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure this machine, and print the figures side by side.")
    parser.add_argument("url", nargs="?", help="of a Redis or Valkey server, to measure the store there too")
    if url := parser.parse_args().url:
        URLS["redis"] = f"{url}{'&' if '?' in url else '?'}namespace=bench{{}}"
    print(f"Python {sys.version.split()[0]}, in {Path.cwd()}; median (worst to best) of 5 rounds\n")
    for kind in URLS:
        print(f"{kind:8} no-op tasks/s, 2 workers, 10,000 tasks {rounds(lambda: throughput(kind))}")  # noqa: B023
        print(f"{kind:8} add to result, ms                      {rounds(lambda: latency(kind))}")  # noqa: B023
        for line in one_by_one.lines(kind, rounds):
            print(f"{kind:8} {line}")
        if kind != "memory":
            print(f"{kind:8} opened with 10,000 tasks, ms           {rounds(lambda: recovery(kind))}")  # noqa: B023
        costs = claim_costs(kind)
        for name, cost in costs.items():
            print(f"{kind:8} claim, us a task: {name:14} {cost:10.2f}   {cost / costs['bare']:.2f} times the bare one")


if __name__ == "__main__":
    main()
