"""Directory: the directory of a file store as this process has it open: how it is written, followed, brought up to
date.

write(work) --> GroupCommit: one at a time --> Replica changes --> journal: appended, flushed, done
look(look)  --> what others have appended --> Replica --> an answer
persist()   --> Replica, the tasks that changed --> TaskFiles: their files --> old journals go
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
from dtq.stores.file.disk import Disk
from dtq.stores.file.journal import Diverged, Journal
from dtq.stores.file.replica import Change, Entry, Replica
from dtq.stores.file.salvage import PROBLEMS, salvaged
from dtq.stores.file.task_files import TaskFiles
from dtq.stores.shared.group_commit import Batch, GroupCommit, Job
from dtq.stores.shared.lockfile import Lockfile
from dtq.stores.shared.peers import Peers, Wake
from dtq.stores.shared.watch import ChangeWatcher

log = logging.getLogger("dtq")

T = TypeVar("T")
FORMAT = b"dtq file store 1\n"
OURS = {"format", "lock", "persist.lock", "nodes", "tasks", "quarantine", "queue.json", "queue-copy.json"}
_to_json = msgspec.json.Encoder().encode
_change = msgspec.json.Decoder(Change).decode


class Files(NamedTuple):
    """What the files have to say so that these journals may go."""

    journals: list[int]
    entries: list[Entry]
    gone: set[str]
    others: Change


class Directory:
    """Raises StoreError, with the directory in it, where it cannot be opened, written or read, or is not one of ours.

    Without `flush`, nothing waits for the disk. The task files are brought up to date each `interval` seconds.
    """

    def __init__(self, directory: Path, flush: bool, interval: float, disk: Disk) -> None:
        self.directory = directory
        with self.named_errors("opened"):  # once: the others may use another name, and this process may chdir
            self.directory = directory = Path(os.path.realpath(directory))
        self._label = directory / "format"
        self._flush = flush
        self._interval = interval
        self._disk = disk
        self._begin_to_live()
        self.watch = ChangeWatcher(directory / "nodes", self._has_news)
        with self.named_errors("opened"):
            self._occupy()
            self._shelf = TaskFiles(directory, disk)
            self._journal = Journal(directory, disk)
            self._turnstile = GroupCommit(f"{directory}/lock", self._carry)
            self._turnstile.run(lambda _: None, flush=False)

    def _begin_to_live(self) -> None:
        self._lock = threading.Lock()  # of the replica and the journal
        self._replica: Replica | None = None  # None: to be read from the files
        self._written: list[bytes] = []  # by the transaction that is under way
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()

    def _occupy(self) -> None:
        """Makes the directory where it is missing; refuses one of somebody else, or of a newer dtq."""
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
        """Whether it is that of no dtq, in a directory that is one of ours nevertheless."""
        is_ours = any(self.directory.glob("journal-*")) and not re.fullmatch(rb"dtq file store \d+\n", label)
        if is_ours:
            log.warning("%s is damaged, and written anew: %r", self._label, label[:40])
            self._disk.place(str(self._label), FORMAT)
        return is_ours

    @contextmanager
    def named_errors(self, verb: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreError(f"{self.directory} cannot be {verb}: {error}") from error

    # --- one commit

    def write(self, work: Callable[[Replica], T], *, flush: bool, wake: Wake = "all") -> T:
        """The value of `work`, committed; all of it or, raising, nothing. With `flush` it is on the disk by then."""
        with self.named_errors("written, and nothing was stored"):
            peers = self.watch.peers  # made now if need be: after the commit nothing may fail any more
            value = self._turnstile.run(work, flush=flush and self._flush)
            self._begin_to_persist()
            peers.wake(wake)
            return value

    def _carry(self, batch: Batch[Replica]) -> None:
        """Do all jobs, and append what they have changed: that is the commit. Behind it there is no moment at which an
        interrupt could come before `is_done`."""
        with self._lock:
            try:
                self._written = []
                self._read_up(alone=True)
                for job in batch.jobs:
                    self._perform(job)
                if self._written:
                    self._journal.append(self._written, flush=batch.flush)
                batch.is_done = True
            except BaseException:
                self._replica = None  # it knows of what was not written
                raise

    def _perform(self, job: Job[Replica, Any]) -> None:
        """Does the work, and keeps what it has changed for the journal. What fails half-way is forgotten."""
        replica = self._replica or self._begin()
        job.error = None
        try:
            job.value = job.work(replica)
            if change := replica.take(self._journal.number):
                self._written.append(_to_json(change))
        except InvalidTask as error:  # raised before anything was changed
            job.error = error
        except Exception as error:
            job.error = error
            self._begin()

    def _begin(self) -> Replica:
        """Reads the files, the journals, and what the transaction has done by now. For who holds the lock."""
        if not self._label.exists():
            self._disk.place(str(self._label), FORMAT)
        replica = Replica()
        replica.apply(self._shelf.others(), 0)
        replica.apply(Change(put=list(self._shelf.entries())), 0)
        replica.dirty.clear()  # what comes from the files need not be written to them
        lines, damaged = self._journal.begin()
        for number, body in [*lines, *((self._journal.number, body) for body in self._written)]:
            try:
                change = _change(body)
            except PROBLEMS:
                damaged.append(body)
                change = salvaged(body)
            replica.apply(change, number)
        self._shelf.keep_damaged(damaged)
        replica.settle_orphans()
        self._replica = replica
        return replica

    # --- look

    def look(self, look: Callable[[Replica], T]) -> T:
        """What `look` sees in the replica when it has caught up."""
        with self.named_errors("read"):
            with self._lock:
                if self._read_up(alone=False) and self._replica is not None:
                    return look(self._replica)
            return self._turnstile.run(look, flush=False)  # which begins anew

    def _read_up(self, *, alone: bool) -> bool:
        """Applies what others have appended; False where everything has to be read anew."""
        if self._replica is not None:
            try:
                for number, body in self._journal.news(alone=alone):
                    self._replica.apply(_change(body), number)
            except (Diverged, *PROBLEMS):
                self._replica = None
            except BaseException:  # it knows a half of something
                self._replica = None
                raise
        return self._replica is not None

    # --- the files, now and then

    def _begin_to_persist(self) -> None:
        with self._lock:
            if self._thread is None and not self._closing.is_set():
                thread = threading.Thread(target=self._persist_now_and_then, name="dtq-files", daemon=True)
                thread.start()
                self._thread = thread  # only now: an interrupt may have come before the thread began

    def _persist_now_and_then(self) -> None:
        while not self._closing.wait(self._interval):
            try:
                self.persist()
            except StoreError as error:
                log.warning("the task files are not up to date, the journal is: %s", error)

    def persist(self) -> None:
        """Brings the task files up to date, and drops the journals that they make superfluous; one process at a time
        does it."""
        with self.named_errors("written"), closing(Lockfile(f"{self.directory}/persist.lock")) as file:
            if file.try_lock():  # else another process is at it
                self._persist_alone()

    def _persist_alone(self) -> None:
        if files := self._turnstile.run(self._turn_over, flush=False):
            self._shelf.put(files.entries, files.gone, files.others)
            self._turnstile.run(lambda _: self._journal.remove(files.journals), flush=False)

    def _turn_over(self, replica: Replica) -> Files | None:
        """Begins a new journal; gives what the files have to say before the old ones may go."""
        journals = self._journal.numbers()
        replica.dirty = {number: ids for number, ids in replica.dirty.items() if number in journals}
        if self._journal.is_empty and len(journals) == 1:
            return None
        ids = set().union(*replica.dirty.values())
        self._journal.rotate()
        entries = replica.entries(ids)
        return Files(journals, entries, ids - {entry.task.id for entry in entries}, replica.all_but_tasks())

    # --- others, end

    def _has_news(self) -> bool:
        with self._lock:
            return self._journal.has_news()

    def in_child(self) -> None:
        """After a fork: everything is read again when it is needed. Threads, locks and descriptors are the parent's."""
        is_closed = self._closing.is_set()
        self._begin_to_live()
        if is_closed:
            self._closing.set()
        with suppress(OSError):
            self._journal.close()
        self._journal = Journal(self.directory, self._disk)
        self._turnstile.in_child()
        self.watch.in_child()

    def close(self, leave: Callable[[Peers], None] = Peers.close) -> None:
        """Bring the task files up to date if no other process has the queue open, and let go of the directory. `leave`
        is what becomes of this process among its peers."""
        self._end_thread()
        with suppress(StoreError):  # the journal has it all
            if self._thread is not None and not self.watch.peers.living():
                self.persist()
        self._let_go(leave)

    def abandon(self) -> None:
        """Lets go of everything without a word to anybody, as a killed process would; for tests of crashes."""
        self._end_thread()
        self._let_go(Peers.abandon)

    def _end_thread(self) -> None:
        with self._lock:
            self._closing.set()
        if self._thread is not None:
            self._thread.join()

    def _let_go(self, leave: Callable[[Peers], None]) -> None:
        self.watch.close(leave)
        self._turnstile.close(self._journal.close)
