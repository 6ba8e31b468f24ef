"""Dead letters: the tasks that have failed for good. Not a queue of its own but a view: whatever is `failed` is in it,
with its whole history, until it is redriven, purged, or cleaned up.

    failed ---- redrive: revived, 50 in a commit, at a rate if need be ---------> pending, or blocked by its parents
           ---- purge, sweep: marked as ended long ago, then removed as such ---> gone

Nothing is removed that somebody else has redriven meanwhile: the mark is a compare-and-set, and a store purges only
what is still failed.
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
from dtq.task.transitions import fell_with_its_parent, revive

T = TypeVar("T")
BRIEF_PER_READ = 1000  # brief tasks that are read at once
WHOLE_PER_READ = 50  # whole tasks that are read and changed at once: each may carry megabytes
FAILED = frozenset({Status.FAILED})
LONG_AGO = 1.0  # UTC seconds: what ended before this was marked to be purged


class DeadLetters:
    """The failed tasks of a queue. The filters of all methods are the same, and may be combined:

    - `queue`, `type`: of the task.
    - `error`: the type of its last error, as in "ValueError", "Timeout", "WorkerDied", "ParentFailed".
    - `since`: UTC seconds; it failed later than that.
    """

    def __init__(
        self, store: Store, clock: Callable[[], float], apply: Callable[[Sequence[Outcome]], list[Task]]
    ) -> None:
        self._store = store
        self._clock = clock
        self._apply = apply  # hands in changes, and tells of them

    # --- look

    def __len__(self) -> int:
        return self._store.stats().counts[Status.FAILED]

    def __iter__(self) -> Iterator[Task]:
        return self._matching(brief=False)

    def find(self, *, limit: int = 100, after: str = "", brief: bool = False, **filters: Any) -> list[Task]:
        """Return up to `limit` of them by id, oldest first; the next page follows the last id: `after=page[-1].id`.
        With `brief`, without payload, result, history, log and traceback."""
        return list(islice(self._matching(after, limit, brief=brief, **filters), limit))

    def get(self, task_id: str) -> Task:
        """One of them. Raises UnknownTask where there is none of this id, or it has not failed."""
        for task in self._store.get([task_id] if names.can_exist(task_id) else []):
            if task.status == Status.FAILED:
                return task
            raise UnknownTask(f"task {task_id} is {task.status}: only failed tasks are dead letters")
        raise UnknownTask(f"no task has the id {task_id!r}: it was never added, or was deleted or cleaned up")

    def errors(self, **filters: Any) -> dict[str, int]:
        """Return how many there are of each type of error, most first. Looks at each of them, briefly."""
        counts: dict[str, int] = {}
        for task in self._matching(**filters):
            counts[_error(task)] = counts.get(_error(task), 0) + 1
        return dict(sorted(counts.items(), key=lambda entry: -entry[1]))

    def _matching(
        self, after: str = "", first: int = BRIEF_PER_READ, *, brief: bool = True, queue: str | None = None,
        type: str | None = None, error: str | None = None, since: float | None = None,
    ) -> Iterator[Task]:  # fmt: skip
        """Yield them by id. Of the store, `first` are read at once, then more at a time."""
        names.check_filters(queue=queue, type=type)
        wanted: dict[str, Any] = {"status": Status.FAILED, "queue": queue, "type": type, "finished_after": since}
        largest = BRIEF_PER_READ if brief else WHOLE_PER_READ
        limit = min(first, largest)
        while page := self._store.find(after=after, limit=limit, brief=brief, **wanted):
            yield from (task for task in page if error in (None, _error(task)))
            after, limit = page[-1].id, min(2 * limit, largest)

    # --- change

    def redrive(self, *task_ids: str, rate: float | None = None, limit: int | None = None, **filters: Any) -> list[str]:
        """Starts these afresh, with all their attempts; gives the ids of those that were still failed.

        Without ids, all that match the filters, those that failed first coming first, at most `limit`. `rate`: so many
        a second are due; the times are kept with the tasks, so that this call does not wait. A child of a flow waits
        for its parents again; where only the child is redriven, and not the parent that failed, it fails at once.
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
        """Parents before children: those that failed by themselves, then those that fell with them, as they fell.

        Times alone would not do: what fell is stamped by the loop, what failed by its worker.
        """
        if task_ids:
            return _known(task_ids)
        found = sorted(
            (fell_with_its_parent(task), task.finished_at or 0.0, task.id) for task in self._matching(**filters)
        )
        return [task_id for _, _, task_id in found]

    def purge(self, *task_ids: str, age: float = 0.0, **filters: Any) -> int:
        """Removes these for good, or all that match the filters and failed at least `age` seconds ago; gives how
        many."""
        if task_ids and (filters or age):
            raise InvalidTask("purge takes ids or filters, not both")
        before = self._clock() - age
        ids = _known(task_ids) if task_ids else _ids(self._matching(**filters))
        return sum(_remove(self._store, page, before) for page in _pages(ids))


def sweep(store: Store, now: float, age: float | None, limit: int | None) -> bool:
    """One step of the clean-up: removes failed tasks over `age` seconds, and the oldest of those over `limit`. Says
    whether there is more to remove."""
    aged = age is not None and store.purge(now - age, FAILED) > 0
    excess = 0 if limit is None else store.stats().counts[Status.FAILED] - limit
    if excess > 0:
        for ids in _pages(_ids(store.find(status=Status.FAILED, limit=min(excess, BRIEF_PER_READ), brief=True))):
            _remove(store, ids)
    return aged or excess > BRIEF_PER_READ


def _remove(store: Store, ids: Sequence[str], before: float = inf) -> int:
    """Remove those of these tasks that had failed by `before`; return how many went."""
    found = [task for task in store.get(ids) if task.status == Status.FAILED and (task.finished_at or 0.0) <= before]
    store.update([(replace(task, finished_at=0.0), ()) for task in found])
    removed = 0
    while step := store.purge(LONG_AGO, FAILED):
        removed += step
    return removed


def _known(task_ids: Iterable[str]) -> list[str]:
    """Those that a task can have, each once. Raises InvalidTask where one is not even text."""
    return list(dict.fromkeys(task_id for task_id in task_ids if names.can_exist(task_id)))


def _ids(tasks: Iterable[Task]) -> list[str]:
    return [task.id for task in tasks]


def _pages(items: Sequence[T]) -> Iterator[Sequence[T]]:
    return (items[start : start + WHOLE_PER_READ] for start in range(0, len(items), WHOLE_PER_READ))


def _error(task: Task) -> str:
    return task.error.type if task.error is not None else ""


def _due(now: float, number: int, rate: float | None) -> float:
    return now if rate is None else now + number / rate
