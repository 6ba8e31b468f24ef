"""Directory: the directory of a file store, as one process has it open.

write(work)    one transaction at a time (GroupCommit) --> Replica changes --> append to the journal --> flush
read(look)     apply to the Replica what others have appended --> answer
checkpoint()   tasks that changed, from the Replica --> task files --> remove old journals
"""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec

from dtq.errors import InvalidTask, StoreError
from dtq.stores.file.changes import Change, Entry
from dtq.stores.file.disk import Disk
from dtq.stores.file.journal import Diverged, Journal
from dtq.stores.file.replica import Replica
from dtq.stores.file.salvage import PROBLEMS, salvaged
from dtq.stores.file.task_files import TaskFiles
from dtq.stores.shared.group_commit import Batch, GroupCommit, Job
from dtq.stores.shared.lockfile import Lockfile
from dtq.stores.shared.peers import ChangeWatcher, Peers, Recipients

log = logging.getLogger("dtq")

T = TypeVar("T")
FORMAT = b"dtq file store 1\n"
OURS = {"format", "lock", "persist.lock", "nodes", "tasks", "quarantine", "queue.json", "queue-copy.json"}
_to_json = msgspec.json.Encoder().encode
_change = msgspec.json.Decoder(Change).decode


class Checkpoint(NamedTuple):
    """What the task files must hold before these journals may be removed."""

    journals: list[int]
    entries: list[Entry]
    gone: set[str]
    others: Change


class Directory:
    """The files below `directory`, and the Replica of them in memory.

    Without `flush`, no call waits for the disk. A checkpoint is written every `interval` seconds, and
    whenever the journal has become long. Raises StoreError, which names the directory, where it cannot be opened, read
    or written, or does not belong to a file store.
    """

    def __init__(self, directory: Path, flush: bool, interval: float, disk: Disk) -> None:
        self.directory = directory
        with self.named_errors("opened"):  # resolved once: peers may use another path to it, and this process may chdir
            self.directory = directory = Path(os.path.realpath(directory))
        self._label = directory / "format"
        self._flush = flush
        self._interval = interval
        self._disk = disk
        self._reset()
        self.watch = ChangeWatcher(directory / "nodes", self._has_news)
        with self.named_errors("opened"):
            self._make_or_check()
            self._task_files = TaskFiles(directory, disk)
            self._journal = Journal(directory, disk)
            self._group_commit = GroupCommit(f"{directory}/lock", self._commit)
            self._group_commit.run(lambda _: None, flush=False)  # reads everything

    def _reset(self) -> None:
        """Set what a forked child must not share with its parent."""
        self._lock = threading.Lock()  # of the replica and the journal
        self._replica: Replica | None = None  # None: to be read from the files
        self._written: list[bytes] = []  # changes of the current transaction
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()
        self._is_due = threading.Event()  # a checkpoint, before its interval is over; or the end of the thread

    def _make_or_check(self) -> None:
        """Make the directory where it is missing. Refuse one of a newer dtq, or with other files in it."""
        self.directory.mkdir(exist_ok=True)
        found = self._label.read_bytes() if self._label.exists() else FORMAT
        if found not in (FORMAT, b"") and not self._is_damaged(found):
            raise StoreError(
                f"{self.directory} is of format {found[:40]!r}, this dtq knows {FORMAT!r}: upgrade dtq, or use another "
                "directory"
            )
        names = {name for name in os.listdir(self.directory) if not name.startswith(("journal-", "."))}
        if not self._label.exists() and names - OURS:
            raise StoreError(f"{self.directory} holds {min(names - OURS)!r} and is no queue: use an empty directory")

    def _is_damaged(self, label: bytes) -> bool:
        """Return whether a directory of ours has a label that no version of dtq writes. Write the label again then."""
        is_damaged = any(self.directory.glob("journal-*")) and not re.fullmatch(rb"dtq file store \d+\n", label)
        if is_damaged:
            log.warning("%s is damaged, and written again: %r", self._label, label[:40])
            self._disk.place(str(self._label), FORMAT)
        return is_damaged

    @contextmanager
    def named_errors(self, verb: str) -> Iterator[None]:
        """Raise StoreError for an OSError: "<directory> cannot be <verb>: ..."."""
        try:
            yield
        except OSError as error:
            raise StoreError(f"{self.directory} cannot be {verb}: {error}") from error

    # --- write: one transaction

    def write(self, work: Callable[[Replica], T], *, flush: bool, wake: Recipients = "all") -> T:
        """Return the value of `work`, committed as a whole. Raise, and store nothing, where it fails.

        With `flush` it is on the disk on return. `wake` says which waiting processes are woken.
        """
        with self.named_errors("written, and nothing was stored"):
            peers = self.watch.peers  # may open files, which can fail: never after the commit
            value = self._group_commit.run(work, flush=flush and self._flush)
            self._start_checkpoints()
            if self._journal.is_long:
                self._is_due.set()
            peers.wake(wake)
            return value

    def _commit(self, batch: Batch[Replica]) -> None:
        """Do all jobs of a batch and append what they changed: that is the commit.

        No interrupt can come between the append and `is_done`.
        """
        with self._lock:
            try:
                self._written = []
                self._catch_up(is_writer=True)
                for job in batch.jobs:
                    self._do(job)
                if self._written:
                    self._journal.append(self._written, flush=batch.flush)
                batch.is_done = True
            except BaseException:
                self._replica = None  # it holds changes that were not written
                raise

    def _do(self, job: Job[Replica, Any]) -> None:
        """Do one job and keep its change for the journal. Undo a job that fails half-way, by reading all again."""
        replica = self._replica or self._load()
        job.error = None
        try:
            try:
                job.value = job.work(replica)
            except Diverged:  # the file of a task is damaged: reading everything again puts it in quarantine
                replica = self._load()
                job.value = job.work(replica)
            if change := replica.drain(self._journal.number):
                self._written.append(_to_json(change))
        except InvalidTask as error:  # raised before anything was changed
            job.error = error
        except Exception as error:
            job.error = error
            self._load()

    def _load(self) -> Replica:
        """Read the task files, the journals, and the changes of the current transaction. Needs the lock."""
        if not self._label.exists():
            self._disk.place(str(self._label), FORMAT)
        changes = self._read_journals()
        replica = Replica(self._task_files.read)
        replica.restore(self._task_files.entries(), {moved.id for _, change in changes for moved in change.moved})
        replica.apply(self._task_files.others(), 0)
        replica.dirty.clear()  # what was read from task files need not be written to them
        for number, change in changes:
            replica.apply(change, number)
        replica.unblock_orphans()
        self._replica = replica
        return replica

    def _read_journals(self) -> list[tuple[int, Change]]:
        """Return all changes that are not in the task files yet, each with the number of its journal."""
        lines, damaged = self._journal.read_all()
        changes = []
        for number, body in [*lines, *((self._journal.number, body) for body in self._written)]:
            try:
                changes.append((number, _change(body)))
            except PROBLEMS:
                damaged.append(body)
                changes.append((number, salvaged(body)))
        self._task_files.keep_damaged(damaged)
        return changes

    # --- read

    def read(self, look: Callable[[Replica], T]) -> T:
        """Return what `look` returns for the replica, after everything committed so far is applied to it."""
        with self.named_errors("read"):
            with self._lock, suppress(Diverged):  # another process has just rewritten the file of a task
                if self._catch_up(is_writer=False) and self._replica is not None:
                    return look(self._replica)
            return self._group_commit.run(look, flush=False)  # while no other process writes; may read everything again

    def _catch_up(self, *, is_writer: bool) -> bool:
        """Apply what others have appended. Return False where everything must be read again."""
        if self._replica is not None:
            try:
                for number, body in self._journal.read_new(is_writer=is_writer):
                    self._replica.apply(_change(body), number)
                self._settle(self._replica)
            except (Diverged, *PROBLEMS):
                self._replica = None
            except BaseException:  # a change may be half applied
                self._replica = None
                raise
        return self._replica is not None

    def _settle(self, replica: Replica) -> None:
        """Let the replica evict some of what was written to the task files, by any process."""
        oldest = min(replica.dirty, default=self._journal.number)
        if oldest < self._journal.number and not os.path.exists(self._journal.path(oldest)):
            replica.settle(oldest)

    # --- checkpoint: bring the task files up to date

    def _start_checkpoints(self) -> None:
        with self._lock:
            if self._thread is None and not self._closing.is_set():
                thread = threading.Thread(target=self._checkpoint_regularly, name="dtq-files", daemon=True)
                thread.start()
                self._thread = thread  # only now: an interrupt may have come before the thread started

    def _checkpoint_regularly(self) -> None:
        while not self._closing.is_set():
            self._is_due.wait(self._interval)
            self._is_due.clear()
            try:
                if not self._closing.is_set():
                    self.checkpoint()
            except StoreError as error:
                log.warning("the task files are not up to date, the journal is: %s", error)

    def checkpoint(self) -> None:
        """Bring the task files up to date and remove the journals that are no longer needed. Return at once where
        another process is doing so."""
        with self.named_errors("written"), closing(Lockfile(f"{self.directory}/persist.lock")) as file:
            if file.try_lock():
                self._write_checkpoint()

    def _write_checkpoint(self) -> None:
        if checkpoint := self._group_commit.run(self._rotate, flush=False):
            self._task_files.put(checkpoint.entries, checkpoint.gone, checkpoint.others)
            self._group_commit.run(lambda _: self._journal.remove(checkpoint.journals), flush=False)

    def _rotate(self, replica: Replica) -> Checkpoint | None:
        """Begin a new journal. Return what must be in the task files before the old ones may be removed."""
        journals = self._journal.numbers()
        if self._journal.is_empty and len(journals) == 1:
            return None
        ids = set().union(*(replica.dirty.get(number, ()) for number in journals))
        self._journal.rotate()
        entries = replica.entries(ids)
        return Checkpoint(journals, entries, ids - {entry.task.id for entry in entries}, replica.all_but_tasks())

    # --- other processes, close

    def _has_news(self) -> bool:
        with self._lock:
            return self._journal.has_news()

    def in_child(self) -> None:
        """Forget, after a fork, the parent's threads, locks and descriptors. Everything is read again when needed."""
        is_closed = self._closing.is_set()
        self._reset()
        if is_closed:
            self._closing.set()
        with suppress(OSError):
            self._journal.close()
        self._journal = Journal(self.directory, self._disk)
        self._group_commit.in_child()
        self.watch.in_child()

    def close(self, leave: Callable[[Peers], None] = Peers.close) -> None:
        """Write a checkpoint if no other process has the store open, and close. `leave` takes this process out of its
        peers."""
        self._end_thread()
        with suppress(StoreError):  # the journal has everything
            if self._thread is not None and not self.watch.peers.living():
                self.checkpoint()
        self._release(leave)

    def abandon(self) -> None:
        """Close without telling other processes, as if this process were killed; for tests of crashes."""
        self._end_thread()
        self._release(Peers.abandon)

    def _end_thread(self) -> None:
        with self._lock:
            self._closing.set()
        self._is_due.set()
        if self._thread is not None:
            self._thread.join()

    def _release(self, leave: Callable[[Peers], None]) -> None:
        self.watch.close(leave)
        self._group_commit.close(self._journal.close)
