"""Claimer: claims tasks for the workers and hands them over. The part of the loop that starts work.

capacity of a pool --> claim --> doomed?             end it without running it
                                 forged delivery?    fail it
                                 answered too late?  give it back
                                 parents?            read what they left --> dispatch --> pool
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from dtq.errors import StoreError
from dtq.queue.attempt_tracker import AttemptTracker
from dtq.queue.config import QueueConfig
from dtq.queue.events import Emitter
from dtq.queue.scheduler import Scheduler
from dtq.stores.protocol import ClaimRequest, ExchangingStore, Outcome, Store
from dtq.stores.shared.overlap import while_waiting
from dtq.task.model import Task
from dtq.task.transitions import fail
from dtq.webhooks import deliveries
from dtq.workers import backend
from dtq.workers.groups import WorkerGroup
from dtq.workers.run import parents

log = logging.getLogger("dtq")


class Exchange(NamedTuple):
    """The claim of an exchange: what it asked for, what it found, and the further steps of the capacity."""

    group: WorkerGroup
    steps: Iterator[tuple[int, frozenset[str]]]
    request: ClaimRequest
    tasks: list[Task]


class Claimer(AttemptTracker):
    """Claims tasks from the store and dispatches them to the pools. Used by the loop's thread only."""

    def __init__(
        self, id: str, store: Store, groups: Sequence[WorkerGroup], events: Emitter, scheduler: Scheduler,
        config: QueueConfig, ahead: Callable[[], float], monotonic: Callable[[], float],
    ) -> None:  # fmt: skip
        super().__init__(id, groups, events, scheduler, ahead, config.chance, monotonic)
        self._store = store
        self._exchanger = store if isinstance(store, ExchangingStore) else None  # slow to ask in each turn
        self._lease = config.lease
        self._max_parents = config.max_parents
        self._claimed_at = 0.0  # time of the last claim
        self._began = 0.0  # start of this turn, by the monotonic clock
        self._answered_at = float("-inf")  # when the store last answered, by the monotonic clock
        self._found = 0  # tasks that the claims of this turn found
        self._exchanged: Exchange | None = None  # of this turn, until its tasks are handed over
        self._one_by_one = False  # claim one task next: a dispatch of several failed

    def _by_now(self, now: float) -> float:
        """Return the current time, in a turn that began at `now`."""
        return now + self._monotonic() - self._began

    def _claim_for(self, group: WorkerGroup, now: float) -> bool:
        """Claim as many tasks as this group can take. Return True if the store had fewer."""
        short, steps = False, group.pool.capacity()
        if self._exchanged and self._exchanged.group is group:
            (_, steps, request, tasks), self._exchanged = self._exchanged, None
            short = self._receive(group, request, tasks, now)
        for step in steps:
            request = self._request(group, step, now)
            with while_waiting(partial(self._collect, now)):
                tasks = self._store.claim(*request)
            short |= self._receive(group, request, tasks, now)
        return short

    def _request(self, group: WorkerGroup, step: tuple[int, frozenset[str]], now: float) -> ClaimRequest:
        """Return the claim for one step of the capacity of this group."""
        capacity, types = step
        at = self._claimed_at = self._by_now(now)  # with an earlier time, a rate would let too many tasks start
        n = 1 if self._one_by_one else capacity
        return ClaimRequest(self.id, n, self._lease, at, types, group.spec.queues, group.spec.min_priority)

    def _receive(self, group: WorkerGroup, request: ClaimRequest, tasks: list[Task], now: float) -> bool:
        """Hand the tasks that a claim has found to the group. Return True if they are fewer than requested."""
        self._answered_at = self._monotonic()
        self._found += len(tasks)
        short = len(tasks) < request.n
        self._discard_stale(tasks)
        if deliveries.TYPE in request.types:
            tasks = self._without_forged(tasks, now)
        self._take(group.pool, tasks, now)
        return short

    def _exchange(self, outcomes: Sequence[Outcome], now: float) -> set[str]:
        """Store the outcomes and make the first claim, in one transaction if the store can. Return the accepted ids.
        `_claim_for` receives the claimed tasks."""
        group = self._groups[0]
        steps = iter(group.pool.capacity())
        step = next(steps, None)
        if step is None or self._exchanger is None:
            return self._store.update(outcomes)
        request = self._request(group, step, now)
        accepted, tasks = self._exchanger.exchange(outcomes, request)
        self._exchanged = Exchange(group, steps, request, tasks)
        return accepted

    def find_due(self, type: str, now: float) -> bool:
        """Return whether a task of this type could start here at `now` (UTC seconds). Claim one and give it back: the
        cost of a claim does not grow with what is stored, that of `find` and `stats` does."""
        for group in self._groups:
            spec = group.spec
            found = self._store.claim(self.id, 1, self._lease, now, {type}, spec.queues, spec.min_priority)
            self._requeue(found)
            if found:
                return True
        return False

    def _without_forged(self, tasks: list[Task], now: float) -> list[Task]:
        """Fail the deliveries that did not come from the end of a task. Return the other tasks."""
        forged = [t for t in tasks if t.type == deliveries.TYPE and not t.doom and not deliveries.is_genuine(t)]
        self._outcomes += [(deliveries.refuse(task, now), ()) for task in forged]
        return [task for task in tasks if task not in forged] if forged else tasks

    def _take(self, pool: backend.WorkerBackend, tasks: list[Task], now: float) -> None:
        """End the doomed tasks and dispatch the others to the pool."""
        doomed = [task for task in tasks if task.doom]
        self._outcomes += [self._outcome(task, now) for task in doomed]
        runnable = [task for task in tasks if not task.doom] if doomed else tasks
        if self._is_late(runnable, now):
            self._requeue(runnable)
        elif runnable:
            self._track(runnable)
            left = self._left_by_parents(runnable, now)
            self._do_posts()  # apply a handler's registration before the task that was added after it
            self._dispatch(pool, [task for task in runnable if task.id in self.claimed], left, now)

    def _is_late(self, tasks: Iterable[Task], now: float) -> bool:
        """Return whether half of a lease passed before these tasks could start. The process was frozen in this turn, or
        the answer of the store took that long: another node may take the tasks over at any moment."""
        now = self._by_now(now)
        return any((task.lease_until or 0.0) - now < self._lease / 2 for task in tasks)

    def _do_posts(self) -> None:
        """Run the actions that other threads have posted."""
        raise NotImplementedError

    def _dispatch(self, pool: backend.WorkerBackend, tasks: list[Task], left: Mapping[str, bytes], now: float) -> None:
        """Hand the tasks to the pool. A pool reports a task that it cannot send. If it raises instead, fail a single
        task; give several back and claim them again one by one."""
        try:
            pool.dispatch(tasks, left) if left else pool.dispatch(tasks)
            self._one_by_one = False
        except (OSError, MemoryError) as error:
            self._requeue(tasks)
            self._back_off(error)
        except Exception as error:
            self._one_by_one = len(tasks) > 1
            if self._one_by_one:
                log.error("a pool could not take %d tasks: dispatching them one by one", len(tasks), exc_info=error)
                self._requeue(tasks)
            else:
                self._fail(tasks[0], error, now)

    # --- the results of parents

    def _left_by_parents(self, tasks: list[Task], now: float) -> dict[str, bytes]:
        """Return what the parents of these claimed tasks left, by the id of the child. Fail a child whose parents left
        too much. Release a child that must not run any more."""
        children = [task for task in tasks if task.after]
        if not children:
            return {}
        try:
            left, orphans = self._gather(children, now)
            overtaken = self._overtaken(orphans)
        except StoreError:
            self._release(tasks)
            raise
        self._release(overtaken)
        for task in children:
            if task.id not in left and task.id in self.claimed:
                error = parents.too_large(task, self._max_parents)
                self._end(fail(task, error, now, self._chance, final=True))
        return left

    def _gather(self, children: list[Task], now: float) -> parents.Gathered:
        """Read the parents of all children at once or, if that raises, of one child after the other. Fail a child whose
        parents cannot be read."""
        try:
            return parents.gather(self._get, children, self._max_parents)
        except StoreError:
            raise
        except Exception as error:
            if len(children) == 1:
                self._fail(children[0], error, now)
                return parents.Gathered({}, [])
        found = [self._gather([child], now) for child in children]
        left = {id: body for one in found for id, body in one.left.items()}
        return parents.Gathered(left, [orphan for one in found for orphan in one.orphans])

    def _overtaken(self, orphans: list[Task]) -> list[Task]:
        """Return those of these claimed tasks that must not run: the delete of a parent has doomed them, or they have
        changed since the claim. The others were revived after the delete and run without that parent."""
        if not orphans:
            return []
        stored = self._get([task.id for task in orphans], brief=True)
        runnable = {(task.id, task.version) for task in stored if not task.doom}
        return [task for task in orphans if (task.id, task.version) not in runnable]

    def _get(self, ids: list[str], **options: bool) -> list[Task]:
        """Read tasks. Raise StoreError for any failure of the store, so that no child is blamed for it."""
        try:
            return self._store.get(ids, **options)
        except StoreError:
            raise
        except Exception as error:
            raise StoreError(f"the store cannot be read: {type(error).__name__}: {error}") from error
