"""Nothing is left behind: what a chapter started has ended, and what went wrong on another thread is not overlooked.

A cell is green when a thread, or a process, of its own has failed; `assert_clean` at the end of a chapter sees it.

Every cell may run twice. What a cell starts in the background takes the place of what it started before:

    end_before_next("queue", queue.shutdown)     ends the queue before; this one ends before the next, or at the end
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
    """What was there before, and what has happened since."""

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
        """Watch no longer."""
        threading.excepthook = self._hook

    def end(self) -> None:
        """Watch no longer, and remove the directories."""
        self.stop()
        for directory in self.directories:
            shutil.rmtree(directory, ignore_errors=True)


_watches: list[Watch] = []
_running: dict[str, Callable[[], object]] = {}  # what was started in the background, by its kind: how to end it


def begin(directory: Path) -> None:
    """Watch from here on. The directory is removed when this process ends, so cells still run after `assert_clean`."""
    end_all()
    while _watches:
        _watches.pop().stop()
    _watches.append(Watch())
    _watches[0].directories.append(directory)
    atexit.register(shutil.rmtree, directory, ignore_errors=True)


def end_before_next(kind: str, end: Callable[[], object]) -> None:
    """End what of this `kind` was started before. `end` is called before the next one starts, or at the end."""
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
        AssertionError: A process or a thread of a queue still lives, or a thread has failed since `lab.start`.
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
    processes = [f"process {pid} lives: {now[pid]}" for pid in sorted(now.keys() - watch.children.keys())]
    return processes + [f"thread {t.name} lives" for t in threading.enumerate() if t.name.startswith("dtq-")]


def child_processes() -> dict[int, str]:
    """Id and name of the processes that this one has started and that have not ended."""
    processes = _from_proc() if PROC.joinpath("self", "stat").exists() else _from_ps()
    return {pid: name for pid, parent, state, name in processes if parent == os.getpid() and state[0] not in "ZX"}


def _from_proc() -> Iterator[Process]:
    """On Linux: small images have no `ps`."""
    for directory in PROC.glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            head, _, tail = directory.joinpath("stat").read_text().rpartition(")")  # 7 (a (name)) S 1 ...
            state, parent, *_ = tail.split()
            yield int(directory.name), int(parent), state, head.partition("(")[2]


def _from_ps() -> Iterator[Process]:
    """On macOS, which has no /proc."""
    with subprocess.Popen(["ps", "-A", "-o", "pid=,ppid=,stat=,comm="], stdout=subprocess.PIPE, text=True) as ps:
        assert ps.stdout is not None
        for line in ps.stdout:
            pid, parent, state, name = line.split(None, 3)
            if int(pid) != ps.pid:
                yield int(pid), int(parent), state, name.strip()
