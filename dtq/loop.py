"""Loop: joins the store and the pools, one turn after the other.

              +------------------------------ turn(now) ------------------------------+
    pools --> | hear    reports become outcomes, by the pure transitions of dtq.task  |
              | beat    once a second: the leases of what is held                     |
              | tick    schedules whose time has come plant their work                |
              | commit  all outcomes in one update; events for those it accepted      | <--> store
              | sweep   once a second: what others have lost; clean-up                |
    pools <-- | claim   as many tasks as the workers can take; dispatch them          |
              +--> when the next turn is due, if nothing happens before ---------------+

A turn waits for nothing but the store. While the server of one is busy with a commit or a claim, the workers are heard
(dtq.stores.meanwhile), and what they say is for the next turn. Time comes in from outside, and so do the store, the
pools and chance: the same loop runs under a thread, under a test that steps it by hand, and under a simulation with a
clock of its own.
"""

from __future__ import annotations

import logging
import os
import random
import socket
import time
from collections import deque
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial

from msgspec.structs import replace

from dtq import cron, deadletters, parents, reports, webhooks
from dtq.errors import StoreError
from dtq.events import Emitter
from dtq.handle import Endings
from dtq.meter import Meter
from dtq.reports import Finished, Logged, Progressed, Report, Returned, Started, WorkerChanged
from dtq.staff import Staff
from dtq.stores import Node, Outcome, Store, ahead_of_here
from dtq.stores.meanwhile import meanwhile
from dtq.task import EXPIRED, TERMINAL, Status, Task, cancel, end_doomed, fail, interrupt, release, succeed
from dtq.ticker import Ticker

log = logging.getLogger("dtq")

BEAT = 1.0  # seconds between heartbeats, and between looks for dead nodes
CLEANUP = 60.0  # seconds between clean-ups
PURGES = 10  # steps of the clean-up in one beat: a store removes up to a thousand tasks in each
REAP = 100  # tasks taken over in one turn
TROUBLE = 2.0  # seconds, at most, until a store that failed is tried again


class Loop:
    """One node's loop. All methods are called by one thread, except `post`."""

    def __init__(
        self, store: Store, staff: Sequence[Staff], events: Emitter, endings: Endings, *, lease: float = 30.0,
        types: Callable[[], Iterable[str]] = tuple, cleanup_age: float | None = 86400.0,
        dead_age: float | None = None, dead_limit: int | None = None, max_parents: int = parents.MAX_PARENTS,
        ticks: bool = True, each_beat: Callable[[], None] = lambda: None,
        chance: Callable[[], float] = random.random, monotonic: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self.id = f"{socket.gethostname()}-{os.getpid()}-{os.urandom(2).hex()}"
        self.held: dict[str, Task] = {}  # claimed and not yet ended, as last heard of
        self.draining = False
        self.idle = True  # nothing held, and nothing found at the last look
        self._store = store
        self._staff = staff
        self._events = events
        self._endings = endings
        self._lease = lease
        self._types = types
        self._cleanup_age = cleanup_age
        self._dead_age = cleanup_age if dead_age is None else dead_age
        self._dead_limit = dead_limit
        self._max_parents = max_parents
        self._ticks = ticks
        self._each_beat = each_beat
        self._chance = chance
        self._ticker = Ticker(store, self.id, lease)
        self._meter = Meter(monotonic)
        self._monotonic = monotonic
        self._began = 0.0  # this turn, by the monotonic clock
        self._posts: deque[Callable[[], None]] = deque()
        self._outcomes: list[Outcome] = []
        self._next_beat = self._next_cleanup = 0.0
        self._started_at = 0.0
        self._answered_at = float("-inf")  # by `monotonic`
        self._trouble = 0.0  # seconds to wait before the store is tried again; 0 while all is well

    def post(self, action: Callable[[], None]) -> None:
        """Has the action done at the beginning of the next turn, by the loop's thread. From any thread."""
        self._posts.append(action)

    def health(self) -> float:
        """Seconds since the store last answered a claim (or, while the workers have all they can take, a heartbeat);
        infinite before the first. From any thread."""
        return self._monotonic() - self._answered_at

    def turn(self, now: float) -> float:
        """Does all that can be done now; gives the time by which the next turn is due."""
        self._began = self._monotonic()
        self._do_posts()
        self._hear(now)
        try:
            beats = self._beat(now)
            self._tick(now)
            self._commit(now, listens=not beats)
            if beats:  # only now: what has ended here must not be taken over from us, least of all by us
                self._sweep(now)
                self._commit(now)
            due = self._claim(now)
            self._trouble = 0.0
            if beats:
                self._answered_at = self._monotonic()
        except StoreError as error:
            due = now + self._hold_on(error)
        if self._posts or (self._outcomes and not self._trouble):  # that came in this turn: the wake-up may be spent
            return now
        return min(due, self._next_beat, self._next_tick(), *self._pool_deadlines(now))

    def _do_posts(self) -> None:
        while self._posts:
            self._posts.popleft()()

    def _hold_on(self, error: StoreError) -> float:
        """The store cannot be reached or written: outcomes are kept, and it is tried again after a growing while."""
        if not self._trouble:
            log.error("the store failed; work goes on and outcomes are kept: %s", error)
        self._trouble = min(self._trouble * 2 or 0.05, TROUBLE)
        return self._trouble

    def _pool_deadlines(self, now: float) -> Iterable[float]:
        return (now + seconds for group in self._staff if (seconds := group.pool.deadline()) is not None)

    # --- hear: reports become outcomes

    def _hear(self, now: float) -> None:
        for group in self._staff:
            said = group.pool.poll()
            self._meter.hear(said)
            for report in said:
                self._hear_one(report, now)

    def _hear_one(self, report: Report, now: float) -> None:
        if isinstance(report, WorkerChanged):
            self._next_beat = now  # others want to know
            self._tell_of_worker(report, now)
        elif (task := self._current(report.task)) is None:
            return  # cancelled, or lost to another node: whatever became of it is no longer ours to say
        elif isinstance(report, Finished):
            self._finish(task, report)
        elif isinstance(report, Returned):
            self._end(release(task))
        elif isinstance(report, Started):
            if self._events.hears("task:started"):
                self._events.emit("task:started", report.at + ahead_of_here(self._store), task, report.worker)
        elif isinstance(report, Progressed):
            self.held[task.id] = task = replace(task, progress=report.percent, note=report.note)
            self._events.emit("task:progress", now, task)
        elif isinstance(report, Logged):
            self._events.emit("task:log", now, task, text=report.text)

    def _current(self, task: Task) -> Task | None:
        """The task as it is held, if this very attempt is."""
        held = self.held.get(task.id)
        return held if held is not None and held.version == task.version else None

    def _finish(self, task: Task, report: Finished) -> None:
        started_at = report.started_at + ahead_of_here(self._store)  # what it says is by the worker's clock
        ended_at = started_at + report.seconds
        task = replace(task, worker=f"{self.id}/{report.worker}", started_at=started_at, log=report.log)
        if report.error is None:
            self._end(succeed(task, report.result, ended_at))
        elif report.discarded:
            self._end(cancel(task, ended_at, report.error.message, report.error.type))
        else:
            self._end(fail(task, report.error, ended_at, self._chance, final=report.final, delay=report.delay))

    def _end(self, task: Task) -> None:
        del self.held[task.id]
        self._outcomes.append((task, ()))

    def _tell_of_worker(self, report: WorkerChanged, now: float) -> None:
        self._events.emit(
            f"worker:{report.state}", now, None, f"{self.id}/{report.worker}", pid=report.pid, signal=report.signal,
            exit_code=report.exit_code, reason=report.reason,
        )  # fmt: skip

    # --- beat and sweep: once a second

    def _beat(self, now: float) -> bool:
        """Says whether it was time."""
        if now < self._next_beat <= now + BEAT:  # further off than that: the clock was set back
            return False
        self._next_beat = now + min(BEAT, self._lease / 3)
        self._started_at = self._started_at or now
        for task_id in self._store.heartbeat(self.node(now), list(self.held.values()), self._lease, now):
            self.drop(task_id)
        return True

    def _sweep(self, now: float) -> None:
        for task in self._store.reap(self.id, REAP, self._lease, now):
            self._outcomes.append(self._ending(task, now) if task.doom else (interrupt(task, now), ()))
        self._clean_up(now)
        self._each_beat()

    def _clean_up(self, now: float) -> None:
        """Removes what ended long ago: some at each beat while there is any, and then a look each CLEANUP."""
        if self._cleanup_age is not None and not now < self._next_cleanup <= now + CLEANUP:
            has_more = all(self._remove_old(now, self._cleanup_age) for _ in range(PURGES))
            self._next_cleanup = now if has_more else now + CLEANUP

    def _remove_old(self, now: float, age: float) -> bool:
        """One step of it; says whether there is more."""
        removed = self._store.purge(now - age, TERMINAL - deadletters.FAILED)
        return deadletters.sweep(self._store, now, self._dead_age, self._dead_limit) or removed > 0

    def node(self, now: float) -> Node:
        workers = self.workers()
        busy = sum(worker.outstanding > 0 for worker in workers)
        types = tuple(sorted(self._types()))
        return Node(
            self.id, socket.gethostname(), os.getpid(), self._started_at, now, len(workers), busy, types,
            self._meter.reading(workers),
        )  # fmt: skip

    def workers(self) -> list[reports.WorkerInfo]:
        return [worker for group in self._staff for worker in group.pool.workers()]

    def drop(self, task_id: str) -> None:
        """The attempt is no longer ours: it is stopped, and what it gives is not heard."""
        if task := self.held.pop(task_id, None):
            for group in self._staff:
                group.pool.stop(task)

    def end_by_request(self, task: Task) -> None:
        """The task was cancelled here, whether it waited or ran."""
        self._meter.count([task])
        self.drop(task.id)

    # --- tick

    def _tick(self, now: float) -> None:
        if self._ticks and not self.draining:
            self._outcomes += self._ticker.turn(now)

    def _next_tick(self) -> float:
        return self._ticker.due if self._ticks and not self.draining else float("inf")

    # --- commit

    def _commit(self, now: float, listens: bool = True) -> None:
        if not self._outcomes:
            return
        kept, self._outcomes = self._outcomes, []
        outcomes = webhooks.announced(kept, now)
        try:
            with meanwhile(partial(self._hear, now)) if listens else nullcontext():  # outcomes for the next time
                accepted = self._store.update(outcomes)
        except StoreError:
            self._outcomes = kept + self._outcomes
            raise
        ended = [task for task, _ in outcomes if task.id in accepted]
        self._tell_of_successors(outcomes, accepted, now)
        self._meter.count(ended)
        if self._endings or self._events.hears_any(_OF_ENDINGS):
            ended = [replace(task, version=task.version + 1) for task in ended]  # as they are stored
            self._tell_of_endings(ended, now)
            self._endings.settle(ended)

    def _tell_of_endings(self, ended: Iterable[Task], now: float) -> None:
        for task in ended:
            if task.error is not None and task.error.type == EXPIRED:
                self._events.emit("task:expired", now, task)
            if task.status != Status.PENDING:
                self._events.emit(_ENDINGS[task.status], now, task, task.worker)

    def _tell_of_successors(self, outcomes: Iterable[Outcome], accepted: Container[str], now: float) -> None:
        if self._events.hears("task:added"):
            for task, successors in outcomes:
                for successor in successors if task.id in accepted else ():
                    self._events.emit("task:added", now, successor)

    # --- claim

    def _claim(self, now: float) -> float:
        """Fills the workers; gives the time at which there may be more to claim."""
        if self.draining:
            return float("inf")
        short, at = False, now  # a claim found less than was wanted; when it was made
        for group in self._staff:
            for n, types in group.pool.wants():
                at = self._by_now(now)  # a rate that is told an earlier time lets pass too much
                with meanwhile(partial(self._hear, now)):
                    tasks = self._store.claim(
                        self.id, n, self._lease, at, types, group.spec.queues, group.spec.min_priority
                    )
                self._answered_at = self._monotonic()
                short |= len(tasks) < n
                self._disregard(tasks)
                if webhooks.TYPE in types:
                    tasks = self._without_forged(tasks, now)
                self._take(group.pool, tasks, now)
        self._note_idleness(now, short)
        due = self._store.next_due(at) if short else None
        return float("inf") if due is None else due

    def _by_now(self, now: float) -> float:
        """What the time is, in a turn that began at `now`."""
        return now + self._monotonic() - self._began

    def _without_forged(self, tasks: list[Task], now: float) -> list[Task]:
        """Fail the deliveries that no ending planted. Return the other tasks."""
        forged = [t for t in tasks if t.type == webhooks.TYPE and not t.doom and not webhooks.is_genuine(t)]
        self._outcomes += [(webhooks.refuse(task, now), ()) for task in forged]
        return [task for task in tasks if task not in forged] if forged else tasks

    def _disregard(self, tasks: Iterable[Task]) -> None:
        """They were claimed while workers were heard: an outcome of theirs is of an attempt that was lost before."""
        if self._outcomes:
            claimed = {task.id for task in tasks}
            self._outcomes = [outcome for outcome in self._outcomes if outcome[0].id not in claimed]

    def _give_back(self, tasks: list[Task]) -> None:
        for task in tasks:
            self.drop(task.id)  # an earlier attempt, of which nobody has said yet that it is lost
            self._outcomes.append((release(task), ()))

    def _is_late(self, tasks: Iterable[Task], now: float) -> bool:
        """Whether half of a lease is over before anything was done: the process was frozen in this turn, or waited for
        one that was, or was answered late. Others may take such tasks over at any moment, so they go back."""
        now = self._by_now(now)
        return any((task.lease_until or 0.0) - now < self._lease / 2 for task in tasks)

    def _take(self, pool: reports.Pool, tasks: list[Task], now: float) -> None:
        doomed = [task for task in tasks if task.doom]
        self._outcomes += [self._ending(task, now) for task in doomed]
        runnable = [task for task in tasks if not task.doom] if doomed else tasks
        if self._is_late(runnable, now):
            self._give_back(runnable)
        elif runnable:
            self.held.update({task.id: task for task in runnable})
            left = self._left_by_parents(runnable, now)
            self._do_posts()  # a handler that was registered before its task was added comes before it here too
            tasks = [task for task in runnable if task.id in self.held]
            pool.dispatch(tasks, left) if left else pool.dispatch(tasks)

    def _left_by_parents(self, tasks: list[Task], now: float) -> dict[str, bytes]:
        """What the parents of these tasks left, by the task's id. A task for which it is too much fails."""
        children = [task for task in tasks if task.after]
        if not children:
            return {}
        try:
            left = parents.gather(self._store.get, children, self._max_parents)
        except StoreError:
            for task in tasks:
                self._end(release(task))
            raise
        for task in children:
            if task.id not in left:
                error = parents.too_large(task, self._max_parents)
                self._end(fail(task, error, now, self._chance, final=True))
        return left

    def _ending(self, task: Task, now: float) -> Outcome:
        """The outcome of a task that `claim` gave out marked: not to be run."""
        return self._ticker.fire([task], now)[0] if task.type == cron.TYPE else (end_doomed(task, now), ())

    def _note_idleness(self, now: float, short: bool) -> None:
        was_idle, self.idle = self.idle, short and not self.held and not self._outcomes
        if self.idle and not was_idle:
            self._events.emit("queue:idle", now)

    # --- end

    def drain(self) -> None:
        """No more claims; what has not started comes back."""
        self.draining = True
        self.recall()

    def recall(self) -> None:
        for group in self._staff:
            group.pool.recall()

    def is_drained(self) -> bool:
        return self.draining and not self.held and not self._outcomes

    def leave(self, now: float) -> None:
        """The last words: what still runs is given back as if it had not begun, and the node takes its leave."""
        self._outcomes += [(release(task), ()) for task in self.held.values()]
        self.held.clear()
        self._commit(now)
        self._store.heartbeat(self.node(now), (), 0, now)


_ENDINGS: Mapping[Status, str] = {
    Status.COMPLETED: "task:completed",
    Status.FAILED: "task:failed",
    Status.RETRYING: "task:retrying",
    Status.CANCELLED: "task:cancelled",
}
_OF_ENDINGS = frozenset({*_ENDINGS.values(), "task:expired"})
