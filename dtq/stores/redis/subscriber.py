"""Subscriber: a thread that subscribes to changes made by other processes, and wakes those that wait for one.

    other processes --PUBLISH--> server --> Subscriber (its own connection) --> Wakeup --> selector of the loop

A message may be lost while the connection is down, so each new subscription also wakes.
"""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from typing import Any

from dtq.stores.redis.client import FIRST_PAUSE, LONGEST_PAUSE, TRANSIENT_ERRORS, RedisClient
from dtq.sync.waits import Wakeup

LISTEN_TIMEOUT = 5.0  # seconds that one call listens; the connection's health is checked in between


class Subscriber:
    """Subscribes at once if the server can be reached, else as soon as it can.

    Args:
        client: the server.
        wakeup: what to wake.
        sender: the id under which this store publishes; its own messages do not wake it.
    """

    def __init__(self, client: RedisClient, wakeup: Wakeup, sender: str) -> None:
        channel = f"{client.prefix}changed"
        own_channel = f"{channel}:{sender}"  # shows lib.lua that this store listens alone
        self._channels = [channel] if client.is_cluster else [channel, own_channel]
        self._wakeup = wakeup
        self._sender = sender.encode()
        self._stop = threading.Event()
        self._pubsub: Any = client.redis.pubsub(ignore_subscribe_messages=False)
        with suppress(*TRANSIENT_ERRORS):
            self._pubsub.subscribe(*self._channels)
            for _ in self._channels:
                self._pubsub.get_message(timeout=1.0)
        self._thread = threading.Thread(target=self._listen, name="dtq-subscriber", daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        pause = FIRST_PAUSE
        while not self._stop.is_set():
            try:
                if not self._pubsub.subscribed:
                    self._pubsub.subscribe(*self._channels)
                self._handle(self._pubsub.get_message(timeout=LISTEN_TIMEOUT))
                pause = FIRST_PAUSE
            except (*TRANSIENT_ERRORS, OSError):
                self._stop.wait(pause)
                pause = min(pause * 2, LONGEST_PAUSE)
        with suppress(*TRANSIENT_ERRORS, OSError):
            self._pubsub.close()

    def _handle(self, message: dict[str, Any] | None) -> None:
        """Wake for a message of another store, and for a new subscription, which may have missed messages."""
        if message and (message["type"] == "subscribe" or message["data"] != self._sender):
            self._wakeup.wake()

    def close(self) -> None:
        """Stop the thread. It ends its wait when the socket is shut down."""
        self._stop.set()
        sock = getattr(self._pubsub.connection, "_sock", None)
        if sock is not None:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        self._thread.join(LISTEN_TIMEOUT)
