"""Offspring: the processes that a handler starts end with the attempt that started them.

    attempt begins ... Popen, fork, multiprocessing ... attempt ends --> SIGTERM --> 0.4 s --> SIGKILL
                                     |
                                     +-- its timeout, or its cancellation --> SIGTERM at once

Three kinds of processes stay: those that existed before the attempt, such as children of a module's `setup()` or of its
import; the helpers that multiprocessing starts once for the whole process; and, unless the attempt was interrupted, the
processes of a pool or an executor, which ends them itself when nothing refers to it. A worker adopts the orphans below
it (PR_SET_CHILD_SUBREAPER), so a double fork does not escape.

Linux only: other systems have no cheap list of children, and there the children end with their worker. Attempts of
async handlers overlap, and a child does not show which of them started it: such children end when no attempt runs.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from math import inf
from typing import NamedTuple

SHARE = 0.8  # the children's part of the pool's grace: the rest is for the report of the attempt
KILLED_WITHIN = 0.1  # seconds that a killed child may take to be gone
NO_SPAWN = 50e-6  # seconds: no process starts in less, so shorter attempts are not checked
SEES_CHILDREN = os.path.exists(f"/proc/self/task/{os.getpid()}/children")
TICK = 1 / os.sysconf("SC_CLK_TCK")  # seconds; the kernel's unit for start times
_PR_SET_CHILD_SUBREAPER = 36


class Offspring:
    """Ends the children of this process that running attempts have started.

    The main thread runs one attempt after the other, and sets `busy` around each; beside it, others run in parallel.
    Set `grace`, the pool's, before the first attempt.
    """

    def __init__(self) -> None:
        self.grace = 0.5
        self.busy = False
        self.since = inf  # start of the first ended attempt whose children must wait for others to end
        self._interrupted = False  # whether one of these attempts was interrupted
        self._parallel = 0  # attempts that run beside the main thread
        self._lock = threading.Lock()
        self._kept: set[int] = set()
        self._terminated: dict[int, float] = {}  # process id -> when SIGTERM was sent

    def begin_parallel(self) -> None:
        with self._lock:
            self._parallel += 1

    def end_parallel(self, seconds: float, interrupted: bool) -> None:
        with self._lock:
            self._parallel -= 1
        self.end(seconds, interrupted)

    def end(self, seconds: float, interrupted: bool) -> None:
        """End the children of an attempt that has just ended after this many seconds. If other attempts run at this
        moment, the last of them ends all children."""
        if seconds < NO_SPAWN and self.since == inf:
            return
        with self._lock:
            self.since = min(self.since, time.monotonic() - seconds)
            self._interrupted |= interrupted
            if self.busy or self._parallel:
                return
            since, self.since = self.since, inf
            interrupted, self._interrupted = self._interrupted, False
        if SEES_CHILDREN and has_children():
            self._end_new(since, set() if interrupted else _pooled())

    def warn(self, began: float) -> None:
        """Send SIGTERM to the children of the main thread's attempt, which began then and is about to be interrupted:
        the handler may wait for one of them."""
        if SEES_CHILDREN and self.busy and not self._parallel:
            self._terminate(self._new(began, set()))

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Keep the processes that start within this block."""
        before = set(children_of(os.getpid()))
        try:
            yield
        finally:
            self._kept = self._kept.intersection(before).union(set(children_of(os.getpid())) - before)

    def _end_new(self, began: float, spared: set[int]) -> None:
        """End the processes started since then. Return once they are gone, or KILLED_WITHIN after SIGKILL."""
        pause, found = 0.001, self._new(began, spared)
        while found:
            self._terminate(found)
            kill_before = time.monotonic() - self.grace * SHARE
            since = {pid: self._terminated.get(pid, kill_before) for pid in found}  # another thread may have cleared it
            _send({pid for pid in found if since[pid] <= kill_before}, signal.SIGKILL)
            if max(since.values()) <= kill_before - KILLED_WITHIN:
                break
            time.sleep(pause)
            pause = min(pause * 1.5, 0.02)
            found = _running(found) if self.busy or self._parallel else self._new(began, spared)
        self._terminated.clear()

    def _terminate(self, found: set[int]) -> None:
        fresh = found - self._terminated.keys()
        _send(fresh, signal.SIGTERM)
        self._terminated.update(dict.fromkeys(fresh, time.monotonic()))

    def _new(self, began: float, spared: set[int]) -> set[int]:
        """Return the running processes below this one that started after the attempt began."""
        kept, since = self._kept | _helpers() | spared, _ticks_at(began)
        children = set(children_of(os.getpid())) - kept
        return _running({pid for pid in children if (process := look_at(pid)) and process.started >= since})


def _running(pids: set[int]) -> set[int]:
    """Return the running ones and all processes below them. Reap those that have ended."""
    found = set()
    for pid in pids:
        if (process := look_at(pid)) and process.state == "Z":
            with contextlib.suppress(ChildProcessError):  # not a child of this process, or its Popen has reaped it
                os.waitpid(pid, os.WNOHANG)
        elif process:
            found.add(pid)
    return found.union(*map(below, found))


class Process(NamedTuple):
    state: str  # "Z" is a zombie
    started: int  # in ticks since boot


def look_at(pid: int) -> Process | None:
    """Return the state and start time of a process, or None if it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return Process(fields[0].decode(), int(fields[19]))


def _ticks_at(moment: float) -> int:
    """Convert a time of the monotonic clock to ticks since boot, rounded down by one tick."""
    ago = time.monotonic() - moment
    return int((time.clock_gettime(time.CLOCK_BOOTTIME) - ago) / TICK) - 1


def has_children() -> bool:
    """Return whether this process has any child, running or ended."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def children_of(pid: int) -> list[int]:
    """Return the children of a process, zombies included. Empty if the system has no such list."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{thread}/children") as file:
                found += map(int, file.read().split())
    return found


def below(pid: int) -> set[int]:
    """Return all processes below a process, at any depth."""
    found: set[int] = set()
    queue = [pid]
    while queue:
        fresh = set(children_of(queue.pop())) - found
        found |= fresh
        queue += fresh
    return found


def adopt_orphans() -> None:
    """Make this process the parent of all orphans below it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _helpers() -> set[int]:
    """Return the processes that multiprocessing starts once for the whole process."""
    tracker = sys.modules.get("multiprocessing.resource_tracker")
    server = sys.modules.get("multiprocessing.forkserver")
    pids = {
        getattr(getattr(tracker, "_resource_tracker", None), "_pid", None),
        getattr(getattr(server, "_forkserver", None), "_forkserver_pid", None),
    }
    return {pid for pid in pids if pid is not None}


def _pooled() -> set[int]:
    """Return the processes of multiprocessing's pools and of executors that are in use."""
    process = sys.modules.get("multiprocessing.process")
    futures = sys.modules.get("concurrent.futures.process")
    found = {child.pid for child in list(getattr(process, "_children", ())) if "PoolWorker" in child.name}
    for manager in list(getattr(futures, "_threads_wakeups", ())):
        found.update(list(getattr(manager, "processes", None) or ()))
    return found


def _send(pids: set[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)
