"""Meter: what a node counts of its own work. It goes out with the heartbeat, as `metrics` of the Node.

    loop --hear, count--> Meter --reading--> Node.metrics --> store --> any monitor, any scrape

Everything only grows (memory aside) from the start of the node on, so that a heartbeat that was missed costs nothing,
and whoever looks twice knows what came between. A node that starts again has a new id and begins at zero; of one that
has left there is nothing in the store any more: who wants to keep its figures has looked before.

    {"uptime": 12.0, "busy": 7.5, "workers": {"w-1": 4.0, "w-2": 3.5}, "memory": 41000000, "cpu": 3.1,
     "ended": {"default": {"mail": {"completed": 9, "retried": 1, "timed_out": 1}}},
     "execution": {"mail": sketch}, "waiting": {"mail": sketch}}

While something keeps the loop from its work, `"trouble"` says what (see dtq.queue.guards).

The size is bounded: after TYPES types, or LANES pairs of queue and type, all others are counted together as OTHER.
While nothing happens the reading stays the same object, and an idle node has nothing to write.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from time import monotonic
from typing import Any

from dtq.task.model import Status, Task
from dtq.workers.backend import Finished, Report, Started, WorkerChanged, WorkerInfo
from dtq.workers.metrics.histogram import Histogram
from dtq.workers.metrics.usage import Usage

TYPES = 20
LANES = 100
OTHER = "(other)"  # no type can have this name
OUTCOMES = ("completed", "failed", "retried", "cancelled", "timed_out")
_OUTCOME = {
    Status.COMPLETED: "completed", Status.FAILED: "failed", Status.RETRYING: "retried", Status.CANCELLED: "cancelled",
}  # fmt: skip


class NodeMetrics:
    """For the loop's thread; `ticks` are seconds that no change of the wall clock can move."""

    def __init__(self, ticks: Callable[[], float] = monotonic) -> None:
        self._ticks = ticks
        self._born = self._tick = ticks()
        self._ended: dict[tuple[str, str], dict[str, int]] = {}
        self._times: dict[str, tuple[Histogram, Histogram]] = {}  # type -> execution, waiting
        self._spells: dict[str, BusyTime] = {}  # of each worker
        self._busy_of_the_gone = 0.0
        self._usage = Usage()
        self._reading: dict[str, Any] = {}
        self._changed = True

    # --- what happens

    def hear(self, reports: Sequence[Report]) -> None:
        """What a pool has told in this turn."""
        self._tick = self._ticks()
        for report in reports:
            if isinstance(report, Finished):
                self._finish(report)
            elif isinstance(report, Started):
                self._spell(report.worker).start(report, self._tick)
            elif isinstance(report, WorkerChanged):
                self._change(report)
        self._changed |= bool(reports)

    def _finish(self, report: Finished) -> None:
        task = report.task
        execution, waiting = self._times.get(task.type) or self._new_times(task.type)
        execution.add(report.seconds)
        waiting.add(report.started_at - task.run_at)
        if spell := self._spells.get(report.worker):
            spell.finish(report, self._tick)

    def _spell(self, worker: str) -> BusyTime:
        spell = self._spells.get(worker)
        if spell is None:
            spell = self._spells[worker] = BusyTime()
        return spell

    def _new_times(self, type: str) -> tuple[Histogram, Histogram]:
        return self._times.setdefault(type if len(self._times) < TYPES else OTHER, (Histogram(), Histogram()))

    def _change(self, report: WorkerChanged) -> None:
        if report.state == "exited" and (spell := self._spells.pop(report.worker, None)):
            self._busy_of_the_gone += spell.busy(self._tick)

    def count(self, ended: Iterable[Task]) -> None:
        """These attempts, or tasks, have ended, and the store has accepted it."""
        for task in ended:
            if (outcome := _OUTCOME.get(task.status)) is not None:
                lane = self._ended.get((task.queue, task.type)) or self._new_lane(task.queue, task.type)
                lane[outcome] += 1
                if outcome != "completed" and task.error is not None and task.error.type == "Timeout":
                    lane["timed_out"] += 1
            self._changed = True

    def _new_lane(self, queue: str, type: str) -> dict[str, int]:
        lane = (queue, type) if len(self._ended) < LANES else (OTHER, OTHER)
        return self._ended.setdefault(lane, dict.fromkeys(OUTCOMES, 0))

    # --- what is published

    def reading(self, workers: Sequence[WorkerInfo]) -> dict[str, Any]:
        """All of it as JSON data; the same object as the last time where nothing has happened since."""
        running = any(spell.running for spell in self._spells.values())
        if self._changed or running:
            self._changed = False
            self._tick = self._ticks()
            self._reading = self._read(workers)
        return self._reading

    def _read(self, workers: Sequence[WorkerInfo]) -> dict[str, Any]:
        busy = {name: round(spell.busy(self._tick), 6) for name, spell in self._spells.items()}
        use = self._usage.read({worker.pid for worker in workers})
        ended: dict[str, dict[str, dict[str, int]]] = {}
        for (queue, type), counts in self._ended.items():
            ended.setdefault(queue, {})[type] = {outcome: n for outcome, n in counts.items() if n}
        return {
            "uptime": round(self._tick - self._born, 6),
            "busy": self._busy_of_the_gone + sum(busy.values()),
            "workers": {worker.id: busy.get(worker.id, 0.0) for worker in workers},
            "memory": use.memory,
            "cpu": use.cpu,
            "ended": ended,
            "execution": {type: execution.to_json() for type, (execution, _) in self._times.items()},
            "waiting": {type: waiting.to_json() for type, (_, waiting) in self._times.items()},
        }


class BusyTime:
    """How long one worker has been at work: the time in which at least one call ran, however many did at once."""

    __slots__ = ("_ended", "_least", "_since", "_since_tick", "running")

    def __init__(self) -> None:
        self.running: set[str] = set()  # ids of tasks
        self._ended = 0.0  # seconds, of the spells that are over
        self._least = 0.0  # what was told: it must never shrink
        self._since = 0.0  # the beginning of this spell, by the worker's clock
        self._since_tick = 0.0

    def start(self, report: Started, tick: float) -> None:
        if not self.running:
            self._since, self._since_tick = report.at, tick
        self.running.add(report.task.id)

    def finish(self, report: Finished, tick: float) -> None:
        """The seconds of a call come from a clock that nobody sets. Only where calls overlap does the worker's wall
        clock tell how, within what can have passed."""
        if report.task.id in self.running:
            self.running.remove(report.task.id)
            if not self.running:
                spell = report.started_at + report.seconds - self._since
                self._ended += max(report.seconds, min(spell, tick - self._since_tick + report.seconds))

    def busy(self, tick: float) -> float:
        now = self._ended + (tick - self._since_tick if self.running else 0.0)
        self._least = max(self._least, now)
        return self._least
