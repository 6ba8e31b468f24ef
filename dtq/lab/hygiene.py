"""Nothing is left behind: what a chapter started has ended, and what went wrong on another thread is not overlooked.

A cell is green when a thread, or a process, of its own has failed; `assert_clean` at the end of a chapter sees it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
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

    def end(self) -> None:
        threading.excepthook = self._hook
        for directory in self.directories:
            shutil.rmtree(directory, ignore_errors=True)


_watches: list[Watch] = []


def begin(directory: Path) -> None:
    """Watches from here on; the directory is removed at the end."""
    while _watches:
        _watches.pop().end()
    _watches.append(Watch())
    _watches[0].directories.append(directory)


def assert_clean() -> None:
    """Fails where a process or thread of a queue still lives, or a thread has failed since `lab.start`; names them.

    Removes the chapter's working directory.
    """
    if not _watches:
        raise RuntimeError("nothing is watched: call lab.start(chapter) in the first cell")
    watch = _watches.pop()
    give_up_at = time.monotonic() + WITHIN
    while _left(watch) and time.monotonic() < give_up_at:
        time.sleep(0.02)
    found = watch.failures + _left(watch)
    watch.end()
    found += [f"directory {directory} cannot be removed" for directory in watch.directories if directory.exists()]
    assert not found, "this chapter left something behind:\n" + "\n".join(found)
    print("Clean: no process, no thread and no file is left, and no thread has failed.")


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
