"""NodeMetrics: what a node measures about its work. The heartbeat publishes it as `Node.metrics`.

    loop --record, count--> NodeMetrics --reading--> Node.metrics --> store --> any monitor, any scrape

All values except memory only grow while the node runs. So a missed heartbeat costs nothing, and the difference of two
readings is what happened in between. A restarted node has a new id and begins at zero. The store keeps no metrics of a
node that has left.

    {"uptime": 12.0, "busy": 7.5, "workers": {"w-1": 4.0, "w-2": 3.5}, "memory": 41000000, "cpu": 3.1,
     "ended": {"default": {"mail": {"completed": 9, "retried": 1, "timed_out": 1}}},
     "execution": {"mail": histogram}, "waiting": {"mail": histogram}}

While something keeps the loop from its work, `"trouble"` names it (see dtq.queue.guards).

The size is bounded: beyond MAX_TYPES types, or MAX_LANES pairs of queue and type, all others count as OTHER. While
nothing happens the reading stays the same object, so an idle node writes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from time import monotonic
from typing import Any

from dtq.task.model import Status, Task
from dtq.workers.backend import Finished, Report, Started, WorkerChanged, WorkerInfo
from dtq.workers.metrics.histogram import Histogram
from dtq.workers.metrics.usage import Usage

MAX_TYPES = 20
MAX_LANES = 100
OTHER = "(other)"  # no type can have this name
OUTCOMES = ("completed", "failed", "retried", "cancelled", "timed_out")
_OUTCOME = {
    Status.COMPLETED: "completed", Status.FAILED: "failed", Status.RETRYING: "retried", Status.CANCELLED: "cancelled",
}  # fmt: skip


class NodeMetrics:
    """For the loop's thread only. `monotonic` returns seconds of a clock that is never set."""

    def __init__(self, monotonic: Callable[[], float] = monotonic) -> None:
        self._monotonic = monotonic
        self._born = self._now = monotonic()
        self._ended: dict[tuple[str, str], dict[str, int]] = {}
        self._times: dict[str, tuple[Histogram, Histogram]] = {}  # type -> execution, waiting
        self._busy: dict[str, BusyTime] = {}  # by worker
        self._busy_of_gone = 0.0
        self._usage = Usage()
        self._reading: dict[str, Any] = {}
        self._changed = True

    # --- input

    def record(self, reports: Sequence[Report]) -> None:
        """Record the reports of a pool."""
        self._now = self._monotonic()
        for report in reports:
            if isinstance(report, Finished):
                self._finish(report)
            elif isinstance(report, Started):
                self._busy_time(report.worker).start(report, self._now)
            elif isinstance(report, WorkerChanged):
                self._change(report)
        self._changed |= bool(reports)

    def _finish(self, report: Finished) -> None:
        task = report.task
        execution, waiting = self._times.get(task.type) or self._new_times(task.type)
        execution.add(report.seconds)
        waiting.add(report.started_at - task.run_at)
        if busy := self._busy.get(report.worker):
            busy.finish(report, self._now)

    def _busy_time(self, worker: str) -> BusyTime:
        busy = self._busy.get(worker)
        if busy is None:
            busy = self._busy[worker] = BusyTime()
        return busy

    def _new_times(self, type: str) -> tuple[Histogram, Histogram]:
        return self._times.setdefault(type if len(self._times) < MAX_TYPES else OTHER, (Histogram(), Histogram()))

    def _change(self, report: WorkerChanged) -> None:
        if report.state == "exited" and (busy := self._busy.pop(report.worker, None)):
            self._busy_of_gone += busy.seconds(self._now)

    def count(self, ended: Iterable[Task]) -> None:
        """Count attempts, or tasks, that have ended, once the store has accepted their outcome."""
        for task in ended:
            if (outcome := _OUTCOME.get(task.status)) is not None:
                lane = self._ended.get((task.queue, task.type)) or self._new_lane(task.queue, task.type)
                lane[outcome] += 1
                if outcome != "completed" and task.error is not None and task.error.type == "Timeout":
                    lane["timed_out"] += 1
            self._changed = True

    def _new_lane(self, queue: str, type: str) -> dict[str, int]:
        lane = (queue, type) if len(self._ended) < MAX_LANES else (OTHER, OTHER)
        return self._ended.setdefault(lane, dict.fromkeys(OUTCOMES, 0))

    # --- output

    def reading(self, workers: Sequence[WorkerInfo]) -> dict[str, Any]:
        """Return all values as JSON data: the same object as before if nothing has happened since."""
        running = any(busy.running for busy in self._busy.values())
        if self._changed or running:
            self._changed = False
            self._now = self._monotonic()
            self._reading = self._read(workers)
        return self._reading

    def _read(self, workers: Sequence[WorkerInfo]) -> dict[str, Any]:
        busy = {name: round(time.seconds(self._now), 6) for name, time in self._busy.items()}
        use = self._usage.read({worker.pid for worker in workers})
        ended: dict[str, dict[str, dict[str, int]]] = {}
        for (queue, type), counts in self._ended.items():
            ended.setdefault(queue, {})[type] = {outcome: n for outcome, n in counts.items() if n}
        return {
            "uptime": round(self._now - self._born, 6),
            "busy": self._busy_of_gone + sum(busy.values()),
            "workers": {worker.id: busy.get(worker.id, 0.0) for worker in workers},
            "memory": use.memory,
            "cpu": use.cpu,
            "ended": ended,
            "execution": {type: execution.to_json() for type, (execution, _) in self._times.items()},
            "waiting": {type: waiting.to_json() for type, (_, waiting) in self._times.items()},
        }


class BusyTime:
    """The time during which a worker ran at least one call."""

    __slots__ = ("_ended", "_last", "_since", "_since_monotonic", "running")

    def __init__(self) -> None:
        self.running: set[str] = set()  # ids of tasks
        self._ended = 0.0  # seconds of the busy periods that are over
        self._last = 0.0  # the last value returned: it must never shrink
        self._since = 0.0  # start of this busy period, by the worker's clock
        self._since_monotonic = 0.0

    def start(self, report: Started, now: float) -> None:
        if not self.running:
            self._since, self._since_monotonic = report.at, now
        self.running.add(report.task.id)

    def finish(self, report: Finished, now: float) -> None:
        """End a call. Its seconds come from a clock that is never set. If calls overlapped, the worker's wall clock
        determines the length of the busy period, limited by the time that has passed here."""
        if report.task.id in self.running:
            self.running.remove(report.task.id)
            if not self.running:
                period = report.started_at + report.seconds - self._since
                self._ended += max(report.seconds, min(period, now - self._since_monotonic + report.seconds))

    def seconds(self, now: float) -> float:
        """Return the busy seconds so far."""
        total = self._ended + (now - self._since_monotonic if self.running else 0.0)
        self._last = max(self._last, total)
        return self._last
