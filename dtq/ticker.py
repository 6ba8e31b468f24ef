"""Ticker: has the schedules' ticks fired when their time comes. One for each node; which of them gets a tick, `claim`
decides."""

from __future__ import annotations

from dtq import cron
from dtq.stores import Outcome, Store

LOOK = 1.0  # seconds, at most, between looks: another process may add a schedule
PAUSE = 0.05  # seconds, at least, between looks: what comes due next may be a task of any kind
BATCH = 25  # ticks in one turn


class Ticker:
    """`due` is the time of the next look."""

    def __init__(self, store: Store, node: str, lease: float) -> None:
        self.due = 0.0
        self._store = store
        self._node = node
        self._lease = lease

    def turn(self, now: float) -> list[Outcome]:
        """The outcomes of the ticks whose time has come."""
        if now < self.due <= now + LOOK:  # further off than that: the clock was set back
            return []
        ticks = self._store.claim(self._node, BATCH, self._lease, now, {cron.TYPE}, {cron.QUEUE})
        outcomes: list[Outcome] = [cron.fire(tick, now) for tick in ticks]
        self.due = self._next_look(now, outcomes)
        return outcomes

    def _next_look(self, now: float, outcomes: list[Outcome]) -> float:
        if len(outcomes) == BATCH or any((tick.expires or 0) <= now for tick, _ in outcomes):
            return now
        due = [tick.expires for tick, _ in outcomes if tick.expires is not None]
        if (other := self._store.next_due(now)) is not None:
            due.append(other)
        return min(now + LOOK, max(now + PAUSE, min(due, default=now + LOOK)))
