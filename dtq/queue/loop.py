"""Loop: joins the store and the pools, one turn after the other.

              +------------------------------ turn(now) ------------------------------+
    pools --> | hear    reports become outcomes, by the pure transitions of dtq.task.model  |
              | beat    once a second: the leases of what is held                     |
              | tick    schedules whose time has come plant their work                |
              | commit  all outcomes in one update; events for those it accepted      | <--> store
              | sweep   once a second: what others have lost; clean-up                |
    pools <-- | claim   as many tasks as the workers can take; dispatch them          |
              +--> when the next turn is due, if nothing happens before ---------------+

A turn waits for nothing but the store. While the server of one is busy with a commit or a claim, the workers are heard
(stores/shared/overlap.py), and what they say is for the next turn. Time comes in from outside, and so do the store, the
pools and chance: the same loop runs under a thread, under a test that steps it by hand, and under a simulation with a
clock of its own.

`turn` raises nothing. Each step on one task has a guard of its own (see guarded.py): an exception fails that attempt
alone. After any other exception the loop keeps its claims and outcomes, and tries again.
"""

from __future__ import annotations

import logging
import os
import random
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

from msgspec.structs import replace

from dtq.errors import StoreError
from dtq.queue.attempts import ENDING_EVENTS, AttemptTracker
from dtq.queue.cleaner import Cleaner
from dtq.queue.events import Emitter
from dtq.queue.guards import MIN_BACKOFF, BatchCommit, with_deliveries
from dtq.queue.handle import Waiters
from dtq.queue.scheduler import Scheduler
from dtq.stores.protocol import Node, Outcome, Store, clock_offset
from dtq.stores.shared.overlap import while_waiting
from dtq.task.model import Task
from dtq.task.transitions import fail, release
from dtq.webhooks import deliveries
from dtq.workers import backend
from dtq.workers.groups import WorkerGroup
from dtq.workers.run import parents

log = logging.getLogger("dtq")

HEARTBEAT = 1.0  # seconds between heartbeats, and between looks for dead nodes
REAPED_PER_TURN = 100  # tasks taken over in one turn


class Loop(AttemptTracker):
    """One node's loop. All methods are called by one thread, except `post`."""

    def __init__(
        self, store: Store, groups: Sequence[WorkerGroup], events: Emitter, waiters: Waiters, *, lease: float = 30.0,
        types: Callable[[], Iterable[str]] = tuple, cleanup_age: float | None = 86400.0,
        dead_age: float | None = None, dead_limit: int | None = None, max_parents: int = parents.MAX_PARENTS,
        ticks: bool = True, each_heartbeat: Callable[[], None] = lambda: None, ahead: Callable[[], float] | None = None,
        chance: Callable[[], float] = random.random, monotonic: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        id = f"{socket.gethostname()}-{os.getpid()}-{os.urandom(2).hex()}"
        ahead = ahead or partial(clock_offset, store)
        super().__init__(id, groups, events, Scheduler(store, id, lease), ahead, chance, monotonic)
        self._store = store
        self.idle = True  # nothing held, and nothing found at the last look
        self._waiters = waiters
        self._lease = lease
        self._interval = min(HEARTBEAT, lease / 3)  # seconds between heartbeats
        self._reap_from = 0.0  # nothing is taken over before
        self._types = types
        self._cleaner = Cleaner(store, cleanup_age, dead_age, dead_limit)
        self._max_parents = max_parents
        self._ticks = ticks
        self._each_heartbeat = each_heartbeat
        self._census: list[backend.WorkerInfo] = []  # as last taken
        self._metrics: dict[str, Any] = {}
        self._began = 0.0  # this turn, by the monotonic clock
        self._posts: deque[Callable[[], None]] = deque()
        self._started_at = 0.0
        self._answered_at = float("-inf")  # by `monotonic`
        self._one_by_one = False  # claim one task next: a dispatch failed
        self._batch = BatchCommit(lambda outcomes: store.update(outcomes), self._instead)

    def post(self, action: Callable[[], None]) -> None:
        """Has the action done at the beginning of the next turn, by the loop's thread. From any thread."""
        self._posts.append(action)

    def health(self) -> float:
        """Seconds since the store last answered a claim (or, while the workers have all they can take, a heartbeat);
        infinite before the first. From any thread."""
        return self._monotonic() - self._answered_at

    @property
    def trouble(self) -> Exception | None:
        """Return what went wrong in the last turn without a task being to blame; None while all is well."""
        return self._backoff.error

    def turn(self, now: float) -> float:
        """Do all that can be done now. Return the time by which the next turn is due."""
        self._notice_leap(now)
        self._backoff.begin_turn()
        self._do_posts()
        self._collect(now)
        due = now
        try:
            due = self._serve(now)
        except Exception as error:
            self._back_off(error)
        self._backoff.end_turn()
        pools = min(self._pool_deadlines(now), default=float("inf"))
        if self._backoff.wait:
            return min(now + self._backoff.wait, max(pools, now + MIN_BACKOFF))
        if self._posts or self._outcomes:  # that came in this turn: the wake-up may be spent
            return now
        return min(due, self._next_heartbeat, self._next_schedule(), pools)

    def _notice_leap(self, now: float) -> None:
        """After a sleep of the machine, or where its clock was set forward, leases have run out and their nodes live:
        let all of them renew their leases before any is taken over."""
        before, began = self._now, self._began
        self._now, self._began = now, self._monotonic()
        if before and (now - before) - (self._began - began) > 2 * self._interval:
            self._reap_from = now + 2 * HEARTBEAT

    def _serve(self, now: float) -> float:
        """Do what needs the store. Return when there may be more to do."""
        beats = self._heartbeat(now)
        self._fire_schedules(now)
        self._commit(now, listens=not beats)
        if beats:  # only now: what has ended here must not be taken over from us, least of all by us
            self._reap(now)
            self._maintain(now)
            self._commit(now)
        due = self._claim(now)
        if beats:
            self._answered_at = self._monotonic()
        return due

    def _do_posts(self) -> None:
        while self._posts:
            try:
                self._posts.popleft()()
            except Exception:
                log.exception("an action that was posted to the loop failed; the node goes on")

    def _pool_deadlines(self, now: float) -> Iterator[float]:
        for group in self._groups:
            try:
                seconds = group.pool.deadline()
            except Exception as error:
                self._back_off(error)
            else:
                if seconds is not None:
                    yield now + seconds

    # --- beat and sweep: once a second

    def _heartbeat(self, now: float) -> bool:
        """Says whether it was time."""
        if now < self._next_heartbeat <= now + HEARTBEAT:  # further off than that: the clock was set back
            return False
        self._next_heartbeat = now + self._interval
        self._started_at = self._started_at or now
        try:
            lost = self._store.heartbeat(self.node(now), list(self.claimed.values()), self._lease, now)
        except Exception as error:
            self._next_heartbeat = now
            if not isinstance(error, StoreError):  # what a handler said of its progress may be what cannot be written
                self.claimed = {id: replace(task, progress=0.0, note="") for id, task in self.claimed.items()}
            raise
        for task_id in lost:
            self.drop(task_id)
        return True

    def _maintain(self, now: float) -> None:
        self._best_effort.run("the clean-up", self._cleaner.turn, now)
        self._best_effort.run("the look for webhooks", self._each_heartbeat)

    def _reap(self, now: float) -> None:
        if now < self._reap_from <= now + 2 * HEARTBEAT:  # further off than that: the clock was set back
            return
        try:
            lost = self._store.reap(self.id, REAPED_PER_TURN, self._lease, now)
        except Exception:
            self._next_heartbeat = now
            raise
        self._discard_stale(lost)
        self._outcomes += [self._outcome(task, now) for task in lost]

    def node(self, now: float) -> Node:
        self._best_effort.run("the census of the workers", self._take_census)
        busy = sum(worker.outstanding > 0 for worker in self._census)
        metrics = {**self._metrics, "trouble": self._backoff.words} if self._backoff.words else self._metrics
        types = tuple(sorted(self._types()))
        return Node(
            self.id, socket.gethostname(), os.getpid(), self._started_at, now, len(self._census), busy, types,
            metrics,
        )  # fmt: skip

    def _take_census(self) -> None:
        self._census = self.workers()
        self._metrics = self._metrics_of_node.reading(self._census)

    # --- tick

    def _fire_schedules(self, now: float) -> None:
        if self._ticks and not self.draining:
            self._outcomes += self._scheduler.turn(now)

    def _next_schedule(self) -> float:
        return self._scheduler.due if self._ticks and not self.draining else float("inf")

    # --- commit

    def _commit(self, now: float, listens: bool = True) -> None:
        if not self._outcomes:
            return
        kept, self._outcomes = self._outcomes, []
        try:
            self._batch.commit(kept, partial(self._update, now, listens))
        finally:
            if self._batch.left:
                self._outcomes = [*self._batch.left, *self._outcomes]

    def _update(self, now: float, listens: bool, kept: Sequence[Outcome]) -> None:
        outcomes = with_deliveries(kept, now)
        with while_waiting(partial(self._collect, now)) if listens else nullcontext():  # outcomes for the next time
            accepted = self._store.update(outcomes)
        ended = [task for task, _ in outcomes if task.id in accepted]
        self._best_effort.run("an event", self._emit_successors, outcomes, accepted, now)
        self._best_effort.run("the meter", self._metrics_of_node.count, ended)
        if self._waiters or self._events.hears_any(ENDING_EVENTS):
            ended = [replace(task, version=task.version + 1) for task in ended]  # as they are stored
            self._best_effort.run("an event", self._emit_endings, ended, now)
            self._best_effort.run("the notice of an ending", self._waiters.resolve, ended)

    # --- claim

    def _claim(self, now: float) -> float:
        """Fills the workers; gives the time at which there may be more to claim."""
        if self.draining:
            return float("inf")
        short, at = False, now  # a claim found less than was wanted; when it was made
        for group in self._groups:
            for n, types in group.pool.capacity():
                at = self._by_now(now)  # a rate that is told an earlier time lets pass too much
                n = 1 if self._one_by_one else n
                with while_waiting(partial(self._collect, now)):
                    tasks = self._store.claim(
                        self.id, n, self._lease, at, types, group.spec.queues, group.spec.min_priority
                    )
                self._answered_at = self._monotonic()
                short |= len(tasks) < n
                self._discard_stale(tasks)
                if deliveries.TYPE in types:
                    tasks = self._without_forged(tasks, now)
                self._take(group.pool, tasks, now)
        self._note_idleness(now, short)
        due = self._store.next_due(at) if short else None
        return float("inf") if due is None else due

    def _by_now(self, now: float) -> float:
        """What the time is, in a turn that began at `now`."""
        return now + self._monotonic() - self._began

    def _is_late(self, tasks: Iterable[Task], now: float) -> bool:
        """Whether half of a lease is over before anything was done: the process was frozen in this turn, or waited for
        one that was, or was answered late. Others may take such tasks over at any moment, so they go back."""
        now = self._by_now(now)
        return any((task.lease_until or 0.0) - now < self._lease / 2 for task in tasks)

    def _without_forged(self, tasks: list[Task], now: float) -> list[Task]:
        """Fail the deliveries that no ending planted. Return the other tasks."""
        forged = [t for t in tasks if t.type == deliveries.TYPE and not t.doom and not deliveries.is_genuine(t)]
        self._outcomes += [(deliveries.refuse(task, now), ()) for task in forged]
        return [task for task in tasks if task not in forged] if forged else tasks

    def _take(self, pool: backend.WorkerBackend, tasks: list[Task], now: float) -> None:
        doomed = [task for task in tasks if task.doom]
        self._outcomes += [self._outcome(task, now) for task in doomed]
        runnable = [task for task in tasks if not task.doom] if doomed else tasks
        if self._is_late(runnable, now):
            self._requeue(runnable)
        elif runnable:
            self._track(runnable)
            left = self._left_by_parents(runnable, now)
            self._do_posts()  # a handler that was registered before its task was added comes before it here too
            self._dispatch(pool, [task for task in runnable if task.id in self.claimed], left, now)

    def _dispatch(self, pool: backend.WorkerBackend, tasks: list[Task], left: Mapping[str, bytes], now: float) -> None:
        """A pool reports a task that it cannot hand over. Where it raises all the same, a lone task is to blame; of
        several all go back, and come again one by one."""
        try:
            pool.dispatch(tasks, left) if left else pool.dispatch(tasks)
            self._one_by_one = False
        except (OSError, MemoryError) as error:
            self._requeue(tasks)
            self._back_off(error)
        except Exception as error:
            self._one_by_one = len(tasks) > 1
            if self._one_by_one:
                log.error("a pool has failed to take %d tasks: they come again one by one", len(tasks), exc_info=error)
                self._requeue(tasks)
            else:
                self._fail(tasks[0], error, now)

    def _left_by_parents(self, tasks: list[Task], now: float) -> dict[str, bytes]:
        """Return what the parents of these claimed tasks left, by the id of the child. Fail a child whose parents left
        too much; release one that must not run after all."""
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
        """Read the parents of all children at once or, where that raises, of one child after the other. Fail a child
        whose parents cannot be read."""
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
        """Return those of these claimed tasks that must not run: a delete of a parent after the claim has doomed them,
        or they have changed since. The others came back from their end after the delete, and run without it."""
        if not orphans:
            return []
        stored = {task.id: task for task in self._get([task.id for task in orphans], brief=True)}
        runnable = {(task.id, task.version) for task in stored.values() if not task.doom}
        return [task for task in orphans if (task.id, task.version) not in runnable]

    def _get(self, ids: list[str], **options: bool) -> list[Task]:
        """Read tasks. Raises StoreError for whatever the store raises: no child is to blame for it."""
        try:
            return self._store.get(ids, **options)
        except StoreError:
            raise
        except Exception as error:
            raise StoreError(f"the store cannot be read: {type(error).__name__}: {error}") from error

    def _note_idleness(self, now: float, short: bool) -> None:
        was_idle, self.idle = self.idle, short and not self.claimed and not self._outcomes
        if self.idle and not was_idle:
            self._events.emit("queue:idle", now)

    # --- end

    def sign_off(self, now: float) -> None:
        """The last words: what still runs is given back as if it had not begun, and the node takes its leave."""
        self._outcomes += [(release(task), ()) for task in self.claimed.values()]
        self.claimed.clear()
        self._commit(now)
        self._store.heartbeat(self.node(now), (), 0, now)
