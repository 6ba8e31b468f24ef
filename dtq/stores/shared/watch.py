"""Watch: how a store that several processes have open hears of what the others do.

peers  --a datagram with each commit--> fileno, wait
store  --a look, once a second--------> wait            (the safety net: a datagram can be lost)
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

from dtq.errors import StoreError
from dtq.stores.shared.peers import Peers

SAFETY_NET = 1.0  # seconds


class ChangeWatcher:
    """`peers` are made when they are first asked for: a process that only looks does not join them. `look` says
    whether the store has changed."""

    def __init__(self, directory: Path, look: Callable[[], bool]) -> None:
        self._directory = directory
        self._look = look
        self._next_look = 0.0
        self._lock = threading.Lock()
        self._peers: Peers | None = None
        self._closed = False

    @property
    def peers(self) -> Peers:
        """Raises StoreError after `close`: whoever comes too late must not join again."""
        with self._lock:
            if self._closed:
                raise StoreError("the store was closed")
            if self._peers is None:
                self._peers = Peers(self._directory)
            return self._peers

    @property
    def name(self) -> str:
        """The file of this process among the peers; empty where it has not joined them."""
        return self._peers.name if self._peers else ""

    def wait(self, timeout: float) -> bool:
        return self.peers.wait(timeout) or self._look_now_and_then()

    def _look_now_and_then(self) -> bool:
        if time.monotonic() < self._next_look:
            return False
        self._next_look = time.monotonic() + SAFETY_NET
        self.peers.stay()
        return self._look()

    def in_child(self) -> None:
        """After a fork: the peer is the parent's. The child joins when it needs to."""
        self._lock = threading.Lock()
        if self._peers is not None:
            self._peers.in_child()
            self._peers = None

    def close(self, leave: Callable[[Peers], None]) -> None:
        with self._lock:
            self._closed = True
            if self._peers is not None:
                leave(self._peers)
