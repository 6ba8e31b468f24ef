"""Nothing is left behind: what a chapter started has ended, and what went wrong on another thread is not overlooked.

A cell is green when a thread, or a process, of its own has failed; `assert_clean` at the end of a chapter sees it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from pathlib import Path

WITHIN = 2.0  # seconds that processes and threads may take to end


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
    assert not found, "this chapter left something behind:\n" + "\n".join(found)
    print("Clean: no process, no thread and no file is left, and no thread has failed.")


def _left(watch: Watch) -> list[str]:
    processes = [f"process {pid} lives" for pid in sorted(child_processes() - watch.children)]
    return processes + [f"thread {t.name} lives" for t in threading.enumerate() if t.name.startswith("dtq-")]


def child_processes() -> set[int]:
    """The ids of the processes that this one has started and that have not ended."""
    listing = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,stat="], capture_output=True, text=True, check=True).stdout
    rows = (line.split() for line in listing.splitlines())
    ours = {int(pid) for pid, parent, state in rows if int(parent) == os.getpid() and not state.startswith("Z")}
    return {pid for pid in ours if _is_there(pid)}


def _is_there(pid: int) -> bool:
    """Whether it is still there: `ps` lists itself, and is gone by now."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
