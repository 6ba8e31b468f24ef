"""Peers: who else has this database open, whether they still live, and how to wake them.

Each process that waits for work, or runs it, keeps a file `TOKEN-PORT` in the directory beside the database:

    queue.db-nodes/3f9a...-40123     locked while its process lives: when the lock can be had, the process is dead
                                     PORT: its loopback datagram port; one byte to it says that something changed

The lock is the kernel's (flock), so it goes with the process whatever way that ends. Ports need no cleaning up: a byte
sent to one that is gone is lost, and costs 4 microseconds.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout

from dtq.stores.bell import hear

Wake = Literal["all", "others"] | None  # whom a commit concerns; the loop knows of its own updates
SETTLED = 100_000_000  # nanoseconds; file systems tell times by ticks of up to 10 ms


class Peers:
    """This process among the others of one database. `name` is its own file; the others are given by theirs."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(exist_ok=True)
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self._socket.setblocking(False)
        self.name = f"{os.urandom(8).hex()}-{self._socket.getsockname()[1]}"
        self._lock = FileLock(directory / f".{self.name}", thread_local=False)
        self._lock.acquire(blocking=False)
        os.rename(directory / f".{self.name}", directory / self.name)  # seen only now: never there and not locked
        self._seen: tuple[int, list[str]] = (0, [])

    def others(self) -> list[str]:
        """Whoever has a file here, alive or not. The directory is read again only when it has changed, or did so just
        now: a second change within the same tick of the file system's clock would not show."""
        changed = self.directory.stat().st_mtime_ns
        if changed != self._seen[0]:
            settled = time.time_ns() - changed > SETTLED
            names = [name for name in os.listdir(self.directory) if name != self.name and not name.startswith(".")]
            self._seen = (changed if settled else 0, names)
        return self._seen[1]

    def dead(self) -> list[str]:
        return [name for name in self.others() if not self._is_alive(name)]

    def living(self) -> set[str]:
        return set(self.others()) - set(self.dead())

    def _is_alive(self, name: str) -> bool:
        lock = FileLock(self.directory / name, thread_local=False)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            return True
        lock.release()
        return False

    def forget(self, name: str) -> None:
        (self.directory / name).unlink(missing_ok=True)

    def wake(self, whom: Wake) -> None:
        """Tells the others, or all and this one, that something changed."""
        if whom is None:
            return
        with contextlib.suppress(OSError):  # they have a safety net, and what was committed must not fail for this
            for name in self.others() if whom == "others" else (*self.others(), self.name):
                self._send(name)

    def _send(self, name: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # gone, full, or no file of ours
            self._socket.sendto(b"!", ("127.0.0.1", int(name.rpartition("-")[2])))

    def fileno(self) -> int:
        return self._socket.fileno()

    def wait(self, timeout: float) -> bool:
        return hear(self._socket, timeout)

    def close(self) -> None:
        self.abandon()
        self.forget(self.name)

    def abandon(self) -> None:
        """Lets go as a killed process would: the file stays behind, unlocked."""
        self._lock.release()
        self._socket.close()
