"""Cleaner: removes tasks that ended long ago: once a minute, and at each heartbeat while more are left."""

from __future__ import annotations

from dtq.queue import dead_letters
from dtq.stores.protocol import Store
from dtq.task.model import TERMINAL

CLEANUP_INTERVAL = 60.0  # seconds between clean-ups
STEPS_PER_HEARTBEAT = 10  # a store removes up to a thousand tasks in each step


class Cleaner:
    """Removes tasks `age` seconds after their end (None: never), but failed tasks after `dead_age` seconds (None:
    `age`). It keeps at most `dead_limit` failed tasks (None: any number)."""

    def __init__(self, store: Store, age: float | None, dead_age: float | None, dead_limit: int | None) -> None:
        self._store = store
        self._age = age
        self._dead_age = age if dead_age is None else dead_age
        self._dead_limit = dead_limit
        self._next = 0.0

    def turn(self, now: float) -> None:
        """Do some steps of the clean-up if it is due."""
        if self._age is not None and not now < self._next <= now + CLEANUP_INTERVAL:
            has_more = all(self._remove_old(now, self._age) for _ in range(STEPS_PER_HEARTBEAT))
            self._next = now if has_more else now + CLEANUP_INTERVAL

    def _remove_old(self, now: float, age: float) -> bool:
        """Do one step. Return whether more tasks are left to remove."""
        removed = self._store.purge(now - age, TERMINAL - dead_letters.FAILED)
        return dead_letters.trim(self._store, now, self._dead_age, self._dead_limit) or removed > 0
