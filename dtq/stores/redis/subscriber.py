"""Ear: a thread that listens to a server for changes that others make, and rings a Bell for those who wait.

    others --PUBLISH--> server --> Ear (a connection of its own) --> Bell --> selector of the loop

A message may be lost while the connection is down, so it rings too when the connection is new.
"""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from typing import Any

from dtq.stores.redis.client import AWAY, FIRST_PAUSE, LONGEST_PAUSE, RedisClient
from dtq.sync.wakeup import Wakeup

LISTEN = 5.0  # seconds for which one call listens; then the connection's health is checked


class Subscriber:
    """Listens from its making on, if the server can be reached; else from when it can."""

    def __init__(self, link: RedisClient, bell: Wakeup, sender: str) -> None:
        channel = f"{link.prefix}changed"
        self._channels = [channel] if link.is_cluster else [channel, f"{channel}:{sender}"]  # the other: see lib.lua
        self._bell = bell
        self._sender = sender.encode()  # whose messages are our own
        self._stop = threading.Event()
        self._pubsub: Any = link.client.pubsub(ignore_subscribe_messages=False)
        with suppress(*AWAY):
            self._pubsub.subscribe(*self._channels)
            for _ in self._channels:
                self._pubsub.get_message(timeout=1.0)
        self._thread = threading.Thread(target=self._listen, name="dtq-ear", daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        pause = FIRST_PAUSE
        while not self._stop.is_set():
            try:
                if not self._pubsub.subscribed:
                    self._pubsub.subscribe(*self._channels)
                self._hear(self._pubsub.get_message(timeout=LISTEN))
                pause = FIRST_PAUSE
            except (*AWAY, OSError):
                self._stop.wait(pause)
                pause = min(pause * 2, LONGEST_PAUSE)
        with suppress(*AWAY, OSError):
            self._pubsub.close()

    def _hear(self, message: dict[str, Any] | None) -> None:
        """A subscription that is new may have missed something."""
        if message and (message["type"] == "subscribe" or message["data"] != self._sender):
            self._bell.ring()

    def close(self) -> None:
        self._stop.set()
        sock = getattr(self._pubsub.connection, "_sock", None)
        if sock is not None:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)  # which ends what it waits for
        self._thread.join(LISTEN)
