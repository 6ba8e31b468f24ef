"""Turn: the lock by which the processes that share a store write one at a time, in the order in which they came.

    take --free--> locked by this process
      |
      +--taken--> a thread stands in the kernel's line --> locked, or, after PATIENCE seconds, an error with the holder

The kernel's line (flock) is fair, but flock knows no timeout, and trying again and again is not fair: with three
processes the slowest of a hundred waits took 49 ms instead of 6. So a thread waits in flock, and the caller waits for
that thread. Where the caller gives up, the thread gives the lock back as soon as it gets it.
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

PATIENCE = 30.0  # seconds to wait for another process that writes
POLL = 0.01  # seconds between tries, where no thread can be started


class Turn:
    """The lock of the file at `path`. One thread at a time calls `take`, and then `file.unlock`, whatever happens."""

    def __init__(self, path: str) -> None:
        self.file = Lockfile(path)
        self._begin()

    def _begin(self) -> None:
        self._guard = threading.Lock()
        self._got = threading.Event()
        self._is_awaited = False  # by a caller of `take`
        self._is_in_line = False  # a thread waits in flock

    def take(self) -> None:
        """Return when this process has the lock. Raises TimeoutError where another holds it for PATIENCE seconds."""
        if sys.platform == "win32":
            return  # SQLite's own waiting has to do
        give_up_at = time.monotonic() + PATIENCE
        while not self._take_once(give_up_at - time.monotonic()) or self.file.reopen_if_removed():
            if time.monotonic() >= give_up_at:
                raise TimeoutError(f"{self.file.path} has been locked for {PATIENCE:g} s by {self._holder()}")

    def _take_once(self, seconds: float) -> bool:
        try:
            with self._guard:
                if not self._is_in_line and self.file.try_lock():
                    return True
                self._is_awaited = True
                self._got.clear()
                if not self._is_in_line:
                    self._is_in_line = True  # no interrupt can strike between this and the start of the thread
                    _thread.start_new_thread(self._stand_in_line, ())
            return self._got.wait(seconds)
        except RuntimeError:  # no thread: the interpreter is ending, or there are too many
            self._is_in_line = False
            return self._poll(seconds)
        finally:
            self._is_awaited = False

    def _stand_in_line(self) -> None:
        """Wait for the lock, and hand it to the caller that awaits it by then; without one, give it back. A caller that
        has given up in this very moment has unlocked the file: then wait once more for the next one."""
        try:
            self._wait_until_over()
        except OSError:  # closed meanwhile
            self._is_in_line = False

    def _wait_until_over(self) -> None:
        while self._is_in_line:
            self.file.lock()
            with self._guard:
                if not self._is_awaited:
                    self.file.unlock()
                    self._is_in_line = False
                elif self.file.try_lock():
                    self._got.set()
                    self._is_in_line = False

    def _poll(self, seconds: float) -> bool:
        give_up_at = time.monotonic() + seconds
        while not (has_lock := self.file.try_lock()) and time.monotonic() < give_up_at:
            time.sleep(POLL)
        return has_lock

    def _holder(self) -> str:
        """Name the process that has locked the file, as far as the system tells."""
        pid = self.file.holder()
        if pid and (words := _command(pid)):
            return f"process {pid} ({words}): let it go on, or end it"
        was = f"process {pid}, which has ended, and a process that it forked" if pid else "another process"
        return f"{was}: `lsof {self.file.path}` shows which"

    def in_child(self) -> None:
        """After a fork: the lock is the parent's. The file is opened again when it is needed."""
        self.file.close_inherited()
        self._begin()


def _command(pid: int) -> str:
    """Return the command line of a process, shortened; empty where there is none."""
    if sys.platform == "win32":
        return ""
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()[:100]
    with suppress(OSError):
        os.kill(pid, 0)
        return "no command line known"
    return ""
