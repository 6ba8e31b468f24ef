"""Helpers for the tests of the monitor: a manual clock, and nodes whose work the test scripts."""

from __future__ import annotations

from msgspec.structs import replace

from dtq.stores.protocol import Node
from dtq.task.model import Task
from dtq.workers.backend import Finished, Started, WorkerInfo
from dtq.workers.metrics.node import NodeMetrics

NOW = 1_700_000_000.0


class Clock:
    """Both clocks of a monitor, moved by hand."""

    def __init__(self):
        self.wall, self.tick = NOW, 0.0

    def forward(self, seconds):
        self.wall += seconds
        self.tick += seconds


class ScriptedNode:
    """A node that counts with real NodeMetrics and publishes with real heartbeats."""

    def __init__(self, store, clock, id="n1", workers=1):
        self.store, self.clock, self.id, self.workers = store, clock, id, workers
        self.meter = NodeMetrics(lambda: clock.tick)
        self.beat()

    def run(self, seconds=0.0, n=1, status="completed", waited=0.0):
        """Let `n` attempts end, one after the other on one worker."""
        now = self.clock.wall
        task = Task(type="a", id="x", created_at=now - waited, run_at=now - waited)
        for _ in range(n):
            self.meter.record([Started(task, "w1", now), Finished(task, "w1", now, seconds, None, None, "", False)])
        self.meter.count([replace(task, status=status)] * n)
        self.beat()

    def begin(self):
        """Start an attempt that goes on running."""
        task = Task(type="a", id="y", created_at=self.clock.wall, run_at=self.clock.wall)
        self.meter.record([Started(task, "w1", self.clock.wall)])
        self.beat(busy=1)

    def beat(self, lease=30, busy=0):
        workers = [WorkerInfo(f"w{n + 1}", 0, "idle", 0, 0, 0.0, None) for n in range(self.workers)]
        node = Node(self.id, "h", 1, NOW, self.clock.wall, self.workers, busy, ("a",), self.meter.reading(workers))
        self.store.heartbeat(node, (), lease, self.clock.wall)
