"""Dead letters: the tasks that have failed permanently. They are a view and not a queue: every task with the status
`failed` is one, with its whole history, until it is redriven, purged or cleaned up.

    failed ---- redrive: revive, 50 tasks in a commit, at a given rate --------> pending, or blocked by its parents
           ---- purge, trim: mark as ended long ago, then remove by that mark --> removed

A task that another process redrives meanwhile is not removed: the mark is a compare-and-set, and a store purges only
tasks that are still failed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from math import inf
from typing import Any, TypeVar

from msgspec.structs import replace

from dtq.errors import InvalidTask, UnknownTask
from dtq.stores.protocol import Outcome, Store
from dtq.task import names
from dtq.task.model import Status, Task
from dtq.task.transitions import failed_with_parent, revive

T = TypeVar("T")
BRIEF_PER_READ = 1000  # brief tasks in one read
WHOLE_PER_READ = 50  # whole tasks in one read and one commit: each may have megabytes
FAILED = frozenset({Status.FAILED})
MARKED_BEFORE = 1.0  # UTC seconds: a task that has ended before this time is marked for removal


class DeadLetters:
    """The failed tasks of a queue.

    All methods take the same `filters`, which may be combined:

    - `queue`, `type`: those of the task.
    - `error`: the type of its last error, such as "ValueError", "Timeout", "WorkerDied" or "ParentFailed".
    - `since`: UTC seconds; the task failed later than that.

    Args:
        store: Where the tasks are.
        clock: Returns the time, in UTC seconds.
        apply: Stores changes, announces them, and returns the tasks that changed.
    """

    def __init__(
        self, store: Store, clock: Callable[[], float], apply: Callable[[Sequence[Outcome]], list[Task]]
    ) -> None:
        self._store = store
        self._clock = clock
        self._apply = apply

    # --- read

    def __len__(self) -> int:
        """Return how many tasks have failed."""
        return self._store.stats().counts[Status.FAILED]

    def __iter__(self) -> Iterator[Task]:
        """Yield all failed tasks, whole, by id."""
        return self._matching(brief=False)

    def find(self, *, limit: int = 100, after: str = "", brief: bool = False, **filters: Any) -> list[Task]:
        """Return up to `limit` failed tasks that match the `filters`, by id, oldest first.

        The next page starts after the last id: `after=page[-1].id`. With `brief`, the tasks have no payload, result,
        history, log and traceback. Raise InvalidTask if a filter cannot match any task.
        """
        return list(islice(self._matching(after, limit, brief=brief, **filters), limit))

    def get(self, task_id: str) -> Task:
        """Return the failed task with the id `task_id`. Raise UnknownTask if there is none, or if it has not failed."""
        for task in self._store.get([task_id] if names.can_exist(task_id) else []):
            if task.status == Status.FAILED:
                return task
            raise UnknownTask(f"task {task_id} is {task.status}: only failed tasks are dead letters")
        raise UnknownTask(f"no task has the id {task_id!r}: it was never added, or was deleted or cleaned up")

    def errors(self, **filters: Any) -> dict[str, int]:
        """Return error type -> number of failed tasks that match the `filters`, the most frequent first. It reads all
        of them, as brief tasks."""
        counts: dict[str, int] = {}
        for task in self._matching(**filters):
            counts[_error(task)] = counts.get(_error(task), 0) + 1
        return dict(sorted(counts.items(), key=lambda entry: -entry[1]))

    def _matching(
        self, after: str = "", first: int = BRIEF_PER_READ, *, brief: bool = True, queue: str | None = None,
        type: str | None = None, error: str | None = None, since: float | None = None,
    ) -> Iterator[Task]:  # fmt: skip
        """Yield the matching tasks by id. Read `first` tasks at first, then more with each read."""
        names.check_filters(queue=queue, type=type)
        wanted: dict[str, Any] = {"status": Status.FAILED, "queue": queue, "type": type, "finished_after": since}
        largest = BRIEF_PER_READ if brief else WHOLE_PER_READ
        limit = min(first, largest)
        while page := self._store.find(after=after, limit=limit, brief=brief, **wanted):
            yield from (task for task in page if error in (None, _error(task)))
            after, limit = page[-1].id, min(2 * limit, largest)

    # --- change

    def redrive(self, *task_ids: str, rate: float | None = None, limit: int | None = None, **filters: Any) -> list[str]:
        """Start failed tasks again, with all their attempts.

        A child of a flow waits for its parents again; it fails at once if its failed parent is not redriven too.

        Args:
            task_ids: The tasks; without any, all that match the `filters`, in the order in which they failed.
            rate: How many of them are due each second (None: all at once). The tasks keep their times; the call itself
                does not wait.
            limit: How many tasks at most (None: all).
            filters: See the class.

        Returns:
            The ids of the tasks that were still failed.

        Raises:
            InvalidTask: `rate` is not above 0, or there are both ids and filters.
        """
        if rate is not None and not rate > 0:
            raise InvalidTask(f"rate is {rate!r}; allowed: a number of tasks a second, more than 0")
        if task_ids and filters:
            raise InvalidTask("redrive takes ids or filters, not both")
        now = self._clock()
        redriven: list[str] = []
        for ids in _pages(self._in_order(task_ids, filters)[:limit]):
            dead = [task for task in self._store.get(ids) if task.status == Status.FAILED]
            outcomes = [(revive(task, _due(now, len(redriven) + n, rate)), ()) for n, task in enumerate(dead)]
            redriven += [task.id for task in self._apply(outcomes)]
        return redriven

    def _in_order(self, task_ids: Iterable[str], filters: dict[str, Any]) -> Sequence[str]:
        """Return the ids with parents before children: first the tasks that failed by themselves, then those that
        failed with a parent, both by time. Times alone do not suffice: the two kinds come from different clocks.
        """
        if task_ids:
            return _known(task_ids)
        found = sorted(
            (failed_with_parent(task), task.finished_at or 0.0, task.id) for task in self._matching(**filters)
        )
        return [task_id for _, _, task_id in found]

    def purge(self, *task_ids: str, age: float = 0.0, **filters: Any) -> int:
        """Remove failed tasks: those with these `task_ids`, or all that match the `filters` and failed at
        least `age` seconds ago. Return how many were removed. Raise InvalidTask if there are both ids and filters."""
        if task_ids and (filters or age):
            raise InvalidTask("purge takes ids or filters, not both")
        before = self._clock() - age
        ids = _known(task_ids) if task_ids else _ids(self._matching(**filters))
        return sum(_remove(self._store, page, before) for page in _pages(ids))


def trim(store: Store, now: float, age: float | None, limit: int | None) -> bool:
    """Do one step of the clean-up: remove tasks that failed more than `age` seconds ago, and the oldest ones above
    `limit`. Return whether more are left to remove."""
    aged = age is not None and store.purge(now - age, FAILED) > 0
    excess = 0 if limit is None else store.stats().counts[Status.FAILED] - limit
    if excess > 0:
        for ids in _pages(_ids(store.find(status=Status.FAILED, limit=min(excess, BRIEF_PER_READ), brief=True))):
            _remove(store, ids)
    return aged or excess > BRIEF_PER_READ


def _remove(store: Store, ids: Sequence[str], before: float = inf) -> int:
    """Remove those of these tasks that failed by `before` (UTC seconds). Return how many were removed."""
    found = [task for task in store.get(ids) if task.status == Status.FAILED and (task.finished_at or 0.0) <= before]
    store.update([(replace(task, finished_at=0.0), ()) for task in found])
    removed = 0
    while step := store.purge(MARKED_BEFORE, FAILED):
        removed += step
    return removed


def _known(task_ids: Iterable[str]) -> list[str]:
    """Return the ids that a task can have, each once. Raise InvalidTask if one is not text."""
    return list(dict.fromkeys(task_id for task_id in task_ids if names.can_exist(task_id)))


def _ids(tasks: Iterable[Task]) -> list[str]:
    return [task.id for task in tasks]


def _pages(items: Sequence[T]) -> Iterator[Sequence[T]]:
    return (items[start : start + WHOLE_PER_READ] for start in range(0, len(items), WHOLE_PER_READ))


def _error(task: Task) -> str:
    return task.error.type if task.error is not None else ""


def _due(now: float, number: int, rate: float | None) -> float:
    return now if rate is None else now + number / rate
