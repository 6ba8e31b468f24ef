"""Measure tasks that come one by one: `python -m dtq.testing.bench` prints these figures too.

    alone    threads add tasks, and no node runs them: what the store allows
    stream   the same beside a node, up to the last outcome: an open loop, whose clients wait for no result
    closed   clients wait for each result before they add the next task: rate, and how long the slowest wait

A node that takes each task as it comes slows the threads that add; a node that waits for more makes clients wait.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from dtq.queue.manager import QueueManager
from dtq.queue.task_queue import TaskQueue
from dtq.testing.bench.stores import fresh_store, nothing

THREADS = (1, 8)  # that add tasks
CLIENTS = (1, 4, 16)  # of a closed loop
DURATIONS = (0.0005, 0.005, 0.05)  # seconds that a handler takes
SECONDS = 2.0  # of one closed loop
WORKERS = 2


class Latencies(NamedTuple):
    """Results a second, and how long clients waited for one (milliseconds)."""

    rate: float
    p50: float
    p99: float


def wait(payload: float, context: object) -> None:
    """Take the seconds of the payload."""
    time.sleep(payload)


def alone(kind: str, threads: int, tasks: int = 4000) -> float:
    """Return the tasks that are added in a second while no node runs."""
    with fresh_store(kind) as store, QueueManager(store) as manager:
        return tasks / _add(manager, threads, tasks)


def stream(kind: str, threads: int, tasks: int = 4000) -> float:
    """Return the tasks a second from the first add to the last outcome. Each of them must have run exactly once."""
    with fresh_store(kind) as store, TaskQueue(store, {"nothing": nothing}, WORKERS) as queue:
        queue.add("nothing").result(30)
        began = time.perf_counter()
        _add(queue, threads, tasks)
        queue.join(60)
        seconds = time.perf_counter() - began
        assert queue.stats().counts["completed"] == tasks + 1
    return tasks / seconds


def _add(manager: QueueManager, threads: int, tasks: int) -> float:
    """Add no-op tasks one by one from several threads. Return the seconds that it took."""
    began = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda _: [manager.add("nothing") for _ in range(tasks // threads)], range(threads)))
    return time.perf_counter() - began


def closed(kind: str, clients: int, duration: float, seconds: float = SECONDS) -> Latencies:
    """Let these clients wait for one task after the other, each of which takes `duration` seconds."""
    with fresh_store(kind) as store, TaskQueue(store, {"wait": wait}, WORKERS) as queue:
        for _ in range(20):  # until the queue has learned how long they take
            queue.add("wait", duration).result(30)
        end = time.perf_counter() + seconds
        with ThreadPoolExecutor(clients) as pool:
            waits = [wait for some in pool.map(lambda _: _ask(queue, duration, end), range(clients)) for wait in some]
    waits.sort()
    return Latencies(len(waits) / seconds, statistics.median(waits) * 1000, waits[int(len(waits) * 0.99)] * 1000)


def _ask(queue: TaskQueue, duration: float, end: float) -> list[float]:
    waits = []
    while (began := time.perf_counter()) < end:
        queue.add("wait", duration).result(30)
        waits.append(time.perf_counter() - began)
    return waits


def lines(kind: str, rounds: Callable[[Callable[[], float]], str]) -> Iterator[str]:
    """Yield the figures of a store as lines. `rounds` measures several times and returns the figures as text."""
    for threads in THREADS:
        yield f"added one by one from {threads} threads, tasks/s  {rounds(lambda: alone(kind, threads))}"  # noqa: B023
        yield f"the same to the last outcome, tasks/s     {rounds(lambda: stream(kind, threads))}"  # noqa: B023
    for duration in DURATIONS:
        for clients in CLIENTS:
            found = [closed(kind, clients, duration) for _ in range(3)]
            rate, p50, p99 = (statistics.median(values) for values in zip(*found, strict=True))
            waits = f"add to result, ms: p50 {p50:.2f}, p99 {p99:.2f}"
            yield f"{clients:2} waiting clients, {duration * 1000:4g} ms a task {rate:8,.0f} tasks/s, {waits}"
