"""QueueManager: everything that one does with a queue except running it. Any number of managers may share a store.

add, add_many --> check, normalise --> store.add --> Handle
cancel, retry --> read, transition, compare-and-set; again if the task changed meanwhile
get, find, stats, delete, cleanup --> store

    manager.py  -->  lanes.py (pause, limit)  -->  client.py (read, wait, events)
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from graphlib import CycleError, TopologicalSorter
from typing import Any

from msgspec.structs import replace

from dtq.errors import DuplicateTask, IllegalTransition, InvalidTask, QueueFull, UnknownTask
from dtq.policy import cron
from dtq.policy.cron import Misfire, Schedule
from dtq.queue.dead_letters import DeadLetters
from dtq.queue.flow import Flow
from dtq.queue.handle import Handle
from dtq.queue.lanes import LaneControls
from dtq.queue.schedules import Schedules, without_ticks
from dtq.stores.protocol import Outcome, Stats, Store
from dtq.task import codec, names, unique
from dtq.task.graph import Graph, Step, bind, named, prefix
from dtq.task.model import TERMINAL, Status, Task, check, entering, new_id
from dtq.task.options import task_of
from dtq.task.transitions import cancel, prioritise, revive
from dtq.task.unique import Rule
from dtq.webhooks import deliveries

DEFAULT_MAX_JSON = 1 << 20  # bytes of a payload, or of a result
LARGEST_LIMIT = 1 << 30
MAX_FOUND = 10_000  # tasks that one `find` may return


class QueueManager(LaneControls):
    """Adds tasks to a store, changes them, and waits for them. It needs no workers.

    Args:
        store: A store, which stays open, or the URL or path of one, which `close` closes.
        backlog_limit: How many tasks may be unfinished before `add` raises QueueFull; None: any number.
        max_payload: How many bytes of JSON a payload may have.
        clock: Returns the time, in UTC seconds. None: the store's own clock (Redis: the server's), or else time.time.

    Raises:
        InvalidTask: A limit is out of range.
        StoreError: The store cannot be opened.
    """

    def __init__(
        self,
        store: str | os.PathLike[str] | Store = "queue.db",
        *,
        backlog_limit: int | None = None,
        max_payload: int = DEFAULT_MAX_JSON,
        clock: Callable[[], float] | None = None,
    ) -> None:
        _check_limit("max_payload", max_payload, LARGEST_LIMIT)
        if backlog_limit is not None:
            _check_limit("backlog_limit", backlog_limit, LARGEST_LIMIT)
        super().__init__(store, clock)
        self.backlog_limit = backlog_limit
        self.max_payload = max_payload
        self.dead = DeadLetters(self.store, self.clock, self.apply)
        self.schedules = Schedules(self.store, self.clock, self._task)

    # --- add

    def add(self, type: str, payload: Any = None, **options: Any) -> Handle:
        """Store one task durably.

        Args:
            type: The type of the task, which selects its handler.
            payload: What the handler gets: anything that JSON can express.
            options: The fields of Task; `delay` and `expires_in`, in seconds from now; `after`, which takes handles
                too. With a `key` also `window` and `on_conflict` (see dtq.task.unique).

        Returns the handle of the task, or of the task that has its key. Raises InvalidTask, QueueFull, DuplicateTask or
        StoreError; nothing was stored then.
        """
        rule = unique.rule_of(options) if options.keys() & set(unique.OPTIONS) else None
        given = {name: value for name, value in options.items() if name not in unique.OPTIONS} if rule else options
        task = self._task({"type": type, "payload": payload, **given})
        return self._store([task])[0] if rule is None else self._store_unique(task, rule)

    def add_many(self, tasks: Iterable[Task | Mapping[str, Any]]) -> list[Handle]:
        """Store all of these `tasks` in one commit, or none of them: Tasks, or dictionaries of what `add` takes. All
        get the time of the call. Return their handles, in the same order. Raise as `add` does."""
        now = self.clock()
        return self._store([self._task(task, now) for task in tasks])

    def add_checked(self, tasks: Iterable[Task]) -> list[Handle]:
        """Store these `tasks` as `add_many` does. Return their handles. For callers in dtq that have refused
        reserved names (`dtq.task.names`) and then set keys of their own."""
        now = self.clock()
        return self._store([self._entering(task, now) for task in tasks])

    def flow(self, graph: Graph | Mapping[str, Step], id: str | None = None) -> Flow:
        """Store a whole graph of tasks in one commit.

        Args:
            graph: What `chain`, `group` and `chord` return, or name -> step, where `after` has names.
            id: The id of the flow; None: a new one. Adding the same id again returns the flow that is there.

        Returns the flow. Raises InvalidTask, QueueFull or StoreError; nothing was stored then.
        """
        flow_id = new_id(self.clock()) if id is None else _flow_id(id)
        steps = bind(graph if isinstance(graph, Graph) else named(graph), flow_id)
        return Flow(flow_id, [handle.id for handle in self.add_many(steps)], self)

    def get_flow(self, id: str) -> Flow:
        """Return the flow with this `id`, which any process has added before. Raise UnknownTask if there is none."""
        if not names.can_exist(id) or prefix(id) == names.RESERVED:
            raise UnknownTask(f"no flow has the id {id!r}: it was never added, or all of it was cleaned up")
        return Flow.find(id, self)

    def schedule(
        self, name: str, cron: str | None = None, type: str | None = None, payload: Any = None, *,
        every: float | None = None, tz: str = "UTC", misfire: Misfire = "once", **options: Any,
    ) -> Schedule:  # fmt: skip
        """Add a task at each tick of a schedule. Nodes fire the ticks, each of them once.

        Args:
            name: The name of the schedule. The same name again edits the schedule.
            cron: A cron expression, or `every`: the seconds between two ticks.
            type: The type of the tasks.
            payload: The payload of the tasks.
            every: Seconds between two ticks, instead of `cron`.
            tz: The time zone of `cron`, such as "Europe/Berlin".
            misfire: What to do about ticks that were missed; see `dtq.policy.cron.Schedule`.
            options: The options of `add`; `expires_in` counts from the tick.

        Returns:
            The schedule.

        Raises:
            InvalidTask: The timing or the task is not valid.
        """
        task = {"type": type, "payload": payload, **options}
        return self.schedules.put(Schedule(name, task, cron, every, tz, misfire))

    def _store(self, tasks: list[Task]) -> list[Handle]:
        _refuse_cycles(tasks)
        self._require_room(len(tasks))
        ids = self.store.add(tasks)
        self._added([task for task, id in zip(tasks, ids, strict=True) if task.id == id])
        return [Handle(id, self) for id in ids]

    def _store_unique(self, task: Task, rule: Rule) -> Handle:
        """Add the task, take the key from the task that has it, or change nothing, as the rule demands. Try again if
        that task changed meanwhile."""
        while (handle := self._store([task])[0]).id != task.id:
            for holder in self.store.get([handle.id]):
                if holder.key != task.key:  # it has lost the key meanwhile
                    continue
                if (ceding := unique.release_key(holder, task, rule, self.clock())) is None:
                    if rule.on_conflict == "reject":
                        raise DuplicateTask(holder)
                    return handle
                webhooks = () if holder.is_terminal else deliveries.deliveries(ceding, self.clock())
                if self.store.update([(ceding, [task, *webhooks])]):
                    if not holder.is_terminal:
                        self._ended(replace(ceding, version=ceding.version + 1, key=None))
                    self._added([task])
                    return Handle(task.id, self)
        return handle

    def _added(self, tasks: Sequence[Task]) -> None:
        """Announce tasks that were added or revived."""
        if self.events.has_listeners("task:added"):
            now = self.clock()
            for task in tasks:
                self.events.emit("task:added", now, task)

    def _require_room(self, n: int) -> None:
        if self.backlog_limit is not None and (backlog := self.stats().unfinished) + n > self.backlog_limit:
            limit = f"{backlog:,} tasks are unfinished, the limit is {self.backlog_limit:,}"
            raise QueueFull(f"{limit}: {n:,} more do not fit")

    def _task(self, given: Task | Mapping[str, Any], now: float | None = None) -> Task:
        """Return the checked task that a caller describes. Raise InvalidTask."""
        now = self.clock() if now is None else now
        task = given if isinstance(given, Task) else task_of(given, now)
        if task.version or task.status != Status.PENDING:
            raise InvalidTask(f"task {task.id} comes from a store: add a new Task, or use retry")
        if task is given:  # `task_of` has checked the others
            names.refuse_reserved(task)
        return self._entering(task, now)

    def _entering(self, task: Task, now: float) -> Task:
        return entering(task, now, codec.encoded(task.raw_payload, self.max_payload, "payload"))

    # --- read

    def find(
        self, *, status: str | None = None, queue: str | None = None, type: str | None = None,
        finished_after: float | None = None, after: str = "", limit: int = 100, brief: bool = False,
    ) -> list[Task]:  # fmt: skip
        """Return tasks by id, oldest first.

        Args:
            status: Only tasks with this status.
            queue: Only tasks of this queue. The ticks of schedules are returned only if this names their queue.
            type: Only tasks of this type.
            finished_after: Only tasks that ended later than this, in UTC seconds.
            after: Only tasks after this id. The next page starts after the last id: `after=page[-1].id`.
            limit: How many tasks at most, 1 to 10,000.
            brief: Leave out payload, result, history, log and traceback, so that a page of large tasks stays small.

        Raises:
            InvalidTask: A filter cannot match any task, or the limit is out of range.
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
        if len(shown) < len(page) == limit:  # all ticks are neighbours in the order of ids: continue after them
            shown += find(after=max(page[-1].id, cron.END_ID), limit=limit - len(shown))
        return shown

    def stats(self) -> Stats:
        """Return how many tasks there are, by status, queue and type, and the nodes. Schedules are not counted."""
        return without_ticks(self.store.stats())

    # --- change

    def cancel(self, task_id: str) -> Task:
        """End the task `task_id`, which waits or runs; stop its attempt if it runs. Return the cancelled task. Raise
        UnknownTask; IllegalTransition if it has ended."""
        task = self._change(task_id, lambda task: cancel(task, self.clock()))
        self._ended(task)
        return task

    def retry(self, task_id: str) -> Task:
        """Start the failed or cancelled task `task_id` again, with all its attempts. Return it. Raise UnknownTask;
        IllegalTransition if it is neither."""
        task = self._change(task_id, lambda task: revive(task, self.clock()))
        self._added([task])
        return task

    def prioritise(self, task_id: str, priority: int) -> Task:
        """Give the waiting task `task_id` another `priority` (higher starts earlier). Return it. Raise UnknownTask;
        InvalidTask; IllegalTransition if it does not wait any more (a node claims some tasks ahead of their start)."""
        return self._change(task_id, lambda task: prioritise(task, priority))

    def _change(self, task_id: str, transition: Callable[[Task], Task]) -> Task:
        _refuse_tick(task_id)
        while True:
            task = transition(self.get(task_id))
            if self.store.update([(task, deliveries.deliveries(task, self.clock()))]):
                return replace(task, version=task.version + 1)

    def apply(self, outcomes: Sequence[Outcome]) -> list[Task]:
        """Store many changes in one commit: pairs of a task and its successors, the `outcomes`. Announce them. Return
        the tasks whose change was accepted: nothing else changed them first."""
        accepted = self.store.update(deliveries.with_deliveries(outcomes, self.clock()))
        changed = [replace(task, version=task.version + 1) for task, _ in outcomes if task.id in accepted]
        for task in changed:
            if task.is_terminal:
                self._ended(task)
        if revived := [task for task in changed if task.status == Status.PENDING]:
            self._added(revived)
        return changed

    def _ended(self, task: Task) -> None:
        """Announce a task that a call here has ended, and resolve its futures."""
        self.events.emit(f"task:{task.status}", self.clock(), task)
        self._waiters.resolve([task])

    def delete(self, *task_ids: str) -> int:
        """Remove the tasks with these `task_ids`, except those that run (cancel them first). Waiters for one of them
        get UnknownTask. Return how many were removed. Raise IllegalTransition for the tick of a schedule."""
        for task_id in task_ids:
            _refuse_tick(task_id)
        removed = self.store.delete([task_id for task_id in task_ids if names.can_exist(task_id)])
        self._poller.hint()
        return removed

    def cleanup(self, age: float = 86400.0, statuses: Iterable[str] = TERMINAL) -> int:
        """Remove the tasks with one of these `statuses` that ended more than `age` seconds ago. Return how many were
        removed."""
        total, before, wanted = 0, self.clock() - age, frozenset(statuses)
        while removed := self.store.purge(before, wanted):
            total += removed
        return total


def _flow_id(id: str) -> str:
    check(Task(type="flow", id=id))
    if not id or "." in id:
        raise InvalidTask(f"the id of the flow is {id!r}; allowed: the id of a task, without a dot")
    return id


def _refuse_tick(task_id: str) -> None:
    """Raise IllegalTransition for the tick of a schedule: only `schedules` changes these."""
    if isinstance(task_id, str) and task_id.startswith(cron.FIRST_ID):
        name = task_id.removeprefix(cron.FIRST_ID)
        raise IllegalTransition(f"{task_id} is no task but the schedule {name!r}: use schedules.pause, resume, remove")


def _check_limit(name: str, value: Any, largest: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= largest:
        raise InvalidTask(f"{name} is {value!r}; allowed: a whole number from 1 to {largest:,}")


def _refuse_cycles(tasks: Sequence[Task]) -> None:
    if any(task.after for task in tasks):
        try:
            TopologicalSorter({task.id: task.after for task in tasks}).prepare()
        except CycleError as error:
            cycle = " -> ".join(error.args[1])
            raise InvalidTask(f"after makes a cycle, in which no task could ever start: {cycle}") from None
