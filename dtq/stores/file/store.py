"""FileStore: a directory of JSON files, one for each task, behind a journal. For the processes of one machine.

    add, claim, update ...                             queue/
          |                                              journal-8     1. what has changed: the commit
          v                 --append, flush-->           tasks/7f/...  2. every few seconds: the tasks that changed
    Replica: all tasks, in memory                        queue.json       limits, shares, nodes
          ^                 <--read what is new--        nodes/        processes that have it open (Peers)
                                                         lock          lets one process write at a time (GroupCommit)

    FileStore       the protocol of dtq.stores, one transaction for each method     (this file)
      Directory     how the directory is written, read and checkpointed
        Replica     all tasks in memory, and a record of what changes in them
        Journal     the changes, in the order in which they were committed
        TaskFiles   one JSON file for each task

Every process holds all tasks in memory and follows the journal; of ended tasks that are large, it holds only a brief
part once their files are written. On opening, it reads the task files and the journals that are left. Use it for up to
some hundred thousand tasks; SQLite takes more and opens faster.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from msgspec.structs import replace

from dtq.errors import StoreError
from dtq.stores.file.directory import Directory
from dtq.stores.file.disk import Disk
from dtq.stores.file.replica import Replica
from dtq.stores.protocol import ClaimRequest, Exchanged, Node, Outcome, Stats
from dtq.stores.shared.peers import Peers
from dtq.sync.forks import Forkable
from dtq.task.model import Task


class FileStore(Forkable):
    """A store in a directory of files, by the protocol of dtq.stores.

    Args:
        directory: where the files are; it is made if it is missing.
        durability: "full" acknowledges what is on the disk. "relaxed" does not wait for the disk: it is faster, and a
            power cut may lose the last seconds. A killed process loses nothing either way.
        persistence_interval: seconds between checkpoints, which bring the task files up to date. The last process to
            close writes one too.
        disk: how files are written; tests pass one that fails.

    Raises:
        StoreError: an argument is out of range, the directory holds other files, or those of a newer dtq.
    """

    def __init__(
        self, directory: str | Path, durability: Literal["full", "relaxed"] = "full", persistence_interval: float = 5.0,
        disk: Disk | None = None,
    ) -> None:  # fmt: skip
        if durability not in ("full", "relaxed"):
            raise StoreError(f"durability is {durability!r}; allowed: 'full', 'relaxed'")
        self.durability = durability
        if not 0.01 <= persistence_interval <= 86400:
            raise StoreError(f"persistence_interval is {persistence_interval!r}; allowed: 0.01 to 86,400 seconds")
        self._published: dict[str, Node] = {}
        self._closed = False
        self._directory = Directory(Path(directory), durability == "full", persistence_interval, disk or Disk())
        self.follow_forks()

    def add(self, tasks: Sequence[Task]) -> list[str]:
        return self._directory.write(lambda replica: replica.add(tasks), flush=True)

    def claim(
        self, worker: str, n: int, lease: float, now: float, types: Collection[str], queues: Collection[str] = (),
        min_priority: int | None = None,
    ) -> list[Task]:  # fmt: skip
        return self._directory.write(
            lambda replica: replica.claim(worker, n, lease, now, types, queues, min_priority), flush=False, wake=None
        )

    def update(self, outcomes: Sequence[Outcome]) -> set[str]:
        return self._directory.write(lambda replica: replica.update(outcomes), flush=True, wake="others")

    def exchange(self, outcomes: Sequence[Outcome], claim: ClaimRequest) -> Exchanged:
        return self._directory.write(
            lambda replica: (replica.update(outcomes), replica.claim(*claim)), flush=True, wake="others"
        )

    def heartbeat(self, node: Node, held: Sequence[Task], lease: float, now: float) -> set[str]:
        self._directory.watch.peers.ensure_file()
        if not held and lease and self._is_published(node):
            return set()

        peer = self._directory.watch.peers.name

        def work(replica: Replica) -> set[str]:
            replica.peer = peer
            return replica.heartbeat(node, held, lease, now)

        lost = self._directory.write(work, flush=False, wake=None)
        self._published[node.id] = node
        if not lease:
            del self._published[node.id]
        return lost

    def _is_published(self, node: Node) -> bool:
        """Return whether the store has this node as it is, apart from its time."""
        known = self._published.get(node.id)
        if known is None or replace(node, seen_at=0) != replace(known, seen_at=0):
            return False
        return self._directory.read(lambda replica: replica.peer_of.get(node.id) == self._directory.watch.peers.name)

    def reap(self, worker: str, n: int, lease: float, now: float) -> list[Task]:
        peers = self._directory.watch.peers
        with self._directory.named_errors("watched"):
            gone = peers.dead()
            dead, missing = self._directory.read(lambda replica: peers.lost_nodes(replica.peer_of, gone, now, lease))
        forgotten = self._directory.read(lambda replica: [node for node in missing if not replica.holds(node)])
        if not dead and not forgotten and not self._directory.read(lambda replica: replica.has_expired_lease(now)):
            for name in gone:
                peers.forget(name)
            return []

        def work(replica: Replica) -> list[Task]:
            tasks = replica.reap(worker, n, lease, now, dead)
            for node in (*dead, *forgotten):
                if not replica.holds(node):
                    replica.leave(node)
            return tasks

        return self._directory.write(work, flush=False, wake=None)

    def get(self, ids: Iterable[str], *, brief: bool = False) -> list[Task]:
        ids = list(ids)
        return self._directory.read(lambda replica: replica.get(ids, brief=brief))

    def find(self, **wanted: Any) -> list[Task]:
        return self._directory.read(lambda replica: replica.find(**wanted))

    def stats(self) -> Stats:
        return self._directory.read(lambda replica: replica.stats())

    def next_due(self, now: float) -> float | None:
        return self._directory.read(lambda replica: replica.next_due(now))

    def set_lane(
        self, queue: str | None = None, type: str | None = None, key: str | None = None, **changes: Any
    ) -> None:
        self._directory.write(lambda replica: replica.set_lane(queue, type, key, **changes), flush=True)

    def delete(self, ids: Iterable[str]) -> int:
        ids = list(ids)
        return self._directory.write(lambda replica: replica.delete(ids), flush=True)

    def purge(self, before: float, statuses: Collection[str]) -> int:
        return self._directory.write(lambda replica: replica.purge(before, statuses), flush=True, wake=None)

    # --- other processes, close

    def checkpoint(self) -> None:
        """Bring the task files up to date now."""
        self._directory.checkpoint()

    def fileno(self) -> int:
        with self._directory.named_errors("watched"):
            return self._directory.watch.peers.fileno()

    def wait(self, timeout: float) -> bool:
        return self._directory.watch.wait(timeout)

    def close(self) -> None:
        if not self._closed:
            for node in list(self._published.values()):
                with suppress(StoreError):  # for example a full disk: other processes will see that the lock is free
                    self.heartbeat(node, [], 0, node.seen_at)
            leave = Peers.close if self._is_gone() else Peers.abandon
            self._directory.close(leave)
            self._closed = True

    def _is_gone(self) -> bool:
        """Return whether the store lists no node of this process any more. A node that still has tasks, or that could
        not be removed, stays listed: the file of its process must then show that the process is dead."""
        with suppress(StoreError):
            return self._directory.read(lambda replica: self._directory.watch.name not in replica.peer_of.values())
        return False

    def in_child(self) -> None:
        """Forget, after a fork, the parent's nodes. The child reads the directory again when it needs it."""
        self._published = {}
        self._directory.in_child()

    def abandon(self) -> None:
        """Close without telling other processes, as if this process were killed; for tests of crashes."""
        self._directory.abandon()
        self._closed = True
