"""Scheduler: fires the ticks of schedules that are due. Each node has one; `claim` assigns each tick to a single
node."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from dtq.policy import cron
from dtq.stores.protocol import Outcome, Store
from dtq.task.model import Task

log = logging.getLogger("dtq")

MAX_INTERVAL = 1.0  # seconds between two searches, at most: another process may add a schedule
MIN_INTERVAL = 0.05  # seconds between two searches, at least: the next due task may be of any type
TICKS_PER_TURN = 25  # ticks that one turn claims


class Scheduler:
    """Claims and fires ticks for `node`. `due` is the time of the next `turn` (UTC seconds)."""

    def __init__(self, store: Store, node: str, lease: float) -> None:
        self.due = 0.0
        self._store = store
        self._node = node
        self._lease = lease

    def turn(self, now: float) -> list[Outcome]:
        """Claim the ticks that are due. Return their outcomes. Raise StoreError if the claim fails."""
        ticks = self._store.claim(self._node, TICKS_PER_TURN, self._lease, now, {cron.TYPE}, {cron.QUEUE})
        outcomes = self.fire(ticks, now)
        try:
            self.due = self._next_search(now, outcomes)
        except Exception as error:  # fire the claimed ticks now, not after their lease
            log.warning("the time of the next schedule cannot be read: %s", error)
            self.due = now + MIN_INTERVAL
        return outcomes

    def fire(self, ticks: Sequence[Task], now: float) -> list[Outcome]:
        """Return the outcomes of these claimed ticks. Log a tick that failed, and one whose task cannot be added
        because another task has its id; the schedule shows the reason as its `problem`."""
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
            log.warning("tasks with the ids that a tick wants to add cannot be read: %s", error)
            return {}

    def _next_search(self, now: float, outcomes: list[Outcome]) -> float:
        if len(outcomes) == TICKS_PER_TURN or any(
            not tick.is_terminal and (tick.expires or 0) <= now for tick, _ in outcomes
        ):
            return now
        due = [tick.expires for tick, _ in outcomes if tick.expires is not None and not tick.is_terminal]
        if (other := self._store.next_due(now)) is not None:
            due.append(other)
        return min(now + MAX_INTERVAL, max(now + MIN_INTERVAL, min(due, default=now + MAX_INTERVAL)))
