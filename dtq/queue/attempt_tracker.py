"""AttemptTracker: the attempts that a node has claimed, and the outcome of each. It reads no store.

    pools --reports--> _collect --> succeed, fail, release ... (dtq.task.transitions) --+
    claim, reap -----> _outcome --> doomed, interrupted, a tick ------------------------+--> _outcomes --> Loop commits
    a step that raises -----------> _fail: this attempt, with the traceback ------------+

Claimer (claims.py) and Loop (loop.py) add the store.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Container, Iterable, Mapping, Sequence

from msgspec.structs import replace

from dtq.errors import StoreError
from dtq.policy import cron
from dtq.queue.events import Emitter
from dtq.queue.guards import GIVE_UP_AFTER, BestEffort, ErrorBackoff, failed
from dtq.queue.scheduler import Scheduler
from dtq.stores.protocol import Outcome
from dtq.task.model import EXPIRED, Status, Task
from dtq.task.transitions import cancel, end_doomed, fail, interrupt, release, succeed
from dtq.workers import backend
from dtq.workers.backend import Finished, Logged, Progressed, Report, Returned, Started, WorkerChanged
from dtq.workers.groups import WorkerGroup
from dtq.workers.metrics.node import NodeMetrics

log = logging.getLogger("dtq")

_EVENT_OF_STATUS: Mapping[Status, str] = {
    Status.COMPLETED: "task:completed",
    Status.FAILED: "task:failed",
    Status.RETRYING: "task:retrying",
    Status.CANCELLED: "task:cancelled",
}
ENDING_EVENTS = frozenset({*_EVENT_OF_STATUS.values(), "task:expired"})


class AttemptTracker:
    """Tracks claimed attempts until they end. Used by the loop's thread only."""

    def __init__(
        self, id: str, groups: Sequence[WorkerGroup], events: Emitter, scheduler: Scheduler, ahead: Callable[[], float],
        chance: Callable[[], float], monotonic: Callable[[], float],
    ) -> None:  # fmt: skip
        self.id = id
        self.claimed: dict[str, Task] = {}  # claimed and not ended, with the last reported progress
        self.draining = False
        self.failure = ""  # why the loop gave up; it drains then
        self._groups = groups
        self._events = events
        self._ahead = ahead  # returns the seconds by which the loop's clock is ahead of the workers'
        self._chance = chance
        self._monotonic = monotonic
        self._node_metrics = NodeMetrics(monotonic)
        self._scheduler = scheduler
        self._outcomes: list[Outcome] = []
        self._now = 0.0  # the time of this turn
        self._next_heartbeat = 0.0
        self._backoff = ErrorBackoff(monotonic)
        self._best_effort = BestEffort()

    # --- collect: turn reports into outcomes

    def _collect(self, now: float) -> None:
        """Turn what the pools report into outcomes."""
        for group in self._groups:
            try:
                reports = group.pool.poll()
            except Exception as error:
                self._back_off(error)  # a later poll returns the reports
                continue
            self._best_effort.run("the metrics", self._node_metrics.record, reports)
            for report in reports:
                try:
                    self._apply(report, now)
                except Exception as error:
                    self._blame(report, error, now)

    def _blame(self, report: Report, error: Exception, now: float) -> None:
        """Fail the attempt whose report could not be applied. Back off if the report names no claimed task."""
        task = getattr(report, "task", None)
        task = task and self._current(task)
        if task is None:
            self._back_off(error)
        else:
            self._fail(task, error, now)

    def _fail(self, task: Task, error: Exception, now: float) -> None:
        """Fail this attempt because a step of the loop raised."""
        self.drop(task.id)
        self._outcomes.append((failed(task, error, now, self._chance), ()))

    def _instead(self, task: Task, error: Exception) -> Task:
        """Return the failure that replaces an outcome which the store cannot take. It has none of the data of that
        outcome."""
        history = task.history[:-1] if task.status in (Status.RETRYING, Status.FAILED) else task.history
        claimed = replace(
            task, status=Status.PROCESSING, result=None, error=None, history=history, log="", note="", progress=0.0,
            started_at=None, finished_at=None, run_at=task.created_at,
        )  # fmt: skip
        return failed(claimed, error, self._now, self._chance)

    def _apply(self, report: Report, now: float) -> None:
        if isinstance(report, WorkerChanged):
            self._next_heartbeat = now  # publish the change at once
            self._emit_worker(report, now)
        elif (task := self._current(report.task)) is None:
            return  # cancelled, or lost to another node: this node may not change it any more
        elif isinstance(report, Finished):
            self._finish(task, report)
        elif isinstance(report, Returned):
            self._end(release(task))
        elif isinstance(report, Started):
            if self._events.has_listeners("task:started"):
                self._events.emit("task:started", report.at + self._ahead(), task, report.worker)
        elif isinstance(report, Progressed):
            self.claimed[task.id] = task = replace(task, progress=report.percent, note=report.note)
            self._events.emit("task:progress", now, task)
        elif isinstance(report, Logged):
            self._events.emit("task:log", now, task, text=report.text)

    def _current(self, task: Task) -> Task | None:
        """Return the claimed task with the latest progress; None if this attempt is not claimed any more."""
        claimed = self.claimed.get(task.id)
        return claimed if claimed is not None and claimed.version == task.version else None

    def _finish(self, task: Task, report: Finished) -> None:
        started_at = report.started_at + self._ahead()  # the report has the time of the worker's clock
        ended_at = started_at + report.seconds
        task = replace(task, worker=f"{self.id}/{report.worker}", started_at=started_at, log=report.log)
        if report.error is None:
            self._end(succeed(task, report.raw_result, ended_at))
        elif report.discarded:
            self._end(cancel(task, ended_at, report.error.message, report.error.type))
        else:
            self._end(fail(task, report.error, ended_at, self._chance, final=report.final, delay=report.delay))

    def _end(self, task: Task) -> None:
        """Record the outcome of a claimed task."""
        del self.claimed[task.id]
        self._outcomes.append((task, ()))

    # --- tasks that must not run

    def _outcome(self, task: Task, now: float) -> Outcome:
        """Return the outcome of a claimed task that must not run: it is doomed, or its node died."""
        try:
            if task.type == cron.TYPE and task.doom:
                return self._scheduler.fire([task], now)[0]
            return (end_doomed(task, now) if task.doom else interrupt(task, now)), ()
        except Exception as error:
            return failed(task, error, now, self._chance), ()

    def _requeue(self, tasks: list[Task]) -> None:
        """Give back these claimed tasks, and stop an earlier attempt of theirs whose loss was not reported yet."""
        for task in tasks:
            self.drop(task.id)
            self._outcomes.append((release(task), ()))

    def _release(self, tasks: Iterable[Task]) -> None:
        """Give back those of these tasks that are still claimed. None of them was dispatched."""
        for task in tasks:
            if task.id in self.claimed:
                self._end(release(task))

    def _discard_stale(self, tasks: Iterable[Task]) -> None:
        """Drop pending outcomes of tasks that were claimed or taken over just now: they belong to attempts that had
        been lost before."""
        if self._outcomes:
            claimed = {task.id for task in tasks}
            self._outcomes = [outcome for outcome in self._outcomes if outcome[0].id not in claimed]

    # --- stop, drain

    def drop(self, task_id: str) -> None:
        """Stop the attempt and ignore its reports: this node has lost the task."""
        if task := self.claimed.pop(task_id, None):
            for group in self._groups:
                self._best_effort.run("the stop of a task", group.pool.stop, task)

    def end_by_request(self, task: Task) -> None:
        """Stop the attempt of a task that a caller cancelled in this version. A later attempt, started by a retry,
        continues."""
        self._node_metrics.count([task])
        claimed = self.claimed.get(task.id)
        if claimed is not None and claimed.version < task.version:
            self.drop(task.id)

    def _track(self, tasks: Iterable[Task]) -> None:
        """Track these attempts. Stop an earlier attempt of the same task whose loss was not reported yet."""
        new = {task.id: task for task in tasks}
        for task_id in self.claimed.keys() & new.keys():
            self.drop(task_id)
        self.claimed.update(new)

    def workers(self) -> list[backend.WorkerInfo]:
        """Return the workers of all pools."""
        return [worker for group in self._groups for worker in group.pool.workers()]

    def drain(self) -> None:
        """Claim nothing more, and give back what has not started."""
        self.draining = True
        self.recall()

    def recall(self) -> None:
        """Ask all pools to return the tasks that have not started."""
        for group in self._groups:
            self._best_effort.run("the recall of tasks", group.pool.recall)

    def is_drained(self) -> bool:
        """Return whether the loop drains and nothing is left to end or to store."""
        return self.draining and not self.claimed and not self._outcomes

    # --- errors

    def _back_off(self, error: Exception) -> None:
        """Keep claims and outcomes, and try again after a growing delay. Drain after too many failures in a row."""
        is_away = isinstance(error, StoreError)
        what = "the store failed; work goes on and outcomes are kept" if is_away else "a step of the loop failed"
        self._backoff.note(error, what)
        if self._backoff.is_exhausted and not self.failure:
            self.failure = f"every turn failed for {GIVE_UP_AFTER:g} s: {self._backoff.message}"
            self.drain()

    # --- events

    def _emit_worker(self, report: WorkerChanged, now: float) -> None:
        self._events.emit(
            f"worker:{report.state}", now, None, f"{self.id}/{report.worker}", pid=report.pid, signal=report.signal,
            exit_code=report.exit_code, reason=report.reason,
        )  # fmt: skip

    def _emit_endings(self, ended: Iterable[Task], now: float) -> None:
        for task in ended:
            if task.error is not None and task.error.type == EXPIRED:
                self._events.emit("task:expired", now, task)
            if name := _EVENT_OF_STATUS.get(task.status):
                self._events.emit(name, now, task, task.worker)

    def _emit_added(self, outcomes: Iterable[Outcome], accepted: Container[str], now: float) -> None:
        """Emit "task:added" for the successors that the accepted outcomes have planted."""
        if self._events.has_listeners("task:added"):
            for task, successors in outcomes:
                for successor in successors if task.id in accepted else ():
                    self._events.emit("task:added", now, successor)
