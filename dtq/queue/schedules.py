"""Schedules: add, change, read and remove the schedules of a queue. Needs no workers. policy/cron.py defines schedules.

put --> add the tick, or edit it     pause, resume, remove --> change it     (compare-and-set, again after a conflict)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Any

from msgspec.structs import replace

from dtq.errors import UnknownSchedule
from dtq.policy import cron
from dtq.policy.cron import Schedule
from dtq.stores.protocol import Stats, Store
from dtq.task import names
from dtq.task.model import Status, Task
from dtq.task.transitions import cancel

SCHEDULES_PER_READ = 1000
Check = Callable[[Mapping[str, Any]], Task]  # returns the task that these options describe; raises InvalidTask


class Schedules:
    """The schedules of a store, by name. Any process may change them at any time.

    Args:
        store: Where the schedules are.
        clock: Returns the time, in UTC seconds.
        check: Returns the task that the options of a schedule describe, or raises InvalidTask.
    """

    def __init__(self, store: Store, clock: Callable[[], float], check: Check) -> None:
        self._store = store
        self._clock = clock
        self._check = check

    def put(self, schedule: Schedule) -> Schedule:
        """Add the schedule, or edit the one with its name. Return it as stored. Raise InvalidTask if its options,
        timing or task are not valid."""
        schedule = replace(schedule, task=self._task_options(schedule.task))
        cron.check(schedule)
        while True:
            for tick in self._store.get([cron.tick_id(schedule.name)]):
                if not cron.is_genuine(tick):
                    self._drop(tick)
                elif (done := self._update(tick, cron.edited(tick, schedule, self._clock()))) is not None:
                    return done
            self._store.add([cron.first_tick(schedule, self._clock())])  # adds nothing if another process was faster

    def _task_options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        cron.refuse_unfit(given)
        return cron.work_of(given, self._check(given))

    def __iter__(self) -> Iterator[Schedule]:
        """Yield all schedules, by name."""
        after = ""
        while page := self._store.find(queue=cron.QUEUE, type=cron.TYPE, after=after, limit=SCHEDULES_PER_READ):
            yield from (cron.shown(tick) for tick in page if _is_listed(tick))
            after = page[-1].id

    def get(self, name: str) -> Schedule:
        """Return the schedule with this name. Raise UnknownSchedule if there is none."""
        return cron.shown(self._tick(name))

    def upcoming(self, name: str, n: int = 5) -> list[datetime]:
        """Return the next `n` ticks of the schedule with this `name`, in its own time zone; none while it is paused.
        Raise UnknownSchedule if there is none."""
        return cron.upcoming(self.get(name), self._clock(), n)

    def pause(self, name: str) -> Schedule:
        """Fire no ticks of the schedule with this `name` until `resume`. Return it. Raise UnknownSchedule if there is
        none."""
        return self._change(name, lambda tick: cron.paused(tick, True, self._clock()))

    def resume(self, name: str) -> Schedule:
        """Continue the schedule with this `name` at its next tick from now. Return it. Raise UnknownSchedule if there
        is none."""
        return self._change(name, lambda tick: cron.paused(tick, False, self._clock()))

    def remove(self, name: str) -> None:
        """Remove the schedule with this `name`; the tasks that it has added stay. Raise UnknownSchedule if there is
        none."""
        while not self._drop(self._tick(name)):
            pass

    def _drop(self, tick: Task) -> bool:
        """Remove the tick. Return False if it has changed since it was read: a node may be firing it."""
        gone = tick.is_terminal or self._store.update([(cancel(tick, self._clock(), "the schedule was removed"), ())])
        return bool(gone) and self._store.delete([tick.id]) >= 0

    def _tick(self, name: str) -> Task:
        for tick in self._store.get([cron.tick_id(name)] if names.can_exist(name, "name of the schedule") else []):
            if _is_listed(tick):
                return tick
        raise UnknownSchedule(f"no schedule has the name {name!r}: it was never added, or was removed")

    def _change(self, name: str, change: Callable[[Task], Task]) -> Schedule:
        while True:
            tick = self._tick(name)
            if tick.is_terminal or not cron.is_genuine(tick):
                raise UnknownSchedule(f"the schedule {name!r} has failed; add it again: {cron.shown(tick).problem}")
            if (done := self._update(tick, change(tick))) is not None:
                return done

    def _update(self, tick: Task, changed: Task) -> Schedule | None:
        """Store the changed tick. Return the schedule; None if another process changed it first."""
        if changed == tick or self._store.update([(changed, ())]):
            return cron.schedule_of(changed)
        return None


def _is_listed(tick: Task) -> bool:
    """Return whether the schedule of this tick is listed: it was not removed. A failed one is listed with its
    problem."""
    return tick.id.startswith(cron.FIRST_ID) and tick.status != Status.CANCELLED


def without_ticks(stats: Stats) -> Stats:
    """Return these figures without the ticks of schedules."""
    if cron.QUEUE not in stats.queues:
        return stats
    queues = {name: counts for name, counts in stats.queues.items() if name != cron.QUEUE}
    types = {name: counts for name, counts in stats.types.items() if name != cron.TYPE}
    counts = {status: sum(of.get(status, 0) for of in queues.values()) for status in stats.counts}
    rest = replace(stats, counts=counts, queues=queues, types=types)
    return rest if rest.unfinished else replace(rest, oldest=None)
