"""FaultyStore: a store that loses and repeats messages, and whose disk is slow or full, on purpose."""

from __future__ import annotations

import os
import time
from typing import Any

from dtq.errors import StoreError
from dtq.stores.open import open_store
from dtq.stores.protocol import Store
from dtq.testing.wrapper import StoreWrapper


class FaultyStore(StoreWrapper):
    """Forwards every call to another store, and fails when told to.

    Args:
        store: The store, or the URL of one.
    """

    def __init__(self, store: str | os.PathLike[str] | Store) -> None:
        super().__init__(open_store(store))
        self.url = os.fspath(store) if isinstance(store, (str, os.PathLike)) else None
        self.delay = 0.0  # seconds before each write
        self.is_full = False
        self.to_lose: set[str] = set()  # methods whose next reply is lost
        self.to_repeat: set[str] = set()  # methods whose next message arrives twice

    def __getattr__(self, name: str) -> Any:
        if name == "exchange":  # update and claim are messages of their own here, so that either can be lost
            raise AttributeError(name)
        return super().__getattr__(name)

    def call(self, name: str, *args: Any, **options: Any) -> Any:
        """Make a call of the store, with the faults that are on. Raise StoreError where the disk is full, or the reply
        is lost."""
        time.sleep(self.delay)
        if self.is_full:
            raise StoreError(f"{name}: nothing was stored, the disk is full (injected by the fault lab)")
        reply = super().call(name, *args, **options)
        if reply and _removed(self.to_repeat, name):
            reply = self._repeat(name, reply, *args, **options)
        if reply and _removed(self.to_lose, name):
            raise StoreError(f"{name}: the reply was lost (injected by the fault lab)")
        return reply

    def _repeat(self, name: str, reply: Any, *args: Any, **options: Any) -> Any:
        """Return the last task of a claim twice. Make every other call a second time."""
        if name == "claim":
            return [*reply, reply[-1]]
        super().call(name, *args, **options)
        return reply


def _removed(names: set[str], name: str) -> bool:
    """Remove a name from the set. Return True if it was there; of several threads, one gets True."""
    try:
        names.remove(name)
    except KeyError:
        return False
    return True
