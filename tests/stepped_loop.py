"""A loop that a test steps by hand: a store in memory, a scripted pool, a clock that the test sets."""

from __future__ import annotations

import servers

from dtq.queue.config import QueueConfig
from dtq.queue.events import Emitter
from dtq.queue.handle import Waiters
from dtq.queue.loop import Loop
from dtq.stores.open import open_store
from dtq.task.model import Task
from dtq.workers import backend
from dtq.workers.groups import Pool, WorkerGroup

NOW = 1000.0
STORES = ["memory", "sqlite", "file", "valkey"]


def opened(kind, tmp_path):
    """Return a new store of this kind."""
    urls = {"memory": "memory:", "sqlite": str(tmp_path / "queue.db"), "file": f"file:{tmp_path / 'queue'}"}
    return open_store(servers.url_of(kind) if kind == "valkey" else urls[kind])


class ScriptedPool:
    """Accept up to `room` tasks. `poll` returns the reports that the test puts into `reports`."""

    def __init__(self, room: int = 2) -> None:
        self.room = room
        self.tasks: list[Task] = []
        self.reports: list[backend.Report] = []
        self.stopped: list[Task] = []

    def capacity(self):
        if self.room > len(self.tasks):
            yield self.room - len(self.tasks), frozenset({"a"})

    def dispatch(self, tasks, left=None):
        self.tasks += tasks

    def poll(self):
        reports, self.reports = self.reports, []
        return reports

    def deadline(self):
        return None

    def workers(self):
        return []

    def stop(self, task):
        self.stopped.append(task)

    def recall(self):
        self.reports += map(backend.Returned, self.tasks)
        self.tasks = []

    def finish(self, task, error=None, result=None):
        self.tasks = [other for other in self.tasks if other.id != task.id]
        self.reports.append(backend.Finished(task, "w1", task.started_at, 0.5, result, error, "", False))


def make(store, pool, monotonic=lambda: 0.0, **options):
    """Return a loop with one pool. By default a turn takes no time."""
    fixed = {"types": lambda: {"a"}, "monotonic": monotonic}
    settings = {"chance": lambda: 0.5}
    settings |= {name: options.pop(name) for name in QueueConfig.__struct_fields__ if name in options}
    groups = [WorkerGroup(Pool(2), pool)]
    return Loop(store, groups, Emitter(), Waiters(), QueueConfig(**settings), **fixed, **options)


def add(store, *ids, **options):
    given = {"created_at": NOW, "run_at": NOW, **options}
    store.add([Task(type="a", id=id, **given) for id in ids])


def status(store, *ids):
    return [str(task.status) for task in store.get(ids)]
