"""Loop: joins the store and the pools of one node, turn by turn.

              +------------------------------- turn(now) -------------------------------------+
    pools --> | collect         turn reports into outcomes, with the transitions of dtq.task  |
              | heartbeat       once a second: renew the leases of the claimed tasks          |
              | fire schedules  add the tasks of schedules that are due                       |
              | commit          store all outcomes in one update; emit events for those       | <--> store
              |                 that the store accepted                                       |
              | reap            once a second: take over tasks of dead nodes; clean up        |
    pools <-- | claim           claim as many tasks as the workers can take; dispatch them    |
              +--> returns when the next turn is due ------------------------------------------+

While tasks come in a stream, one by one, commit and claim are one transaction, and the loop may pause between turns
(coalescer.py).

A turn waits only for the store. While a server handles a commit or a claim, the loop collects reports from the workers
(stores/shared/overlap.py) for the next turn. The clock, the store, the pools and the random numbers are parameters: the
same loop runs on a thread, in a test that steps it by hand, and in a simulation with its own clock.

`turn` never raises. Each step on one task is guarded (guards.py): an exception fails only that attempt. After any other
exception the loop keeps its claims and outcomes and tries again.

    loop.py  -->  claims.py (claim and dispatch)  -->  attempt_tracker.py (claimed tasks and their outcomes)
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

from msgspec.structs import replace

from dtq.errors import StoreError
from dtq.queue.attempt_tracker import ENDING_EVENTS
from dtq.queue.claims import Claimer
from dtq.queue.cleaner import Cleaner
from dtq.queue.coalescer import Coalescer
from dtq.queue.config import QueueConfig
from dtq.queue.events import Emitter
from dtq.queue.guards import MIN_BACKOFF, BatchCommit, with_deliveries
from dtq.queue.handle import Waiters
from dtq.queue.scheduler import MAX_INTERVAL, Scheduler
from dtq.stores.protocol import Node, Outcome, Store
from dtq.stores.shared.overlap import while_waiting
from dtq.task.transitions import release
from dtq.workers import backend
from dtq.workers.groups import WorkerGroup

log = logging.getLogger("dtq")

HEARTBEAT = 1.0  # seconds between heartbeats, and between searches for dead nodes
REAPED_PER_TURN = 100  # tasks of dead nodes that one turn takes over
INFINITE = float("inf")
DEFAULTS = QueueConfig()


class Loop(Claimer):
    """The loop of one node. One thread calls all methods, except `post` and `health`."""

    def __init__(
        self, store: Store, groups: Sequence[WorkerGroup], events: Emitter, waiters: Waiters,
        config: QueueConfig = DEFAULTS, *, types: Callable[[], Iterable[str]] = tuple,
        each_heartbeat: Callable[[], None] = lambda: None, ahead: Callable[[], float] | None = None,
        monotonic: Callable[[], float] = time.monotonic, coalescer: Coalescer | None = None,
    ) -> None:  # fmt: skip
        """`types` returns the types that this node handles. `each_heartbeat` is called once a second. `ahead` returns
        the seconds by which the clock of `turn` is ahead of the machine's. `coalescer` decides about pauses between
        turns."""
        id = f"{socket.gethostname()}-{os.getpid()}-{os.urandom(2).hex()}"
        ahead = ahead or partial(getattr, store, "ahead", 0.0)  # a server's clock may differ from the machine's
        scheduler = Scheduler(store, id, config.lease)
        super().__init__(id, store, groups, events, scheduler, config, ahead, monotonic)
        self.idle = True  # nothing is claimed, and the last claim found nothing
        self._waiters = waiters
        self._interval = min(HEARTBEAT, config.lease / 3)  # seconds between heartbeats
        self._reap_from = 0.0  # earliest time to take over tasks of other nodes
        self._types = types
        self._cleaner = Cleaner(store, config.cleanup_age, config.dead_age, config.dead_limit)
        self._fires_schedules = not config.is_inline
        self._each_heartbeat = each_heartbeat
        self._worker_infos: list[backend.WorkerInfo] = []  # as of the last heartbeat
        self._metrics: dict[str, Any] = {}
        self._posts: deque[Callable[[], None]] = deque()
        self._started_at = 0.0
        self._coalescer = coalescer or Coalescer()
        self._pause = 0.0  # seconds until the next turn, for which hints of changes may wait
        self._batch = BatchCommit(lambda outcomes: store.update(outcomes), self._instead)

    def post(self, action: Callable[[], None]) -> None:
        """Run `action` on the loop's thread at the beginning of the next turn. Any thread may call this."""
        self._posts.append(action)

    def health(self) -> float:
        """Return the seconds since the store last answered a claim or a heartbeat; infinite before the first answer.
        Any thread may call this."""
        return self._monotonic() - self._answered_at

    @property
    def is_pausing(self) -> bool:
        """True if the time of the next turn should be waited for, whatever happens until then."""
        return self._pause > 0

    @property
    def trouble(self) -> Exception | None:
        """The error of the last turn that no task is to blame for; None if there was none."""
        return self._backoff.error

    def turn(self, now: float) -> float:
        """Do everything that can be done at `now`. Return the time at which the next turn is due (UTC seconds)."""
        self._notice_leap(now)
        self._backoff.begin_turn()
        self._pause = 0.0
        self._do_posts()
        self._collect(now)
        due = now
        try:
            due = self._serve(now)
        except Exception as error:
            self._back_off(error)
        self._backoff.end_turn()
        pools = min(self._pool_deadlines(now), default=INFINITE)
        if self._backoff.wait:
            return min(now + self._backoff.wait, max(pools, now + MIN_BACKOFF))
        if self._pause:
            return min(self._by_now(now) + self._pause, due, self._next_heartbeat, self._next_schedule(), pools)
        if self._posts or self._outcomes:  # they came during this turn, which may have used up their wake-up
            return now
        return min(due, self._next_heartbeat, self._next_schedule(), pools)

    def _notice_leap(self, now: float) -> None:
        """Delay the next reap if the clock leapt forward (the machine slept, or its clock was set). All leases ran out
        in the leap, but their nodes may be alive: give them time to renew."""
        before, began = self._now, self._began
        self._now, self._began = now, self._monotonic()
        if before and (now - before) - (self._began - began) > 2 * self._interval:
            self._reap_from = now + 2 * HEARTBEAT

    def _serve(self, now: float) -> float:
        """Do the steps that need the store. Return when there may be more to do."""
        is_heartbeat = self._heartbeat(now)
        self._fire_schedules(now)
        self._commit(now, collects=not is_heartbeat)
        if is_heartbeat:  # after the commit: a task that ended here must not be taken over
            self._reap(now)
            self._maintain(now)
            self._commit(now)
        due = self._claim(now)
        if is_heartbeat:
            self._answered_at = self._monotonic()
        return due

    def _do_posts(self) -> None:
        while self._posts:
            try:
                self._posts.popleft()()
            except Exception:
                log.exception("an action that was posted to the loop failed; the node continues")

    def _pool_deadlines(self, now: float) -> Iterator[float]:
        for group in self._groups:
            try:
                seconds = group.pool.deadline()
            except Exception as error:
                self._back_off(error)
            else:
                if seconds is not None:
                    yield now + seconds

    # --- heartbeat and reap: once a second

    def _heartbeat(self, now: float) -> bool:
        """Renew the leases and publish this node. Return False if it is not time yet."""
        if now < self._next_heartbeat <= now + HEARTBEAT:  # if it is further away, the clock was set back
            return False
        self._next_heartbeat = now + self._interval
        self._started_at = self._started_at or now
        try:
            lost = self._store.heartbeat(self.node(now), list(self.claimed.values()), self._lease, now)
        except Exception as error:
            self._next_heartbeat = now
            if not isinstance(error, StoreError):  # a handler may have reported a progress that cannot be stored
                self.claimed = {id: replace(task, progress=0.0, note="") for id, task in self.claimed.items()}
            raise
        for task_id in lost:
            self.drop(task_id)
        return True

    def _reap(self, now: float) -> None:
        """Take over the tasks of dead nodes."""
        if now < self._reap_from <= now + 2 * HEARTBEAT:  # if it is further away, the clock was set back
            return
        try:
            lost = self._store.reap(self.id, REAPED_PER_TURN, self._lease, now)
        except Exception:
            self._next_heartbeat = now
            raise
        self._discard_stale(lost)
        self._outcomes += [self._outcome(task, now) for task in lost]

    def _maintain(self, now: float) -> None:
        self._best_effort.run("the clean-up", self._cleaner.turn, now)
        self._best_effort.run("the search for webhooks", self._each_heartbeat)

    def node(self, now: float) -> Node:
        """Return the description of this node that a heartbeat publishes."""
        self._best_effort.run("reading the state of the workers", self._read_workers)
        busy = sum(worker.outstanding > 0 for worker in self._worker_infos)
        metrics = {**self._metrics, "trouble": self._backoff.message} if self._backoff.message else self._metrics
        types = tuple(sorted(self._types()))
        return Node(
            self.id, socket.gethostname(), os.getpid(), self._started_at, now, len(self._worker_infos), busy, types,
            metrics,
        )  # fmt: skip

    def _read_workers(self) -> None:
        self._worker_infos = self.workers()
        self._metrics = self._node_metrics.reading(self._worker_infos)

    # --- schedules

    def _fire_schedules(self, now: float) -> None:
        if now < self._scheduler.due <= now + MAX_INTERVAL:  # if it is further away, the clock was set back
            return
        if self._fires_schedules and not self.draining:
            self._outcomes += self._scheduler.turn(now)

    def _next_schedule(self) -> float:
        return self._scheduler.due if self._fires_schedules and not self.draining else INFINITE

    # --- commit

    def _commit(self, now: float, collects: bool = True) -> None:
        """Store all outcomes. With `collects`, collect reports while the server works."""
        if not self._outcomes:
            return
        outcomes, self._outcomes = self._outcomes, []
        try:
            self._batch.commit(outcomes, partial(self._update, now, collects))
        finally:
            if self._batch.left:
                self._outcomes = [*self._batch.left, *self._outcomes]

    def _update(self, now: float, collects: bool, outcomes: Sequence[Outcome]) -> None:
        """Store these outcomes in one transaction. Announce those that the store accepted."""
        outcomes = with_deliveries(outcomes, now)
        with while_waiting(partial(self._collect, now)) if collects else nullcontext():
            is_stream = collects and self._coalescer.is_on and not self.draining
            accepted = self._exchange(outcomes, now) if is_stream else self._store.update(outcomes)
        ended = [task for task, _ in outcomes if task.id in accepted]
        self._best_effort.run("an event", self._emit_added, outcomes, accepted, now)
        self._best_effort.run("the metrics", self._node_metrics.count, ended)
        if self._waiters or self._events.has_any_listener(ENDING_EVENTS):
            ended = [replace(task, version=task.version + 1) for task in ended]  # as they are stored
            self._best_effort.run("an event", self._emit_endings, ended, now)
            self._best_effort.run("resolving results", self._waiters.resolve, ended)

    # --- claim

    def _claim(self, now: float) -> float:
        """Claim tasks for all groups. Return the time at which there may be more to claim."""
        if self.draining:
            return INFINITE
        short, held, self._found = False, len(self.claimed), 0
        for group in self._groups:
            short |= self._claim_for(group, now)
        if short:  # a backlog does not wait
            self._pause = self._coalescer.pause(self._monotonic(), self._found, held)
        self._note_idleness(now, short)
        due = self._store.next_due(self._claimed_at) if short else None
        return INFINITE if due is None else due

    def _note_idleness(self, now: float, short: bool) -> None:
        was_idle, self.idle = self.idle, short and not self.claimed and not self._outcomes
        if self.idle and not was_idle:
            self._events.emit("queue:idle", now)

    # --- end

    def sign_off(self, now: float) -> None:
        """Release everything that is still claimed, then deregister the node. Raise StoreError if the store fails."""
        self._outcomes += [(release(task), ()) for task in self.claimed.values()]
        self.claimed.clear()
        self._commit(now)
        self._store.heartbeat(self.node(now), (), 0, now)
