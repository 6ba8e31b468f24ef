"""The parts of a queue that can fail on purpose: a store that loses and repeats messages, and a clock that is wrong."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from dtq.errors import StoreError
from dtq.stores.open import open_store
from dtq.stores.protocol import Store

WRITES = frozenset({"add", "claim", "update", "heartbeat", "reap", "set_lane", "delete", "purge"})


def _forward(name: str) -> Callable[..., Any]:
    def method(self: FaultyStore, *args: Any, **options: Any) -> Any:
        return self._call(name, *args, **options)

    return method


class FaultyStore:
    """Forwards every call to another store, and fails when told to.

    Args:
        store: The store, or the URL of one.
    """

    add = _forward("add")
    claim = _forward("claim")
    update = _forward("update")
    heartbeat = _forward("heartbeat")
    reap = _forward("reap")
    get = _forward("get")
    find = _forward("find")
    stats = _forward("stats")
    set_lane = _forward("set_lane")
    next_due = _forward("next_due")
    delete = _forward("delete")
    purge = _forward("purge")
    fileno = _forward("fileno")
    wait = _forward("wait")
    close = _forward("close")

    def __init__(self, store: str | os.PathLike[str] | Store) -> None:
        self.url = os.fspath(store) if isinstance(store, (str, os.PathLike)) else None
        self.store = open_store(store)
        self.delay = 0.0  # seconds before each write
        self.is_full = False
        self.to_lose: set[str] = set()  # methods whose next reply is lost
        self.to_repeat: set[str] = set()  # methods whose next message arrives twice

    def _call(self, name: str, *args: Any, **options: Any) -> Any:
        if name in WRITES:
            time.sleep(self.delay)
            if self.is_full:
                raise StoreError(f"{name}: nothing was stored, the disk is full (injected by the fault lab)")
        reply = getattr(self.store, name)(*args, **options)
        if reply and _removed(self.to_repeat, name):
            reply = self._repeat(name, reply, *args, **options)
        if reply and _removed(self.to_lose, name):
            raise StoreError(f"{name}: the reply was lost (injected by the fault lab)")
        return reply

    def _repeat(self, name: str, reply: Any, *args: Any, **options: Any) -> Any:
        """Return the last task of a claim twice. Make every other call a second time."""
        if name == "claim":
            return [*reply, reply[-1]]
        getattr(self.store, name)(*args, **options)
        return reply


def _removed(names: set[str], name: str) -> bool:
    """Remove a name from the set. Return True if it was there; of several threads, one gets True."""
    try:
        names.remove(name)
    except KeyError:
        return False
    return True


class Clock:
    """The time of day, wrong by `offset` seconds, for the `clock` of a queue. Workers read the right time, so the start
    and the end of their tasks are right."""

    def __init__(self) -> None:
        self.offset = 0.0

    def __call__(self) -> float:
        """Return the time in UTC epoch seconds."""
        return time.time() + self.offset
