"""Cleaner: removes what ended long ago: some at each beat while there is any, and then a look once a minute."""

from __future__ import annotations

from dtq.queue import dead_letters
from dtq.stores.protocol import Store
from dtq.task.model import TERMINAL

CLEANUP_INTERVAL = 60.0  # seconds between clean-ups
STEPS_PER_HEARTBEAT = 10  # steps of the clean-up in one beat: a store removes up to a thousand tasks in each


class Cleaner:
    """`age`: seconds after its end for which a task is kept (None: for ever); failed ones `dead_age` seconds, and
    `dead_limit` of them at most."""

    def __init__(self, store: Store, age: float | None, dead_age: float | None, dead_limit: int | None) -> None:
        self._store = store
        self._age = age
        self._dead_age = age if dead_age is None else dead_age
        self._dead_limit = dead_limit
        self._next = 0.0

    def turn(self, now: float) -> None:
        if self._age is not None and not now < self._next <= now + CLEANUP_INTERVAL:
            has_more = all(self._remove_old(now, self._age) for _ in range(STEPS_PER_HEARTBEAT))
            self._next = now if has_more else now + CLEANUP_INTERVAL

    def _remove_old(self, now: float, age: float) -> bool:
        """Do one step. Return whether there is more."""
        removed = self._store.purge(now - age, TERMINAL - dead_letters.FAILED)
        return dead_letters.sweep(self._store, now, self._dead_age, self._dead_limit) or removed > 0
