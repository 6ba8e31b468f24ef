"""Hygiene: check that a chapter leaves no process, thread or file behind, and that no thread has failed.

A cell stays green if a thread or a process that it started fails; `assert_clean` at the end of a chapter reports it.

Every cell may run twice. What a cell starts in the background replaces what it started before:

    end_before_next("queue", queue.shutdown)     ends the previous queue; this one ends before the next, or at the end
"""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

WITHIN = 2.0  # seconds that processes and threads may take to end
PROC = Path("/proc")
Process = tuple[int, int, str, str]  # its id, its parent's, its state, its name


class Watch:
    """The child processes that existed before the chapter, and the failures of threads since then."""

    def __init__(self) -> None:
        self.children = child_processes()
        self.failures: list[str] = []
        self.directories: list[Path] = []
        self._hook = threading.excepthook
        threading.excepthook = self._note

    def _note(self, failure: threading.ExceptHookArgs) -> None:
        name = failure.thread.name if failure.thread else "a thread"
        self.failures.append(f"thread {name} failed: {failure.exc_value!r}")
        self._hook(failure)

    def stop(self) -> None:
        """Stop watching."""
        threading.excepthook = self._hook

    def end(self) -> None:
        """Stop watching, and remove the directories."""
        self.stop()
        for directory in self.directories:
            shutil.rmtree(directory, ignore_errors=True)


_watches: list[Watch] = []
_running: dict[str, Callable[[], object]] = {}  # kind of background work -> the function that ends it


def begin(directory: Path) -> None:
    """Watch from here on. The directory is removed when this process ends, so cells still run after `assert_clean`."""
    end_all()
    while _watches:
        _watches.pop().stop()
    _watches.append(Watch())
    _watches[0].directories.append(directory)
    atexit.register(shutil.rmtree, directory, ignore_errors=True)


def end_before_next(kind: str, end: Callable[[], object]) -> None:
    """End the previous thing of this `kind`. `end` is called before the next one starts, or at the end."""
    _end(kind)
    _running[kind] = end


def end_all() -> None:
    """End everything that was started in the background, the latest first."""
    for kind in [*reversed(_running)]:
        _end(kind)


def _end(kind: str) -> None:
    if kind in _running:
        _running.pop(kind)()


def assert_clean() -> None:
    """End what the lab has started for this chapter, and check that nothing else is left. May be called again.

    Raises:
        AssertionError: A process or a thread of a queue is still running, or a thread has failed since `lab.start`.
        RuntimeError: `lab.start` was not called.
    """
    if not _watches:
        raise RuntimeError("nothing is watched: call lab.start(chapter) in the first cell")
    end_all()
    give_up_at = time.monotonic() + WITHIN
    while _left(_watches[0]) and time.monotonic() < give_up_at:
        time.sleep(0.02)
    found = _watches[0].failures + _left(_watches[0])
    assert not found, "this chapter left something behind:\n" + "\n".join(found)
    print("Clean: no process and no thread is left, and no thread has failed.")


def _left(watch: Watch) -> list[str]:
    now = child_processes()
    processes = [f"process {pid} is still running: {now[pid]}" for pid in sorted(now.keys() - watch.children.keys())]
    return processes + [f"thread {t.name} is still running" for t in threading.enumerate() if t.name.startswith("dtq-")]


def child_processes() -> dict[int, str]:
    """Return the id and name of each child process that has not ended."""
    processes = _from_proc() if PROC.joinpath("self", "stat").exists() else _from_ps()
    return {pid: name for pid, parent, state, name in processes if parent == os.getpid() and state[0] not in "ZX"}


def _from_proc() -> Iterator[Process]:
    """Yield all processes on Linux, where small images have no `ps`."""
    for directory in PROC.glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended in the meantime
            head, _, tail = directory.joinpath("stat").read_text().rpartition(")")  # 7 (a (name)) S 1 ...
            state, parent, *_ = tail.split()
            yield int(directory.name), int(parent), state, head.partition("(")[2]


def _from_ps() -> Iterator[Process]:
    """Yield all processes on macOS, which has no /proc."""
    with subprocess.Popen(["ps", "-A", "-o", "pid=,ppid=,stat=,comm="], stdout=subprocess.PIPE, text=True) as ps:
        assert ps.stdout is not None
        for line in ps.stdout:
            pid, parent, state, name = line.split(None, 3)
            if int(pid) != ps.pid:
                yield int(pid), int(parent), state, name.strip()
