"""Failpoints: places with a name at which a node of a run with faults kills itself, and the faults of its own disk.

    TaskQueue --> WatchedStore --> the store     claim, update, ...: before, after; and what it answered is told
              --> pool.dispatch                  dispatch: before, after
    FileStore --> BadDisk                        append: in the middle of a line; flush; rename: before it is done

They stand in the seams that a queue has anyhow. A queue that is not to die has none of them, and pays nothing.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable, Sequence
from typing import Any

from dtq.stores.file.disk import Disk
from dtq.stores.protocol import Outcome, Store
from dtq.stores.sqlite.store import SQLiteStore
from dtq.task.model import Task
from dtq.testing.chaos.history_log import Witness
from dtq.testing.chaos.invariants import Line, What

STEPS = ("claim", "update", "heartbeat", "reap", "dispatch")
EVERYWHERE = tuple(f"{when} {step}" for step in STEPS for when in ("before", "after"))
ON_FILES = ("append", "flush", "rename")
NO_LIMIT = 0xFFFFFFFE  # pages


class Failpoint:
    """Kills this process when the place of that name is passed for the `passes`-th time; no name: never."""

    def __init__(self, name: str = "", passes: int = 1) -> None:
        self.name = name
        self._left = passes

    def is_here(self, name: str) -> bool:
        if name == self.name:
            self._left -= 1
        return name == self.name and self._left <= 0

    def passed(self, name: str) -> None:
        if self.is_here(name):
            die()


def die() -> None:
    """SIGKILL: no goodbye, no clean-up."""
    os.kill(os.getpid(), signal.SIGKILL)
    signal.pause()


class BadDisk(Disk):
    """Dies in the middle of what it does, is slow, or full."""

    def __init__(self, failpoint: Failpoint) -> None:
        self.seconds = 0.0  # that each flush takes longer
        self.is_full = False
        self._failpoint = failpoint

    def append(self, descriptor: int, data: bytes) -> None:
        if self._failpoint.is_here("append"):
            super().append(descriptor, data[: len(data) // 2])
            die()
        if self.is_full:
            super().append(descriptor, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        super().append(descriptor, data)

    def flush(self, descriptor: int) -> None:
        self._failpoint.passed("flush")
        time.sleep(self.seconds)
        super().flush(descriptor)

    def place(self, path: str, data: bytes) -> None:
        if self._failpoint.is_here("rename"):
            folder, name = os.path.split(path)
            with open(f"{folder}/.{name}", "wb") as file:
                file.write(data)
                file.flush()
                die()
        super().place(path, data)


class WatchedStore:
    """A node's store: what it has answered is written down; the failpoints around each call."""

    def __init__(self, store: Store, disk: BadDisk, witness: Witness, failpoint: Failpoint, node: str) -> None:
        self._store = store
        self._disk = disk
        self._witness = witness
        self._failpoint = failpoint
        self._node = node

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def _around(self, name: str, *args: Any) -> Any:
        self._failpoint.passed(f"before {name}")
        answer = getattr(self._store, name)(*args)
        self._failpoint.passed(f"after {name}")
        return answer

    def claim(self, *args: Any) -> list[Task]:
        return self._told("claimed", self._around("claim", *args))

    def reap(self, *args: Any) -> list[Task]:
        return self._told("taken over", self._around("reap", *args))

    def _told(self, what: What, tasks: list[Task]) -> list[Task]:
        self._witness.write(*(Line(what, task.id, task.version, self._node) for task in tasks), flush=False)
        return tasks

    def update(self, outcomes: Sequence[Outcome]) -> set[str]:
        accepted: set[str] = self._around("update", outcomes)
        known = {task.id: task.version for task, _ in outcomes}
        self._witness.write(*(Line("accepted", id, known[id], self._node) for id in accepted), flush=False)
        return accepted

    def heartbeat(self, *args: Any) -> set[str]:
        lost: set[str] = self._around("heartbeat", *args)
        return lost

    # --- its disk

    def be_slow(self, seconds: float) -> None:
        """Each flush of files takes so much longer; SQLite holds its lock once for so long."""
        self._disk.seconds = seconds
        if isinstance(self._store, SQLiteStore):
            self._store.database.write(lambda _: time.sleep(seconds), flush=False, wake=None)

    def be_full(self, is_full: bool) -> None:
        """Files cannot grow; nor can the database, by SQLite's own limit."""
        self._disk.is_full = is_full
        if isinstance(self._store, SQLiteStore):
            pages = 1 if is_full else NO_LIMIT  # never fewer than there are
            self._store.database.writer.execute(f"PRAGMA max_page_count = {pages}")


def watched_dispatch(dispatch: Callable[..., None], witness: Witness, failpoint: Failpoint, node: str) -> Any:
    """A pool's `dispatch`: what is given to workers is written down; a failpoint on each side."""

    def dispatched(tasks: Sequence[Task], *args: Any) -> None:
        failpoint.passed("before dispatch")
        witness.write(*(Line("given", task.id, task.version, node) for task in tasks), flush=False)
        dispatch(tasks, *args)
        failpoint.passed("after dispatch")

    return dispatched
