"""Flow: the handle of a whole graph of tasks. It keeps only ids and reads the tasks from the store.

queue.flow(chain(...)) --> Flow --> counts, progress, result, cancel, retry
queue.get_flow(id) ------->         (finds the tasks by the prefix of their ids: after a restart, or in another process)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal

import msgspec

from dtq.errors import TaskCancelled, TaskFailed, UnknownTask
from dtq.queue.handle import Handle, TaskSource
from dtq.task.graph import name_in, prefix
from dtq.task.model import TERMINAL, Status, Task
from dtq.task.transitions import cancel, failed_with_parent, revive

IDS_PER_READ = 1000
FlowStatus = Literal["running", "completed", "failed", "cancelled"]


class FlowState(msgspec.Struct, frozen=True):
    """A flow as it was at one moment.

    `status` is "running" until all tasks have ended; then "failed" or "cancelled" if one of them was, else "completed".
    `progress`, in percent, is the mean over all tasks; an ended task counts as 100. `counts` is status -> number of
    tasks, `tasks` is name -> status.
    """

    id: str
    status: FlowStatus
    progress: float
    counts: dict[str, int]
    tasks: dict[str, Status]

    @classmethod
    def of(cls, id: str, tasks: Sequence[Task]) -> FlowState:
        """Return the state of the flow `id` that has these `tasks`."""
        counts = dict.fromkeys(map(str, Status), 0)
        for task in tasks:
            counts[task.status] += 1
        progress = sum(100.0 if task.is_terminal else task.progress for task in tasks) / max(1, len(tasks))
        return cls(id, _status(counts), progress, counts, {name_in(id, task.id): task.status for task in tasks})


class Flow:
    """A graph of tasks that was added in one call. The properties read the tasks' current state from the store.

    Args:
        id: The id of the flow.
        ids: The ids of its tasks, in the order in which the graph names them.
        source: The queue or the manager that the flow reads from.
    """

    def __init__(self, id: str, ids: Sequence[str], source: TaskSource) -> None:
        self.id = id
        self.ids = list(ids)
        self._source = source
        self._poll_interval = 1.0 + len(self.ids) / 1000  # seconds between two reads of all tasks, at least

    @classmethod
    def find(cls, id: str, source: TaskSource) -> Flow:
        """Return the flow with this `id` in `source`, with the tasks that are still stored. Raise UnknownTask if there
        are none."""
        ids: list[str] = []
        after = start = prefix(id)
        limit = 1  # enough to learn that there is no such flow
        while page := source.store.find(after=after, limit=limit, brief=True):
            ids += [task.id for task in page if task.id.startswith(start)]
            after, limit = page[-1].id, min(10 * limit, IDS_PER_READ)
            if not after.startswith(start):
                break
        if not ids:
            raise UnknownTask(f"no flow has the id {id!r}: it was never added, or all of it was cleaned up")
        return cls(id, ids, source)

    # --- read

    def __len__(self) -> int:
        """Return how many tasks the flow has."""
        return len(self.ids)

    def __getitem__(self, name: str) -> Handle:
        """Return the handle of the task with this name. Raise UnknownTask if there is none."""
        task_id = prefix(self.id) + name
        if task_id not in self.ids:
            raise UnknownTask(f"flow {self.id} has no task {name!r}")
        return Handle(task_id, self._source)

    def name(self, task_id: str) -> str:
        """Return the name that the task `task_id` has in this flow."""
        return name_in(self.id, task_id)

    def tasks(self, *, brief: bool = False) -> list[Task]:
        """Return the tasks that are still stored, as they are now. With `brief`, they have no payload, result, history,
        log and traceback."""
        return self._source.store.get(self.ids, brief=brief)

    def state(self) -> FlowState:
        """Return status, progress and counts, all from one read of the store."""
        return FlowState.of(self.id, self.tasks(brief=True))

    @property
    def counts(self) -> dict[str, int]:
        """Status -> number of tasks."""
        return self.state().counts

    @property
    def progress(self) -> float:
        """The progress in percent: the mean over all tasks; an ended task counts as 100."""
        return self.state().progress

    @property
    def status(self) -> FlowStatus:
        """ "running", "completed", "failed" or "cancelled": see FlowState."""
        return self.state().status

    def results(self) -> dict[str, Any]:
        """Return name -> result, of the tasks that have completed by now."""
        completed = [task.id for task in self.tasks(brief=True) if task.status == Status.COMPLETED]
        return {self.name(task.id): task.result for task in self._source.store.get(completed)}

    # --- wait

    def wait(self, timeout: float | None = None) -> FlowStatus:
        """Wait until all tasks have ended, `timeout` seconds at most (None: as long as it takes). Return the status.
        Raise TimeoutError if some have not ended by then."""
        give_up_at = time.monotonic() + (float("inf") if timeout is None else timeout)
        while unfinished := [task.id for task in self.tasks(brief=True) if not task.is_terminal]:
            left = give_up_at - time.monotonic()
            if left <= 0:
                raise TimeoutError(
                    f"flow {self.id}: {len(unfinished):,} of {len(self):,} tasks have not ended after {timeout} s"
                )
            with suppress(TimeoutError, UnknownTask):  # a task may be deleted meanwhile
                self._source.wait_for(unfinished[-1], min(left, self._poll_interval))
        return self.status

    def result(self, timeout: float | None = None) -> Any:
        """Wait for all tasks, `timeout` seconds at most (None: as long as it takes). Return the result of the last
        task; a list if there are several that no other task waits for.

        Raises:
            TaskFailed: A task failed; the error has the one that failed first.
            TaskCancelled: The flow was cancelled before its last task completed.
            TimeoutError: Some tasks have not ended in time; they continue.
        """
        self.wait(timeout)
        tasks = self.tasks(brief=True)
        needed = {parent for task in tasks for parent in task.after}
        last = [task for task in tasks if task.id not in needed]
        if any(task.status != Status.COMPLETED for task in last):
            raise self._failure(tasks)
        values = [task.result for task in self._source.store.get([task.id for task in last])]
        return values[0] if len(values) == 1 else values

    def _failure(self, tasks: Sequence[Task]) -> TaskFailed | TaskCancelled:
        """Return the error of a flow that has no result. `tasks` are brief."""
        failed = [task for task in tasks if task.status == Status.FAILED]
        if not failed:
            return TaskCancelled(f"flow {self.id} was cancelled before its last task completed")
        first = min(failed, key=lambda task: (failed_with_parent(task), task.finished_at or 0.0))
        return TaskFailed(next(iter(self._source.store.get([first.id])), first))

    # --- change

    def cancel(self) -> int:
        """Cancel all tasks that have not ended, and stop those that run. Return how many were cancelled."""
        return self._change(lambda task: not task.is_terminal, lambda task, now: cancel(task, now, "its flow was"))

    def retry(self) -> int:
        """Start all failed and cancelled tasks again; each waits for its parents again. Return how many were
        started."""
        return self._change(lambda task: task.status in (Status.FAILED, Status.CANCELLED), revive)

    def _change(self, wanted: Callable[[Task], bool], transition: Callable[[Task, float], Task]) -> int:
        """Change all wanted tasks in one commit. Try again for those that changed meanwhile."""
        changed: set[str] = set()
        while ids := [task.id for task in self.tasks(brief=True) if wanted(task) and task.id not in changed]:
            now = self._source.clock()
            outcomes = [(transition(task, now), ()) for task in self._source.store.get(ids) if wanted(task)]
            changed |= {task.id for task in self._source.apply(outcomes)}
        return len(changed)

    def __repr__(self) -> str:
        return f"<Flow {self.id} of {len(self):,} tasks>"


def _status(counts: Mapping[str, int]) -> FlowStatus:
    if sum(counts.values()) > sum(counts[status] for status in TERMINAL):
        return "running"
    return "failed" if counts[Status.FAILED] else "cancelled" if counts[Status.CANCELLED] else "completed"
