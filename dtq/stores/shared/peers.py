"""Peers: the other processes that have a store open: are they alive, how to wake them, how to see what they changed.

Each process that waits for work, or runs it, keeps a file `TOKEN-PORT` in a directory beside the store:

    queue.db-nodes/3f9a...-40123     locked while its process lives: a lock that can be taken means it is dead
                                     PORT: its loopback datagram port; one byte to it means that something changed

The lock is the kernel's (flock), so it ends with the process, however that ends. Ports need no cleaning up: a byte
sent to a port that is gone is lost, and costs 4 microseconds.

A missing file proves nothing: it may have been removed, or the other process may see the directory under another name.
A process makes its file again at its next heartbeat, and its tasks are safe until their leases end.

    peers  --a datagram with each commit----> fileno, wait
    store  --has_changed(), once a second---> wait            (the safety net: a datagram can be lost)
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from dtq.errors import StoreError
from dtq.stores.shared.lockfile import Lockfile
from dtq.sync.waits import wait_for

Recipients = Literal["all", "others"] | None  # the processes to wake after a commit; a loop knows its own updates
CLOCK_TICK = 100_000_000  # nanoseconds; file systems round times to ticks of up to 10 ms
CHECK_INTERVAL = 1.0  # seconds between two looks at the store itself


class LostNodes(NamedTuple):
    """Nodes that are gone. `dead`: their process has ended. `missing`: their file has been missing for a lease."""

    dead: list[str]
    missing: list[str]


class Peers:
    """This process among the others that have a store open. `name` is the name of its file; so are the others' names.

    Args:
        directory: Where the files of all processes are. Made if it is missing.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self._socket.setblocking(False)
        self.name = f"{os.urandom(8).hex()}-{self._socket.getsockname()[1]}"
        self._guard = threading.Lock()  # two nodes of this process may find its file missing at the same time
        self._listing: tuple[int, list[str]] = (0, [])  # when the directory changed last, and the others in it
        self._missed: dict[str, float] = {}  # peers of nodes -> since when their file is missing
        try:
            self._file = self._join()
        except BaseException:
            self._socket.close()
            raise

    def _join(self) -> Lockfile:
        """Make this process's file. Lock it under another name first: no other process may see it unlocked."""
        self.directory.mkdir(exist_ok=True)
        file = Lockfile(f"{self.directory}/.{self.name}")
        file.try_lock()
        file.rename(f"{self.directory}/{self.name}")
        return file

    def ensure_file(self) -> None:
        """Make this process's file again if it is missing or was replaced by a copy.

        Costs one os.stat where nothing is wrong. If the file cannot be made, the next call tries again.
        """
        with contextlib.suppress(OSError):
            if not self._file.is_in_place():
                with self._guard:
                    if not self._file.is_in_place():
                        lost, self._file = self._file, self._join()
                        lost.close()

    def others(self) -> list[str]:
        """Return the other processes that have a file here, dead ones too.

        The directory is read again only if it changed since, or changed just before the last reading: a second change
        within the same tick of the file system's clock would not show.
        """
        try:
            changed = self.directory.stat().st_mtime_ns
            if changed != self._listing[0]:
                is_settled = time.time_ns() - changed > CLOCK_TICK
                names = [name for name in os.listdir(self.directory) if name != self.name and not name.startswith(".")]
                self._listing = (changed if is_settled else 0, names)
        except FileNotFoundError:  # the directory was removed: each process makes it again, with its own file
            return []
        return self._listing[1]

    def dead(self) -> list[str]:
        """Return the peers whose lock is free."""
        return [name for name in self.others() if self._is_dead(name)]

    def living(self) -> set[str]:
        """Return the other processes that still hold their lock."""
        return set(self.others()) - set(self.dead())

    def _is_dead(self, name: str) -> bool:
        try:
            file = Lockfile(f"{self.directory}/{name}", create=False)
        except FileNotFoundError:
            return False
        with contextlib.closing(file):
            return file.try_lock()

    def lost_nodes(self, peer_of: Mapping[str, str], dead: Iterable[str], now: float, lease: float) -> LostNodes:
        """Return the nodes that are gone.

        Args:
            peer_of: For each node, the peer that it belongs to.
            dead: The peers whose lock is free.
            now: The time, in seconds.
            lease: Seconds for which a file must be missing at every call before its nodes count as missing. A node
                that lives makes its file again long before.
        """
        here = {self.name, *self.others()}
        self._missed = {peer: self._missed.get(peer, now) for peer in peer_of.values() if peer not in here}
        gone = {peer for peer, since in self._missed.items() if now - since >= lease}
        ended = set(dead)
        return LostNodes(
            [node for node, peer in peer_of.items() if peer in ended],
            [node for node, peer in peer_of.items() if peer in gone],
        )

    def forget(self, name: str) -> None:
        """Remove the file of a peer."""
        (self.directory / name).unlink(missing_ok=True)

    def wake(self, recipients: Recipients) -> None:
        """Send a datagram to the other processes, or to all and this one."""
        if recipients is None:
            return
        with contextlib.suppress(OSError):  # the commit must not fail for this; the others look once a second anyway
            for name in self.others() if recipients == "others" else (*self.others(), self.name):
                self._send(name)

    def _send(self, name: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # gone, full, or not one of our files
            self._socket.sendto(b"!", ("127.0.0.1", int(name.rpartition("-")[2])))

    def fileno(self) -> int:
        return self._socket.fileno()

    def wait(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds for a datagram. Return True if one came."""
        if not wait_for(self._socket, timeout):
            return False
        with contextlib.suppress(BlockingIOError):
            while self._socket.recv(16):
                pass
        return True

    def in_child(self) -> None:
        """Close what a forked child has inherited. The file stays locked by the parent."""
        self._socket.close()
        self._file.close()

    def close(self) -> None:
        """Leave: unlock this process's file and remove it."""
        self.abandon()
        self.forget(self.name)

    def abandon(self) -> None:
        """Close everything as the end of a killed process would: the file stays behind, unlocked."""
        self._file.close()
        self._socket.close()


class ChangeWatcher:
    """Waits until another process changes a store.

    `peers` are joined on first use: a process that only reads does not join them. `has_changed` returns True if the
    store changed since its last call.
    """

    def __init__(self, directory: Path, has_changed: Callable[[], bool]) -> None:
        self._directory = directory
        self._has_changed = has_changed
        self._next_check = 0.0
        self._lock = threading.Lock()
        self._peers: Peers | None = None
        self._closed = False

    @property
    def peers(self) -> Peers:
        """The peers of this process, which joins them now. Raises StoreError after `close`."""
        with self._lock:
            if self._closed:
                raise StoreError("the store was closed")
            if self._peers is None:
                self._peers = Peers(self._directory)
            return self._peers

    @property
    def name(self) -> str:
        """The name of this process among the peers; empty if it has not joined them."""
        return self._peers.name if self._peers else ""

    def wait(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds for a change. Return True if there may be one."""
        return self.peers.wait(timeout) or self._check()

    def _check(self) -> bool:
        if time.monotonic() < self._next_check:
            return False
        self._next_check = time.monotonic() + CHECK_INTERVAL
        self.peers.ensure_file()
        return self._has_changed()

    def in_child(self) -> None:
        """Reset everything in a forked child, which joins the peers when it needs to."""
        self._lock = threading.Lock()
        if self._peers is not None:
            self._peers.in_child()
            self._peers = None

    def close(self, leave: Callable[[Peers], None]) -> None:
        """Close permanently. `leave` is called with the peers if this process has joined them."""
        with self._lock:
            self._closed = True
            if self._peers is not None:
                leave(self._peers)
