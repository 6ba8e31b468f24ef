"""GroupCommit: writers pass one at a time, process after process, and those who wait together go through together.

    thread A --.                          .-- one transaction --.
    thread B --+--> waiting jobs --> the first to get the lock does them all --> one flush --> A, B, C go on
    thread C --'

A commit costs a disk flush; ten threads that add at the same time pay for one. Between processes a file lock is taken,
for which the kernel lets them stand in a line (SQLite's own way, sleep and try again, lets one starve the others).

An interrupt (Ctrl-C, a notebook's Stop, the timeout of a handler that runs in a thread) may strike at any moment. Only
the thread that it strikes raises it. Each thread enters its own job and takes it out again, whatever happens; a batch
is done in one step, by one assignment. So the jobs of others are either done, or still waiting for the next thread.
The job of the interrupted thread is done whole or not at all; if another thread is at it, a moment later.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from dtq.stores.shared.lock import Turn

S = TypeVar("S")  # what a piece of work is done on
T = TypeVar("T")


class Job(Generic[S, T]):
    """A piece of work of one thread, which may be done again where a batch was interrupted. `flush` asks that it be on
    the disk before the thread goes on."""

    def __init__(self, work: Callable[[S], T], flush: bool) -> None:
        self.work = work
        self.flush = flush
        self.batch: Batch[S] | None = None  # the last one that took it through
        self.value: T
        self.error: Exception | None = None  # of its own

    @property
    def is_done(self) -> bool:
        """Return False also for a job that failed: its own thread tries it again, as an exception that was meant for
        the other thread may have been to blame."""
        return self.batch is not None and self.batch.is_done and self.error is None

    def outcome(self) -> T:
        if error := self.error or (self.batch and self.batch.error):
            raise error
        return self.value


class Batch(Generic[S]):
    """Jobs that share a transaction. Where that has failed, `error` is why, and none of them was done."""

    def __init__(self, jobs: Sequence[Job[S, Any]]) -> None:
        self.jobs = jobs
        self.flush = any(job.flush for job in jobs)
        self.is_done = False
        self.error: Exception | None = None
        for job in jobs:
            job.batch = self

    def fail(self, error: Exception) -> None:
        """Let every thread hear why the transaction failed."""
        self.error = error
        self.is_done = True


class GroupCommit(Generic[S]):
    """`carry` does the jobs of a batch within one transaction, and sets `is_done` once that is committed.

    A job that raises must leave no trace. An error of the disk is for the whole batch (`fail`, or an OSError that
    `carry` raises). Anything else that `carry` raises is for its own thread alone: the jobs of the others are done, if
    `is_done` is set, or else done again.
    """

    def __init__(self, path: str, carry: Callable[[Batch[S]], None]) -> None:
        self._carry = carry
        self._waiting: dict[Job[S, Any], None] = {}
        self.lock = threading.Lock()  # held while a batch is carried out
        self._turn = Turn(path)

    def run(self, work: Callable[[S], T], *, flush: bool) -> T:
        """The value of `work`, committed; with `flush` it is on the disk before this returns."""
        job = Job(work, flush)
        try:
            self._waiting[job] = None
            with self.lock:
                if not job.is_done:
                    self._let_through(Batch([job for job in list(self._waiting) if not job.is_done]))
        finally:
            self._waiting.pop(job, None)
        return job.outcome()

    def _let_through(self, batch: Batch[S]) -> None:
        """Do the batch while no other process writes. The lock is given back by the first call of `finally`, before
        which no second interrupt can strike; giving back what was not taken does no harm."""
        try:
            self._turn.take()
            self._carry(batch)
        except OSError as error:
            if batch.is_done:
                raise
            batch.fail(error)
        finally:
            self._turn.file.unlock()

    def in_child(self) -> None:
        """After a fork: the threads that were inside, or waited, are the parent's."""
        self.lock = threading.Lock()
        self._waiting.clear()
        self._turn.in_child()

    def close(self, let_go: Callable[[], None]) -> None:
        """When no thread is inside: let go of what works are done on, and of the lock. Harmless when repeated."""
        with self.lock:
            let_go()
            self._turn.file.close()
