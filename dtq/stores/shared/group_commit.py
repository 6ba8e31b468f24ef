"""GroupCommit: one process writes at a time, and the jobs of threads that wait together share one transaction.

    thread A --.
    thread B --+--> waiting jobs --> the first thread with the lock runs them all --> one flush --> A, B and C go on
    thread C --'

A commit costs a disk flush; ten threads that add at the same time pay for one. Processes take turns by a FairLock
(SQLite's own way, sleep and try again, lets one process starve the others).

An interrupt (Ctrl-C, a notebook's Stop, the timeout of a handler that runs in a thread) may come at any moment, and
only the interrupted thread raises it. Each thread adds its own job and always removes it; a batch becomes done by one
assignment. So the jobs of other threads are either done or still waiting. The job of the interrupted thread is done
completely or not at all; if another thread is running it, that is decided a moment later.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from dtq.stores.shared.fair_lock import FairLock

S = TypeVar("S")  # what the work is done on, such as a connection
T = TypeVar("T")


class Job(Generic[S, T]):
    """The work of one thread. It runs again if its batch was interrupted. With `flush` the thread goes on only when the
    commit is on the disk."""

    def __init__(self, work: Callable[[S], T], flush: bool) -> None:
        self.work = work
        self.flush = flush
        self.batch: Batch[S] | None = None  # the last one that it was part of
        self.value: T
        self.error: Exception | None = None  # raised by the work itself

    @property
    def is_done(self) -> bool:
        """Return True if the job is committed. A job that failed is not done: its own thread tries it again, as the
        exception may have been meant for the thread that ran it."""
        return self.batch is not None and self.batch.is_done and self.error is None

    def outcome(self) -> T:
        if error := self.error or (self.batch and self.batch.error):
            raise error
        return self.value


class Batch(Generic[S]):
    """Jobs that share a transaction. If that fails, `error` is set, and none of the jobs was done."""

    def __init__(self, jobs: Sequence[Job[S, Any]]) -> None:
        self.jobs = jobs
        self.flush = any(job.flush for job in jobs)
        self.is_done = False
        self.error: Exception | None = None
        for job in jobs:
            job.batch = self

    def fail(self, error: Exception) -> None:
        """Make every thread of the batch raise the error of the transaction."""
        self.error = error
        self.is_done = True


class GroupCommit(Generic[S]):
    """Runs jobs in batches, one batch at a time among all processes that use the lock file at `path`.

    `commit` runs the jobs of a batch in one transaction, and sets `is_done` once that is committed. A job that raises
    must leave nothing behind. An error of the disk fails the whole batch (`fail`, or an OSError that `commit` raises).
    The thread that called `commit` raises any other exception alone; the jobs of other threads run again unless
    `is_done` is set.
    """

    def __init__(self, path: str, commit: Callable[[Batch[S]], None]) -> None:
        self._commit = commit
        self._waiting: dict[Job[S, Any], None] = {}
        self.lock = threading.Lock()  # held while a batch runs
        self._fair_lock = FairLock(path)

    def run(self, work: Callable[[S], T], *, flush: bool) -> T:
        """Return the value of `work` after its commit; with `flush`, once the commit is on the disk."""
        job = Job(work, flush)
        try:
            self._waiting[job] = None
            with self.lock:
                if not job.is_done:
                    self._run_batch(Batch([job for job in list(self._waiting) if not job.is_done]))
        finally:
            self._waiting.pop(job, None)
        return job.outcome()

    def _run_batch(self, batch: Batch[S]) -> None:
        """Run the batch while no other process writes. The first call of `finally` unlocks the file: no second
        interrupt can come before it. Unlocking a file that is not locked does no harm."""
        try:
            self._fair_lock.acquire()
            self._commit(batch)
        except OSError as error:
            if batch.is_done:
                raise
            batch.fail(error)
        finally:
            self._fair_lock.file.unlock()

    def in_child(self) -> None:
        """Reset everything in a forked child: the threads that ran or waited are the parent's."""
        self.lock = threading.Lock()
        self._waiting.clear()
        self._fair_lock.in_child()

    def close(self, close_target: Callable[[], None]) -> None:
        """Close what the jobs work on, and the lock file, while no batch runs. May be repeated."""
        with self.lock:
            close_target()
            self._fair_lock.file.close()
