"""FairLock: processes that share a store write one at a time, in the order in which they asked.

    acquire --free--> locked by this process
       |
       +-----taken--> a thread waits in flock --> locked, or, after LOCK_TIMEOUT seconds, an error that names the holder

The kernel's queue of flock is fair, but flock has no timeout, and trying again and again is not fair: with three
processes the slowest of a hundred waits took 49 ms instead of 6. So a thread waits in flock, and the caller waits for
that thread. If the caller gives up, the thread unlocks the file as soon as it has the lock.
"""

from __future__ import annotations

import _thread
import os
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

from dtq.stores.shared.lockfile import Lockfile

LOCK_TIMEOUT = 30.0  # seconds to wait for another process that writes
RETRY_INTERVAL = 0.01  # seconds between tries, where no thread can be started


class FairLock:
    """The lock of the file at `path`. One thread at a time calls `acquire`, and then always `file.unlock`."""

    def __init__(self, path: str) -> None:
        self.file = Lockfile(path)
        self._begin()

    def _begin(self) -> None:
        self._guard = threading.Lock()
        self._got = threading.Event()
        self._is_awaited = False  # by a caller of `acquire`
        self._is_queued = False  # a thread waits in flock

    def acquire(self) -> None:
        """Return once this process has the lock. Raises TimeoutError if another holds it for LOCK_TIMEOUT seconds."""
        if sys.platform == "win32":
            return  # rely on the wait inside SQLite
        give_up_at = time.monotonic() + LOCK_TIMEOUT
        while not self._acquire_once(give_up_at - time.monotonic()) or self.file.reopen_if_removed():
            if time.monotonic() >= give_up_at:
                raise TimeoutError(f"{self.file.path} has been locked for {LOCK_TIMEOUT:g} s by {self._holder()}")

    def _acquire_once(self, seconds: float) -> bool:
        try:
            with self._guard:
                if not self._is_queued and self.file.try_lock():
                    return True
                self._is_awaited = True
                self._got.clear()
                if not self._is_queued:
                    self._is_queued = True  # no interrupt can strike between this and the start of the thread
                    _thread.start_new_thread(self._queue_up, ())
            return self._got.wait(seconds)
        except RuntimeError:  # no thread: the interpreter is ending, or there are too many
            self._is_queued = False
            return self._poll(seconds)
        finally:
            self._is_awaited = False

    def _queue_up(self) -> None:
        """Wait for the lock, and pass it to the caller that still waits; unlock the file if none does. A caller that
        gives up at this moment has unlocked the file: then wait again, for the next caller."""
        try:
            self._wait_in_flock()
        except OSError:  # closed meanwhile
            self._is_queued = False

    def _wait_in_flock(self) -> None:
        while self._is_queued:
            self.file.lock()
            with self._guard:
                if not self._is_awaited:
                    self.file.unlock()
                    self._is_queued = False
                elif self.file.try_lock():
                    self._got.set()
                    self._is_queued = False

    def _poll(self, seconds: float) -> bool:
        give_up_at = time.monotonic() + seconds
        while not (has_lock := self.file.try_lock()) and time.monotonic() < give_up_at:
            time.sleep(RETRY_INTERVAL)
        return has_lock

    def _holder(self) -> str:
        """Describe the process that has locked the file, if the system knows it."""
        pid = self.file.holder()
        if pid and (words := _command(pid)):
            return f"process {pid} ({words}): let it go on, or end it"
        was = f"process {pid}, which has ended, and a process that it forked" if pid else "another process"
        return f"{was}: `lsof {self.file.path}` shows which"

    def in_child(self) -> None:
        """After a fork: leave the lock to the parent. The file is opened again on its next use."""
        self.file.close_inherited()
        self._begin()


def _command(pid: int) -> str:
    """Return the command line of a process, shortened; empty if there is no such process."""
    if sys.platform == "win32":
        return ""
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()[:100]
    with suppress(OSError):
        os.kill(pid, 0)
        return "no command line known"
    return ""
