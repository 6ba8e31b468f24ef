"""Peers: which other processes have this database open, whether they still live, and how to wake them.

Each process that waits for work, or runs it, keeps a file `TOKEN-PORT` in the directory beside the database:

    queue.db-nodes/3f9a...-40123     locked while its process lives: when the lock can be had, the process is dead
                                     PORT: its loopback datagram port; one byte to it says that something changed

The lock is the kernel's (flock), so it goes with the process whatever way that ends. Ports need no cleaning up: a byte
sent to one that is gone is lost, and costs 4 microseconds.

A file that is missing proves nothing: somebody may have removed it, or see the directory under another name. A process
puts its own file back at its next heartbeat, and its tasks are safe until their leases end.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from dtq.stores.shared.lockfile import Lockfile
from dtq.sync.wakeup import hear

Wake = Literal["all", "others"] | None  # whom a commit concerns; the loop knows of its own updates
SETTLED = 100_000_000  # nanoseconds; file systems tell times by ticks of up to 10 ms


class Fates(NamedTuple):
    """What became of some nodes. `dead`: their process has ended. `missing`: their file has been gone for a lease."""

    dead: list[str]
    missing: list[str]


class Peers:
    """This process among the others of one database. `name` is its own file; the others are given by theirs."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self._socket.setblocking(False)
        self.name = f"{os.urandom(8).hex()}-{self._socket.getsockname()[1]}"
        self._guard = threading.Lock()  # of the file: two nodes of this process may miss it at the same time
        self._seen: tuple[int, list[str]] = (0, [])
        self._missed: dict[str, float] = {}  # peers of nodes -> since when their file is missing
        try:
            self._file = self._join()
        except BaseException:
            self._socket.close()
            raise

    def _join(self) -> Lockfile:
        """Make this process's file. It gets its name when it is locked: no other process may see it unlocked."""
        self.directory.mkdir(exist_ok=True)
        file = Lockfile(f"{self.directory}/.{self.name}")
        file.try_lock()
        file.rename(f"{self.directory}/{self.name}")
        return file

    def stay(self) -> None:
        """Make this process's file again if it is missing, or is another one by now (restored from a copy, say).

        Costs one os.stat where nothing is wrong. Where the file cannot be made, the next call tries again.
        """
        with contextlib.suppress(OSError):
            if not self._file.is_in_place():
                with self._guard:
                    if not self._file.is_in_place():
                        lost, self._file = self._file, self._join()
                        lost.close()

    def others(self) -> list[str]:
        """Whoever has a file here, alive or not. The directory is read again only when it has changed, or did so just
        now: a second change within the same tick of the file system's clock would not show."""
        try:
            changed = self.directory.stat().st_mtime_ns
            if changed != self._seen[0]:
                settled = time.time_ns() - changed > SETTLED
                names = [name for name in os.listdir(self.directory) if name != self.name and not name.startswith(".")]
                self._seen = (changed if settled else 0, names)
        except FileNotFoundError:  # the directory was removed: each process makes it again, and its own file in it
            return []
        return self._seen[1]

    def dead(self) -> list[str]:
        """Return the peers whose lock is free."""
        return [name for name in self.others() if self._is_dead(name)]

    def living(self) -> set[str]:
        return set(self.others()) - set(self.dead())

    def _is_dead(self, name: str) -> bool:
        try:
            file = Lockfile(f"{self.directory}/{name}", create=False)
        except FileNotFoundError:
            return False
        with contextlib.closing(file):
            return file.try_lock()

    def fates(self, peer_of: Mapping[str, str], dead: Iterable[str], now: float, lease: float) -> Fates:
        """Return which of these nodes are gone, by the peer that each speaks through.

        `dead` are the peers whose lock is free. `now` and `lease` are in seconds: for so long a file must have been
        missing at each look. A node that lives makes its file again long before.
        """
        here = {self.name, *self.others()}
        self._missed = {peer: self._missed.get(peer, now) for peer in peer_of.values() if peer not in here}
        gone = {peer for peer, since in self._missed.items() if now - since >= lease}
        ended = set(dead)
        return Fates(
            [node for node, peer in peer_of.items() if peer in ended],
            [node for node, peer in peer_of.items() if peer in gone],
        )

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

    def in_child(self) -> None:
        """Close what a child has inherited. The file is still the parent's, and locked."""
        self._socket.close()
        self._file.close()

    def close(self) -> None:
        self.abandon()
        self.forget(self.name)

    def abandon(self) -> None:
        """Let go as a killed process would: the file stays behind, unlocked."""
        self._file.close()
        self._socket.close()
