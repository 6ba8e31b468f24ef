"""Scheduler: has the schedules' ticks fired when their time comes. One for each node; which of them gets a tick,
`claim` decides."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from dtq.policy import cron
from dtq.stores.protocol import Outcome, Store
from dtq.task.model import Task

log = logging.getLogger("dtq")

MAX_INTERVAL = 1.0  # seconds, at most, between looks: another process may add a schedule
MIN_INTERVAL = 0.05  # seconds, at least, between looks: what comes due next may be a task of any kind
TICKS_PER_TURN = 25  # ticks in one turn


class Scheduler:
    """`due` is the time of the next look."""

    def __init__(self, store: Store, node: str, lease: float) -> None:
        self.due = 0.0
        self._store = store
        self._node = node
        self._lease = lease

    def turn(self, now: float) -> list[Outcome]:
        """The outcomes of the ticks whose time has come. Raises StoreError where none could be claimed."""
        if now < self.due <= now + MAX_INTERVAL:  # further off than that: the clock was set back
            return []
        ticks = self._store.claim(self._node, TICKS_PER_TURN, self._lease, now, {cron.TYPE}, {cron.QUEUE})
        outcomes = self.fire(ticks, now)
        try:
            self.due = self._next_look(now, outcomes)
        except Exception as error:  # the ticks are claimed: they must not wait for their lease to end
            log.warning("no look at what comes next: %s", error)
            self.due = now + MIN_INTERVAL
        return outcomes

    def fire(self, ticks: Sequence[Task], now: float) -> list[Outcome]:
        """The outcomes of these claimed ticks. A tick that failed, and one whose work cannot be added because another
        task has its id, is reported in the log; the schedule shows it as its `problem`."""
        fired = [cron.fire(tick, now) for tick in ticks]
        stored = self._stored([work.id for _, works in fired for work in works])
        outcomes: list[Outcome] = [(cron.blamed(tick, works, stored), works) for tick, works in fired]
        for tick, _ in outcomes:
            if tick.error is not None:
                log.error("the schedule %s: %s", tick.id.removeprefix(cron.FIRST_ID), tick.error)
        return outcomes

    def _stored(self, ids: list[str]) -> dict[str, Task]:
        try:
            return {task.id: task for task in self._store.get(ids)} if ids else {}
        except Exception as error:
            log.warning("no look for tasks that have the ids of a tick's work: %s", error)
            return {}

    def _next_look(self, now: float, outcomes: list[Outcome]) -> float:
        if len(outcomes) == TICKS_PER_TURN or any(
            not tick.is_terminal and (tick.expires or 0) <= now for tick, _ in outcomes
        ):
            return now
        due = [tick.expires for tick, _ in outcomes if tick.expires is not None and not tick.is_terminal]
        if (other := self._store.next_due(now)) is not None:
            due.append(other)
        return min(now + MAX_INTERVAL, max(now + MIN_INTERVAL, min(due, default=now + MAX_INTERVAL)))
