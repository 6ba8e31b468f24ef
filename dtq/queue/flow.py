"""Flow: the handle of a whole graph of tasks. It keeps nothing but ids: what became of them is looked up.

queue.flow(chain(...)) --> Flow --> counts, progress, result, cancel, retry
queue.get_flow(id) ------->         (by the prefix of the ids: after a restart, or in another process)
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
from dtq.task.transitions import cancel, fell_with_its_parent, revive

IDS_PER_READ = 1000
FlowStatus = Literal["running", "completed", "failed", "cancelled"]


class FlowState(msgspec.Struct, frozen=True):
    """A flow as it is at one moment. `status` is `running` until all have ended; then `failed` or `cancelled` if any of
    them was, else `completed`. `progress`, in percent, is the mean of its tasks, of which each that has ended counts as
    100. `counts` is status -> how many of its tasks, `tasks` name -> status."""

    id: str
    status: FlowStatus
    progress: float
    counts: dict[str, int]
    tasks: dict[str, Status]

    @classmethod
    def of(cls, id: str, tasks: Sequence[Task]) -> FlowState:
        counts = dict.fromkeys(map(str, Status), 0)
        for task in tasks:
            counts[task.status] += 1
        progress = sum(100.0 if task.is_terminal else task.progress for task in tasks) / max(1, len(tasks))
        return cls(id, _status(counts), progress, counts, {name_in(id, task.id): task.status for task in tasks})


class Flow:
    """A graph of tasks that was added in one call. `ids` are those of its tasks, in the order of their names in it."""

    def __init__(self, id: str, ids: Sequence[str], source: TaskSource) -> None:
        self.id = id
        self.ids = list(ids)
        self._source = source
        self._look = 1.0 + len(self.ids) / 1000  # seconds between looks at all of them, at least

    @classmethod
    def find(cls, id: str, source: TaskSource) -> Flow:
        """The flow of this id, as far as its tasks are still stored. Raises UnknownTask where none is."""
        ids: list[str] = []
        after = start = prefix(id)
        limit = 1  # enough to see that there is no such flow
        while page := source.store.find(after=after, limit=limit, brief=True):
            ids += [task.id for task in page if task.id.startswith(start)]
            after, limit = page[-1].id, min(10 * limit, IDS_PER_READ)
            if not after.startswith(start):
                break
        if not ids:
            raise UnknownTask(f"no flow has the id {id!r}: it was never added, or all of it was cleaned up")
        return cls(id, ids, source)

    # --- look

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, name: str) -> Handle:
        """The handle of the task of this name."""
        task_id = prefix(self.id) + name
        if task_id not in self.ids:
            raise UnknownTask(f"flow {self.id} has no task {name!r}")
        return Handle(task_id, self._source)

    def name(self, task_id: str) -> str:
        """The name of one of its tasks in it."""
        return name_in(self.id, task_id)

    def tasks(self, *, brief: bool = False) -> list[Task]:
        """Return all that are still stored, as they are now; with `brief`, without payload, result, history, log and
        traceback."""
        return self._source.store.get(self.ids, brief=brief)

    def state(self) -> FlowState:
        """How far it is; the properties below are of one look each."""
        return FlowState.of(self.id, self.tasks(brief=True))

    @property
    def counts(self) -> dict[str, int]:
        return self.state().counts

    @property
    def progress(self) -> float:
        return self.state().progress

    @property
    def status(self) -> FlowStatus:
        return self.state().status

    def results(self) -> dict[str, Any]:
        """name -> result, of those that have completed by now."""
        completed = [task.id for task in self.tasks(brief=True) if task.status == Status.COMPLETED]
        return {self.name(task.id): task.result for task in self._source.store.get(completed)}

    # --- wait

    def wait(self, timeout: float | None = None) -> FlowStatus:
        """Returns when all have ended, however they did. Raises TimeoutError."""
        give_up_at = time.monotonic() + (float("inf") if timeout is None else timeout)
        while unfinished := [task.id for task in self.tasks(brief=True) if not task.is_terminal]:
            left = give_up_at - time.monotonic()
            if left <= 0:
                raise TimeoutError(
                    f"flow {self.id}: {len(unfinished):,} of {len(self):,} tasks have not ended after {timeout} s"
                )
            with suppress(TimeoutError, UnknownTask):  # nobody is told of a task that is deleted
                self._source.wait_for(unfinished[-1], min(left, self._look))
        return self.status

    def result(self, timeout: float | None = None) -> Any:
        """What the last task returned (a list, where there are several that no other waits for).

        Waits for all of the flow. Raises TaskFailed with the task that failed first, TaskCancelled, or TimeoutError.
        """
        self.wait(timeout)
        tasks = self.tasks(brief=True)
        awaited = {parent for task in tasks for parent in task.after}
        last = [task for task in tasks if task.id not in awaited]
        if any(task.status != Status.COMPLETED for task in last):
            raise self._failure(tasks)
        values = [task.result for task in self._source.store.get([task.id for task in last])]
        return values[0] if len(values) == 1 else values

    def _failure(self, tasks: Sequence[Task]) -> TaskFailed | TaskCancelled:
        """Return the error for a flow of these brief tasks that came to no result."""
        failed = [task for task in tasks if task.status == Status.FAILED]
        if not failed:
            return TaskCancelled(f"flow {self.id} was cancelled before it came to its result")
        first = min(failed, key=lambda task: (fell_with_its_parent(task), task.finished_at or 0.0))
        return TaskFailed(next(iter(self._source.store.get([first.id])), first))

    # --- change

    def cancel(self) -> int:
        """Ends all that has not ended; of what runs, the attempt is stopped. Gives how many."""
        return self._change(lambda task: not task.is_terminal, lambda task, now: cancel(task, now, "its flow was"))

    def retry(self) -> int:
        """Starts afresh all that failed or was cancelled; each waits for its parents again. Gives how many."""
        return self._change(lambda task: task.status in (Status.FAILED, Status.CANCELLED), revive)

    def _change(self, wanted: Callable[[Task], bool], transition: Callable[[Task, float], Task]) -> int:
        """In one commit; again for those of which somebody else was faster."""
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
