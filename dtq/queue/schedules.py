"""Schedules: what one does with the schedules of a queue. Needs no workers; what a schedule is stands in cron.py.

put --> add the tick, or edit it     pause, resume, remove --> change it     (compare-and-set, again if it moved)
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
Check = Callable[[Mapping[str, Any]], Task]  # from options to the task that they describe; raises InvalidTask


class Schedules:
    """The schedules in a store, by name. Every change may be made from any process, at any time."""

    def __init__(self, store: Store, clock: Callable[[], float], check: Check) -> None:
        self._store = store
        self._clock = clock
        self._check = check

    def put(self, schedule: Schedule) -> Schedule:
        """Adds the schedule, or edits the one that has its name. Raises InvalidTask, as it would for its tasks."""
        schedule = replace(schedule, task=self._work(schedule.task))
        cron.check(schedule)
        while True:
            for tick in self._store.get([cron.tick_id(schedule.name)]):
                if not cron.is_genuine(tick):
                    self._drop(tick)
                elif (done := self._update(tick, cron.edited(tick, schedule, self._clock()))) is not None:
                    return done
            self._store.add([cron.first_tick(schedule, self._clock())])  # unless it is there by now

    def _work(self, given: Mapping[str, Any]) -> dict[str, Any]:
        cron.refuse_unfit(given)
        return cron.work_of(given, self._check(given))

    def __iter__(self) -> Iterator[Schedule]:
        after = ""
        while page := self._store.find(queue=cron.QUEUE, type=cron.TYPE, after=after, limit=SCHEDULES_PER_READ):
            yield from (cron.shown(tick) for tick in page if _stands(tick))
            after = page[-1].id

    def get(self, name: str) -> Schedule:
        """Raises UnknownSchedule."""
        return cron.shown(self._tick(name))

    def upcoming(self, name: str, n: int = 5) -> list[datetime]:
        """Its next n ticks, in its own time zone; none while it is paused. Raises UnknownSchedule."""
        return cron.upcoming(self.get(name), self._clock(), n)

    def pause(self, name: str) -> Schedule:
        """No more ticks until `resume`. Raises UnknownSchedule."""
        return self._change(name, lambda tick: cron.paused(tick, True, self._clock()))

    def resume(self, name: str) -> Schedule:
        """Goes on with the next tick from now. Raises UnknownSchedule."""
        return self._change(name, lambda tick: cron.paused(tick, False, self._clock()))

    def remove(self, name: str) -> None:
        """What its ticks have added so far stays. Raises UnknownSchedule."""
        while not self._drop(self._tick(name)):
            pass

    def _drop(self, tick: Task) -> bool:
        """Removes the tick, if it is still at this version; a node may have it in hand."""
        gone = tick.is_terminal or self._store.update([(cancel(tick, self._clock(), "the schedule was removed"), ())])
        return bool(gone) and self._store.delete([tick.id]) >= 0

    def _tick(self, name: str) -> Task:
        for tick in self._store.get([cron.tick_id(name)] if names.can_exist(name, "name of the schedule") else []):
            if _stands(tick):
                return tick
        raise UnknownSchedule(f"no schedule has the name {name!r}: it was never made, or was removed")

    def _change(self, name: str, change: Callable[[Task], Task]) -> Schedule:
        while True:
            tick = self._tick(name)
            if tick.is_terminal or not cron.is_genuine(tick):
                raise UnknownSchedule(f"the schedule {name!r} has failed, so make it again: {cron.shown(tick).problem}")
            if (done := self._update(tick, change(tick))) is not None:
                return done

    def _update(self, tick: Task, changed: Task) -> Schedule | None:
        """What the schedule is now; None where somebody else has changed it meanwhile."""
        if changed == tick or self._store.update([(changed, ())]):
            return cron.schedule_of(changed)
        return None


def _stands(tick: Task) -> bool:
    """Whether it is to be shown: it was not removed. One that failed is, with its problem."""
    return tick.id.startswith(cron.FIRST_ID) and tick.status != Status.CANCELLED


def without_ticks(stats: Stats) -> Stats:
    """What is in the store beside the schedules."""
    if cron.QUEUE not in stats.queues:
        return stats
    queues = {name: counts for name, counts in stats.queues.items() if name != cron.QUEUE}
    types = {name: counts for name, counts in stats.types.items() if name != cron.TYPE}
    counts = {status: sum(of.get(status, 0) for of in queues.values()) for status in stats.counts}
    rest = replace(stats, counts=counts, queues=queues, types=types)
    return rest if rest.unfinished else replace(rest, oldest=None)
