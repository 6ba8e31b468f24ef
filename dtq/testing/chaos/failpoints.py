"""Failpoints: named places at which a node of a chaos run kills itself, and faults of the node's disk.

    TaskQueue --> WatchedStore --> the store     before and after claim, update, ...; records answers
              --> pool.dispatch                  before and after dispatch
    FileStore --> FaultyDisk                     append: in the middle of a line; flush; rename: before it is done

They are in wrappers of arguments that a queue takes anyway. In production, none are used, so they
cost nothing.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from dtq.stores.file.disk import Disk
from dtq.stores.protocol import Store
from dtq.stores.sqlite.store import SQLiteStore
from dtq.task.model import Task
from dtq.testing.chaos.history_log import HistoryLog
from dtq.testing.chaos.invariants import Line, LineKind, name_of
from dtq.testing.wrapper import StoreWrapper

STEPS = ("claim", "update", "heartbeat", "reap", "dispatch")
ON_STORES = tuple(f"{when} {step}" for step in STEPS for when in ("before", "after"))
ON_FILES = ("append", "flush", "rename")
UNLIMITED_PAGES = 0xFFFFFFFE  # the highest max_page_count of SQLite


class Failpoint:
    """Kill this process when it passes the named place for the `passes`-th time; without a name, never."""

    def __init__(self, name: str = "", passes: int = 1) -> None:
        self.name = name
        self._left = passes

    def is_due(self, name: str) -> bool:
        if name == self.name:
            self._left -= 1
        return name == self.name and self._left <= 0

    def pass_by(self, name: str) -> None:
        if self.is_due(name):
            die()


def die() -> None:
    """Kill this process with SIGKILL, without any clean-up."""
    os.kill(os.getpid(), signal.SIGKILL)
    signal.pause()


class FaultyDisk(Disk):
    """A disk that is slow or full, or that kills the process in the middle of a write."""

    def __init__(self, failpoint: Failpoint) -> None:
        self.seconds = 0.0  # added to each flush
        self.is_full = False
        self._failpoint = failpoint

    def append(self, descriptor: int, data: bytes) -> None:
        if self._failpoint.is_due("append"):
            super().append(descriptor, data[: len(data) // 2])
            die()
        if self.is_full:
            super().append(descriptor, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        super().append(descriptor, data)

    def flush(self, descriptor: int) -> None:
        self._failpoint.pass_by("flush")
        time.sleep(self.seconds)
        super().flush(descriptor)

    def place(self, path: str, data: bytes) -> None:
        if self._failpoint.is_due("rename"):
            folder, name = os.path.split(path)
            with open(f"{folder}/.{name}", "wb") as file:
                file.write(data)
                file.flush()
                die()
        super().place(path, data)


class WatchedStore(StoreWrapper):
    """A node's store: records what it answers, and has failpoints around each call that STEPS names."""

    def __init__(self, store: Store, disk: FaultyDisk, history: HistoryLog, failpoint: Failpoint, node: str) -> None:
        super().__init__(store)
        self._disk = disk
        self._history = history
        self._failpoint = failpoint
        self._node = node

    def call(self, name: str, *args: Any, **options: Any) -> Any:
        """Call the store, record its answer, and return it. In an exchange, as in an update, the node may die
        before or after the call."""
        step = "update" if name == "exchange" else name
        self._failpoint.pass_by(f"before {step}")
        answer = super().call(name, *args, **options)
        self._failpoint.pass_by(f"after {step}")
        accepted, taken = answer if name == "exchange" else (answer, answer)
        if name in ("update", "exchange"):
            known = {task.id: task for task, _ in args[0]}
            self._record("accepted", [known[id] for id in accepted])
        if name in ("claim", "exchange"):
            self._record("claimed", taken)
        if name == "reap":
            self._record("taken over", taken)
        return answer

    def _record(self, what: LineKind, tasks: Iterable[Task]) -> None:
        self._history.write(*(Line(what, name_of(task), task.version, self._node) for task in tasks), flush=False)

    # --- faults of its disk

    def set_slow(self, seconds: float) -> None:
        """Delay each flush of a file store by `seconds`; hold SQLite's write lock once for that long."""
        self._disk.seconds = seconds
        if isinstance(self.store, SQLiteStore):
            self.store.database.write(lambda _: time.sleep(seconds), flush=False, wake=None)

    def set_full(self, is_full: bool) -> None:
        """Prevent the files and the database from growing (for SQLite, through its own page limit)."""
        self._disk.is_full = is_full
        if isinstance(self.store, SQLiteStore):
            pages = 1 if is_full else UNLIMITED_PAGES  # SQLite keeps the pages that it already has
            self.store.database.writer.execute(f"PRAGMA max_page_count = {pages}")


def watched_dispatch(dispatch: Callable[..., None], history: HistoryLog, failpoint: Failpoint, node: str) -> Any:
    """Wrap a pool's `dispatch`: record what the workers get, with a failpoint on each side."""

    def wrapped(tasks: Sequence[Task], *args: Any) -> None:
        failpoint.pass_by("before dispatch")
        history.write(*(Line("dispatched", name_of(task), task.version, node) for task in tasks), flush=False)
        dispatch(tasks, *args)
        failpoint.pass_by("after dispatch")

    return wrapped
