"""StoreWrapper and SkewedClock: where the lab, chaos runs and simulations put faults between a queue and its store.

TaskQueue --claim, update, ...--> StoreWrapper.call --> the store       a subclass fails, waits or records in `call`
          --get, stats, wait ...----------------------> the store
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

from dtq.stores.protocol import Store

WRITES = frozenset({"add", "claim", "update", "exchange", "heartbeat", "reap", "set_lane", "delete", "purge"})


class StoreWrapper:
    """Passes each write to `store` through `call`. Everything else is the store's own."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.store, name)
        return partial(self.call, name) if name in WRITES else found

    def call(self, name: str, *args: Any, **options: Any) -> Any:
        """Make a call of the store. Return what it returns."""
        return getattr(self.store, name)(*args, **options)


class SkewedClock:
    """A clock that is wrong by `offset` seconds, for the `clock` of a queue. Workers read the right time, so the start
    and the end of their tasks are right.

    Args:
        clock: Returns the right time, in UTC seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self.offset = 0.0
        self._clock = clock

    def __call__(self) -> float:
        """Return the time in UTC seconds."""
        return self._clock() + self.offset
