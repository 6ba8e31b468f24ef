"""Helpers for the tests of WorkerPool: a pool that keeps its reports, and waiting with a limit."""

import os
import time
from itertools import count

import psutil

from dtq.task.model import Status, Task
from dtq.workers import backend
from dtq.workers.process.pool import WorkerPool
from dtq.workers.wire import Source

HANDLERS = [
    "echo", "sleep", "who", "signal_self", "leave", "stubborn", "hold_interpreter", "large", "grandchild", "talk",
    "chatter", "fork_and_return", "surroundings",
]  # fmt: skip
ASYNC_HANDLERS = ["nap", "nap_through"]
_ids = count()


def task(type="echo", payload=None, **fields):
    fields = {"id": f"task-{next(_ids)}", "version": 1, "attempts": 1, "status": Status.PROCESSING, **fields}
    return Task(type=type, payload=payload, **fields)


class Lab:
    """A pool with all handlers of pool_handlers.py."""

    def __init__(self, size=1, concurrency=8, start=True, **options):
        self.pool = WorkerPool(size, **options)
        self.reports = []
        for type in HANDLERS:
            self.pool.define(type, Source("name", f"pool_handlers:{type}"))
        for type in ASYNC_HANDLERS:
            self.pool.define(type, Source("name", f"pool_handlers:{type}", concurrency=concurrency))
        if start:
            self.pool.start()
            self.ready(size)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.pool.close(kill=True)

    def until(self, condition, seconds=10):
        """Wait and poll until the condition is true, and return its value."""
        end = time.monotonic() + seconds
        while not (found := condition()):
            left = end - time.monotonic()
            assert left > 0, f"the condition was still false after {seconds} s; reports: {self.reports[-10:]}"
            deadline = self.pool.deadline()
            self.pool.wait(left if deadline is None else min(left, deadline))
            self.reports += self.pool.poll()
        return found

    def of(self, kind, **fields):
        """Return the reports of this kind with these fields."""
        return [r for r in self.reports if type(r) is kind and all(getattr(r, k) == v for k, v in fields.items())]

    def ready(self, size):
        self.until(lambda: sum(w.state == "idle" for w in self.pool.workers()) == size)

    def run(self, *tasks, seconds=10):
        """Dispatch the tasks, and return their final reports in the same order."""
        self.pool.dispatch(tasks)
        return self.ends(*tasks, seconds=seconds)

    def ends(self, *tasks, seconds=10):
        def ends():
            found = {id(r.task): r for r in self.reports if isinstance(r, backend.Finished | backend.Returned)}
            return all(id(t) in found for t in tasks) and [found[id(t)] for t in tasks]

        return self.until(ends, seconds)

    def started(self, task):
        return self.until(lambda: [r for r in self.of(backend.Started) if r.task is task])

    def pids(self):
        return [worker.pid for worker in self.pool.workers()]

    def zygote(self):
        (process,) = psutil.Process().children()
        return process.pid


def is_gone(pid):
    """Return whether the process has ended. A zombie has: its parent may reap it later."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def wait_until(condition, seconds=5):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition was still false at the end of the wait"
        time.sleep(0.002)


def descriptors():
    return sorted(os.listdir("/proc/self/fd"))
