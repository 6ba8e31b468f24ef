"""FileStore: a directory of JSON files, one for each task, and a journal before them. For the processes of one machine.

    add, claim, update ...                             queue/
          |                                              journal-8     1. what has changed: the commit
          v                 --append, flush-->           tasks/7f/...  2. every few seconds: the tasks that changed
    Replica: all tasks, in memory                        queue.json       limits, shares, nodes
          ^                 <--read what is new--        nodes/        who has it open (Peers)
                                                         lock          one writes at a time (GroupCommit)

    FileStore   the protocol of dtq.stores, one method a transaction     (this file)
      Directory    how the directory is written, followed and brought up to date
      Replica   all tasks, and what has changed in them
      Journal   the order in which everything happened
      TaskFiles     one JSON file for each task

Every process has all tasks in its memory, and follows the journal. A start reads the files, and then the journals that
are still there. Good for up to some hundred thousand tasks; SQLite takes more, starts faster, and needs less memory.
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
from dtq.stores.protocol import Node, Outcome, Stats
from dtq.stores.shared.peers import Peers
from dtq.sync.forks import Forkable
from dtq.task.model import Task


class FileStore(Forkable):
    """Keeps the protocol of dtq.stores in this directory, which is made where it is missing.

    The task files are brought up to date each `persistence_interval` seconds, and when the last process closes.
    `durability="relaxed"` acknowledges without waiting for the disk: faster, and a power cut may take the last
    seconds. A killed process loses nothing either way. Raises StoreError where the directory holds something else, or
    the files of a newer dtq.
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
        self._ledger = Directory(Path(directory), durability == "full", persistence_interval, disk or Disk())
        self.follow_forks()

    def add(self, tasks: Sequence[Task]) -> list[str]:
        return self._ledger.write(lambda replica: replica.add(tasks), flush=True)

    def claim(
        self, worker: str, n: int, lease: float, now: float, types: Collection[str], queues: Collection[str] = (),
        min_priority: int | None = None,
    ) -> list[Task]:  # fmt: skip
        return self._ledger.write(
            lambda replica: replica.claim(worker, n, lease, now, types, queues, min_priority), flush=False, wake=None
        )

    def update(self, outcomes: Sequence[Outcome]) -> set[str]:
        return self._ledger.write(lambda replica: replica.update(outcomes), flush=True, wake="others")

    def heartbeat(self, node: Node, held: Sequence[Task], lease: float, now: float) -> set[str]:
        self._ledger.watch.peers.stay()
        if not held and lease and self._is_published(node):
            return set()

        peer = self._ledger.watch.peers.name

        def work(replica: Replica) -> set[str]:
            replica.peer = peer
            return replica.heartbeat(node, held, lease, now)

        lost = self._ledger.write(work, flush=False, wake=None)
        self._published[node.id] = node
        if not lease:
            del self._published[node.id]
        return lost

    def _is_published(self, node: Node) -> bool:
        """Whether the node is in the store as it is, its time aside."""
        known = self._published.get(node.id)
        if known is None or replace(node, seen_at=0) != replace(known, seen_at=0):
            return False
        return self._ledger.look(lambda replica: replica.peer_of.get(node.id) == self._ledger.watch.peers.name)

    def reap(self, worker: str, n: int, lease: float, now: float) -> list[Task]:
        peers = self._ledger.watch.peers
        with self._ledger.named_errors("watched"):
            gone = peers.dead()
            dead, missing = self._ledger.look(lambda replica: peers.fates(replica.peer_of, gone, now, lease))
        forgotten = self._ledger.look(lambda replica: [node for node in missing if not replica.holds(node)])
        if not dead and not forgotten and not self._ledger.look(lambda replica: replica.has_late(now)):
            for name in gone:
                peers.forget(name)
            return []

        def work(replica: Replica) -> list[Task]:
            tasks = replica.reap(worker, n, lease, now, dead)
            for node in (*dead, *forgotten):
                if not replica.holds(node):
                    replica.leave(node)
            return tasks

        return self._ledger.write(work, flush=False, wake=None)

    def get(self, ids: Iterable[str], *, brief: bool = False) -> list[Task]:
        return self._ledger.look(lambda replica: replica.get(ids, brief=brief))

    def find(self, **wanted: Any) -> list[Task]:
        return self._ledger.look(lambda replica: replica.find(**wanted))

    def stats(self) -> Stats:
        return self._ledger.look(lambda replica: replica.stats())

    def next_due(self, now: float) -> float | None:
        return self._ledger.look(lambda replica: replica.next_due(now))

    def set_lane(
        self, queue: str | None = None, type: str | None = None, key: str | None = None, **changes: Any
    ) -> None:
        self._ledger.write(lambda replica: replica.set_lane(queue, type, key, **changes), flush=True)

    def delete(self, ids: Iterable[str]) -> int:
        ids = list(ids)
        return self._ledger.write(lambda replica: replica.delete(ids), flush=True)

    def purge(self, before: float, statuses: Collection[str]) -> int:
        return self._ledger.write(lambda replica: replica.purge(before, statuses), flush=True, wake=None)

    # --- others, end

    def persist(self) -> None:
        """Brings the task files up to date now."""
        self._ledger.persist()

    def fileno(self) -> int:
        with self._ledger.named_errors("watched"):
            return self._ledger.watch.peers.fileno()

    def wait(self, timeout: float) -> bool:
        return self._ledger.watch.wait(timeout)

    def close(self) -> None:
        if not self._closed:
            for node in list(self._published.values()):
                with suppress(StoreError):  # a full disk, say: the others will see that the lock is gone
                    self.heartbeat(node, [], 0, node.seen_at)
            leave = Peers.close if self._is_gone() else Peers.abandon
            self._ledger.close(leave)
            self._closed = True

    def _is_gone(self) -> bool:
        """Return whether nothing speaks through this process any more. A node that still has tasks, or that could not
        be removed, stays in the store: its file has to show that it is dead."""
        with suppress(StoreError):
            return self._ledger.look(lambda replica: self._ledger.watch.name not in replica.peer_of.values())
        return False

    def in_child(self) -> None:
        """After a fork: the nodes are the parent's, and the child reads the directory again when it needs it."""
        self._published = {}
        self._ledger.in_child()

    def abandon(self) -> None:
        """Lets go of everything without a word to anybody, as a killed process would; for tests of crashes."""
        self._ledger.abandon()
        self._closed = True
