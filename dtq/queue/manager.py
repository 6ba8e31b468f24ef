"""QueueManager: all that one does with a queue except running it. Needs no workers; any number may share a store.

add, add_many --> check, normalise --> store.add --> Handle
cancel, retry --> look, transition, compare-and-set, again if somebody was faster
get, find, stats, delete, cleanup, pause, resume --> store
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from graphlib import CycleError, TopologicalSorter
from types import TracebackType
from typing import Any, Self

from msgspec.structs import replace

from dtq.errors import DuplicateTask, IllegalTransition, InvalidTask, QueueFull, StoreError, UnknownTask
from dtq.policy import cron, limits
from dtq.policy.cron import Misfire, Schedule
from dtq.policy.limits import Limit
from dtq.queue.dead_letters import DeadLetters
from dtq.queue.events import Emitter, Listener
from dtq.queue.flow import Flow
from dtq.queue.handle import Handle, Waiters, wait
from dtq.queue.poller import ResultPoller
from dtq.queue.schedules import Schedules, without_ticks
from dtq.stores.open import open_store
from dtq.stores.protocol import Outcome, Stats, Store, clock_of
from dtq.sync.forks import Forkable
from dtq.task import codec, names, unique
from dtq.task.graph import Graph, Step, bind, named, prefix
from dtq.task.model import TERMINAL, Status, Task, check, entering, new_id
from dtq.task.options import task_of
from dtq.task.transitions import cancel, prioritise, revive
from dtq.task.unique import Rule
from dtq.webhooks import deliveries

MIB = 1 << 20
GIB = 1 << 30
MAX_FOUND = 10_000  # tasks, at most, that `find` gives at once


class QueueManager(Forkable):
    """Adds tasks to a store, looks after them, and waits for them.

    `backlog_limit` is how many tasks may be unfinished before `add` raises QueueFull (None: any number), `max_payload`
    how many bytes of JSON a payload may have. A store that is passed in stays open; one that is named by its URL, which
    `url` keeps, is closed here. `clock` is the store's own where it has one (Redis: the server's), else time.time.
    """

    def __init__(
        self,
        store: str | os.PathLike[str] | Store = "queue.db",
        *,
        backlog_limit: int | None = None,
        max_payload: int = MIB,
        clock: Callable[[], float] | None = None,
    ) -> None:
        _check_limit("max_payload", max_payload, GIB)
        if backlog_limit is not None:
            _check_limit("backlog_limit", backlog_limit, GIB)
        self._owns_store = isinstance(store, (str, os.PathLike))
        self.url = os.fspath(store) if isinstance(store, (str, os.PathLike)) else None
        self.store = open_store(store)
        self.clock = clock or clock_of(self.store)
        self.backlog_limit = backlog_limit
        self.max_payload = max_payload
        self.events = Emitter()
        self.dead = DeadLetters(self.store, self.clock, self.apply)
        self.schedules = Schedules(self.store, self.clock, self._task)
        self._waiters = Waiters()
        self._poller = ResultPoller(self.store, self._waiters, self._has_loop)
        self.follow_forks()

    # --- put in

    def add(self, type: str, payload: Any = None, **options: Any) -> Handle:
        """Stores one task, durably, before it returns. The options are the fields of Task, and `delay` and
        `expires_in` in seconds from now; `after` takes handles too. With a `key`: `window` and `on_conflict` (see
        dtq.task.unique). Raises InvalidTask, QueueFull, DuplicateTask, StoreError: then nothing was stored."""
        rule = unique.rule_of(options) if options.keys() & set(unique.OPTIONS) else None
        given = {name: value for name, value in options.items() if name not in unique.OPTIONS} if rule else options
        task = self._task({"type": type, "payload": payload, **given})
        return self._store([task])[0] if rule is None else self._store_unique(task, rule)

    def add_many(self, tasks: Iterable[Task | Mapping[str, Any]]) -> list[Handle]:
        """Stores all of these or none, in one commit: Tasks, or dictionaries of what `add` takes. They are all of the
        time of the call."""
        now = self.clock()
        return self._store([self._task(task, now) for task in tasks])

    def add_checked(self, tasks: Iterable[Task]) -> list[Handle]:
        """As `add_many`, for callers within dtq that have refused reserved names (`dtq.task.names`) and then set keys
        their own."""
        now = self.clock()
        return self._store([self._entering(task, now) for task in tasks])

    def flow(self, graph: Graph | Mapping[str, Step], id: str | None = None) -> Flow:
        """Stores a whole graph of tasks in one commit: what `chain`, `group` and `chord` give, or name -> step, where
        `after` tells names. `id`: the flow's own; adding it again gives the flow that is there."""
        flow_id = new_id(self.clock()) if id is None else _flow_id(id)
        steps = bind(graph if isinstance(graph, Graph) else named(graph), flow_id)
        return Flow(flow_id, [handle.id for handle in self.add_many(steps)], self)

    def get_flow(self, id: str) -> Flow:
        """A flow that was added before, here or elsewhere. Raises UnknownTask."""
        if not names.can_exist(id) or prefix(id) == names.OURS:
            raise UnknownTask(f"no flow has the id {id!r}: it was never added, or all of it was cleaned up")
        return Flow.find(id, self)

    def _store(self, tasks: list[Task]) -> list[Handle]:
        _refuse_cycles(tasks)
        self._require_room(len(tasks))
        ids = self.store.add(tasks)
        self._added([task for task, id in zip(tasks, ids, strict=True) if task.id == id])
        return [Handle(id, self) for id in ids]

    def _store_unique(self, task: Task, rule: Rule) -> Handle:
        """Adds the task, or takes the key from the one that has it, or leaves all as it is; again, where somebody else
        was faster."""
        while (handle := self._store([task])[0]).id != task.id:
            for holder in self.store.get([handle.id]):
                if holder.key != task.key:  # it has given way to somebody else by now
                    continue
                if (ceding := unique.give_way(holder, task, rule, self.clock())) is None:
                    if rule.on_conflict == "reject":
                        raise DuplicateTask(holder)
                    return handle
                told = () if holder.is_terminal else deliveries.deliveries(ceding, self.clock())
                if self.store.update([(ceding, [task, *told])]):
                    if not holder.is_terminal:
                        self._ended(replace(ceding, version=ceding.version + 1, key=None))
                    self._added([task])
                    return Handle(task.id, self)
        return handle

    def _added(self, tasks: Sequence[Task]) -> None:
        if self.events.hears("task:added"):
            now = self.clock()
            for task in tasks:
                self.events.emit("task:added", now, task)

    def _require_room(self, n: int) -> None:
        if self.backlog_limit is not None and (backlog := self.stats().unfinished) + n > self.backlog_limit:
            raise QueueFull(
                f"{backlog:,} tasks are unfinished, the limit is {self.backlog_limit:,}: {n:,} more do not fit"
            )

    def _task(self, given: Task | Mapping[str, Any], now: float | None = None) -> Task:
        now = self.clock() if now is None else now
        task = given if isinstance(given, Task) else task_of(given, now)
        if task.version or task.status != Status.PENDING:
            raise InvalidTask(f"task {task.id} comes from a store: add a new Task, or use retry")
        if task is given:  # `task_of` has looked at the others
            names.refuse_reserved(task)
        return self._entering(task, now)

    def _entering(self, task: Task, now: float) -> Task:
        return entering(task, now, codec.normalise(task.payload, self.max_payload, "payload"))

    # --- look

    def get(self, task_id: str) -> Task:
        """The task as it is now. Raises UnknownTask."""
        for task in self.store.get([task_id] if names.can_exist(task_id) else []):
            return task
        raise UnknownTask(f"no task has the id {task_id!r}: it was never added, or was deleted or cleaned up")

    def find(
        self, *, status: str | None = None, queue: str | None = None, type: str | None = None,
        finished_after: float | None = None, after: str = "", limit: int = 100, brief: bool = False,
    ) -> list[Task]:  # fmt: skip
        """Return up to `limit` tasks by id, oldest first; the next page follows the last id: `after=page[-1].id`. The
        ticks of schedules are returned only where `queue` names their queue.

        With `brief`, the tasks come without payload, result, history, log and traceback: a page then takes little
        memory, however large its tasks are.
        """
        names.check_filters(queue=queue, type=type)
        if status is not None and status not in set(Status):
            raise InvalidTask(f"status is {status!r}; allowed: one of {', '.join(Status)}")
        _check_limit("limit", limit, MAX_FOUND)
        find = partial(
            self.store.find, status=status, queue=queue, type=type, finished_after=finished_after, brief=brief
        )
        page = find(after=after, limit=limit)
        shown = [task for task in page if task.queue != cron.QUEUE or queue == cron.QUEUE]
        if len(shown) < len(page) == limit:  # by their ids, all ticks stand together: the rest comes after them
            shown += find(after=max(page[-1].id, cron.END_ID), limit=limit - len(shown))
        return shown

    def stats(self) -> Stats:
        """What is in the store; schedules are no tasks, and not counted."""
        return without_ticks(self.store.stats())

    # --- change

    def cancel(self, task_id: str) -> Task:
        """Ends a task that waits or runs; of one that runs, this attempt is stopped. Raises UnknownTask,
        IllegalTransition."""
        task = self._change(task_id, lambda task: cancel(task, self.clock()))
        self._ended(task)
        return task

    def retry(self, task_id: str) -> Task:
        """Starts a failed or cancelled task afresh. Raises UnknownTask, IllegalTransition."""
        task = self._change(task_id, lambda task: revive(task, self.clock()))
        self._added([task])
        return task

    def prioritise(self, task_id: str, priority: int) -> Task:
        """Lets a task that waits go before or behind others. Raises UnknownTask, InvalidTask, IllegalTransition where
        it waits no more (a node claims some tasks ahead of their start)."""
        return self._change(task_id, lambda task: prioritise(task, priority))

    def _change(self, task_id: str, transition: Callable[[Task], Task]) -> Task:
        _refuse_tick(task_id)
        while True:
            task = transition(self.get(task_id))
            if self.store.update([(task, deliveries.deliveries(task, self.clock()))]):
                return replace(task, version=task.version + 1)

    def apply(self, outcomes: Sequence[Outcome]) -> list[Task]:
        """Hands in many changes in one commit, tells of them, and gives the tasks of which nobody else was faster."""
        accepted = self.store.update(deliveries.with_deliveries(outcomes, self.clock()))
        changed = [replace(task, version=task.version + 1) for task, _ in outcomes if task.id in accepted]
        for task in changed:
            if task.is_terminal:
                self._ended(task)
        if revived := [task for task in changed if task.status == Status.PENDING]:
            self._added(revived)
        return changed

    def _ended(self, task: Task) -> None:
        self.events.emit(f"task:{task.status}", self.clock(), task)
        self._waiters.resolve([task])

    def delete(self, *task_ids: str) -> int:
        """Remove these tasks, except those that run (cancel them first). Return how many were removed. What waits for
        one of them gets UnknownTask. Raises IllegalTransition for the tick of a schedule."""
        for task_id in task_ids:
            _refuse_tick(task_id)
        removed = self.store.delete([task_id for task_id in task_ids if names.can_exist(task_id)])
        self._poller.hint()
        return removed

    def cleanup(self, age: float = 86400.0, statuses: Iterable[str] = TERMINAL) -> int:
        """Removes tasks that ended more than `age` seconds ago; gives how many."""
        total, before, wanted = 0, self.clock() - age, frozenset(statuses)
        while removed := self.store.purge(before, wanted):
            total += removed
        return total

    def pause(self, queue: str = "default") -> None:
        """Nothing of this queue starts any more, on any node, until `resume`; what runs goes on. Raises InvalidTask
        where no user's queue can have this name."""
        names.check_free("queue", queue)
        self.store.set_lane(queue=queue, paused=True)
        self.events.emit("queue:paused", self.clock(), queue=queue)

    def resume(self, queue: str = "default") -> None:
        """Lets tasks of a paused queue start again. Raises InvalidTask where no user's queue can have this name."""
        if not self._stands(queue, None, None):
            names.check_free("queue", queue)
        self.store.set_lane(queue=queue, paused=False)
        self.events.emit("queue:resumed", self.clock(), queue=queue)

    def limit(
        self, queue: str | None = None, type: str | None = None, key: str | None = None, *, rate: float | None = None,
        burst: int | None = None, max_running: int | None = None,
    ) -> Limit:  # fmt: skip
        """Holds the tasks that are meant to a limit, on all nodes together: those of a queue, a type, a limit key, or
        all three; None means any, and key="*" each key on its own.

        `rate` is how many may start in a second, `burst` how many of them at once (what comes in a tenth of a second,
        if nothing is said), `max_running` how many may run. What is None stays as it is, 0 takes a limit away. Waiting
        costs no attempt. Raises DTQError, InvalidTask.
        """
        _check_selector(queue, type, key)
        self.store.set_lane(queue, type, key, **limits.changes(rate, burst, max_running))
        return next((at for at in self.limits() if at.selector == (queue, type, key)), Limit(queue, type, key))

    def limits(self) -> list[Limit]:
        """All that holds tasks back: limits, and queues that are paused."""
        return self.store.stats().limits

    def unlimit(self, queue: str | None = None, type: str | None = None, key: str | None = None) -> None:
        """Takes the limit away that was set with these very names. A pause stays. Raises InvalidTask where no limit can
        have them."""
        if not self._stands(queue, type, key):
            _check_selector(queue, type, key)
        self.store.set_lane(queue, type, key, rate=0, burst=1, max_running=0)

    def _stands(self, *selector: str | None) -> bool:
        """Whether there is a limit of these names, whatever they are: an older dtq accepted every name."""
        return selector in [limit.selector for limit in self.limits()]

    def schedule(
        self, name: str, cron: str | None = None, type: str | None = None, payload: Any = None, *,
        every: float | None = None, tz: str = "UTC", misfire: Misfire = "once", **options: Any,
    ) -> Schedule:  # fmt: skip
        """Adds a task of this type at each tick: of a cron expression in a time zone, or `every` so many seconds. The
        options are those of `add`; `expires_in` counts from the tick. The same name again edits the schedule.

        Nodes fire the ticks, each of them once; `dtq.policy.cron.Schedule` explains `misfire`. Raises InvalidTask.
        """
        task = {"type": type, "payload": payload, **options}
        return self.schedules.put(Schedule(name, task, cron, every, tz, misfire))

    # --- wait

    def wait_for(self, task_id: str, timeout: float | None = None) -> Task:
        """Return the task when it has ended. `timeout`: seconds, None for as long as it takes. Raises UnknownTask, also
        where it is deleted meanwhile; TimeoutError; DTQError where the queue is closed before the task has ended."""
        future = self.future_of(task_id)
        try:
            return wait(future, timeout)
        except TimeoutError:
            pass
        finally:
            future.cancel()
        task = self._last_look(task_id, timeout)
        if task.is_terminal:
            return task
        raise TimeoutError(f"task {task_id} is still {task.status} after {timeout} s")

    def _last_look(self, task_id: str, timeout: float | None) -> Task:
        try:
            return self.get(task_id)
        except StoreError as error:
            raise TimeoutError(
                f"task {task_id} was not seen to end within {timeout} s; its store cannot be read now: {error}"
            ) from None

    def future_of(self, task_id: str) -> Future[Task]:
        """Return a future of the ended task; cancel it to stop waiting. Raises UnknownTask."""
        names.can_exist(task_id)
        future = self._waiters.future(task_id)
        try:
            self._waiters.resolve([self.get(task_id)])  # it may have ended before it was waited for
            self._waiters.require_open(task_id)
            if not future.done():
                self._poller.start()
        except BaseException:
            future.cancel()
            raise
        return future

    def _has_loop(self) -> bool:
        """Return whether a loop of this queue reads the store's descriptor, and resolves what ends here."""
        return False

    # --- events, end

    def on(self, name: str, listener: Listener) -> Listener:
        """Calls `listener(event)` at each event of this name ("*" for all), on a thread of its own."""
        return self.events.on(name, listener)

    def once(self, name: str, listener: Listener) -> Listener:
        return self.events.once(name, listener)

    def off(self, name: str, listener: Listener) -> None:
        self.events.off(name, listener)

    def in_child(self) -> None:
        """After a fork: this is a manager of its own, and what waits or listens is in the parent."""
        self._waiters.in_child()
        self._poller.in_child()

    def close(self) -> None:
        self._waiters.fail_all("the queue was closed", for_good=self._owns_store)
        self._poller.close()
        self.events.close()
        if self._owns_store:
            self.store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _flow_id(id: str) -> str:
    check(Task(type="flow", id=id))
    if not id or "." in id:
        raise InvalidTask(f"the id of the flow is {id!r}; allowed: the id of a task, without a dot")
    return id


def _check_selector(queue: str | None, type: str | None, key: str | None) -> None:
    """Raise InvalidTask where no limit can have these names. Deliveries of webhooks may be held to one, ticks not."""
    if queue is not None:
        names.check_free("queue", queue)
    if type is not None and type != deliveries.TYPE:
        names.check_free("type", type)
    if key is not None:
        names.check_text("limit_key", key, 0)


def _refuse_tick(task_id: str) -> None:
    """Raise IllegalTransition for the tick of a schedule: only `schedules` changes these."""
    if isinstance(task_id, str) and task_id.startswith(cron.FIRST_ID):
        name = task_id.removeprefix(cron.FIRST_ID)
        raise IllegalTransition(f"{task_id} is no task but the schedule {name!r}: use schedules.pause, resume, remove")


def _check_limit(name: str, value: Any, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise InvalidTask(f"{name} is {value!r}; allowed: a whole number from 1 to {most:,}")


def _refuse_cycles(tasks: Sequence[Task]) -> None:
    if any(task.after for task in tasks):
        try:
            TopologicalSorter({task.id: task.after for task in tasks}).prepare()
        except CycleError as error:
            raise InvalidTask(
                f"after makes a circle, in which nothing could ever start: {' -> '.join(error.args[1])}"
            ) from None
