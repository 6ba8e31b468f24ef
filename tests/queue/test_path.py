"""How long the path of one plain task is: the files of dtq that it passes through, from `add` to its result."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import dtq
from dtq import TaskQueue

ROOT = f"{Path(dtq.__file__).parent}/"
FILES = 45  # of dtq in which the node and the worker call a function
TRIPS = 8  # what the loop does once a second falls into one of them or none
NOT_NEEDED = ("policy/limits", "policy/cron", "queue/scheduler", "queue/schedules", "dependencies", "webhooks/")
seen: set[str] = set()


def profiler(files: set[str]) -> Callable[[FrameType, str, Any], None]:
    """Return a profile function that adds to `files` each file of dtq in which a function is called."""

    def note(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(ROOT):
            files.add(frame.f_code.co_filename.removeprefix(ROOT))

    return note


def traced(payload: Any, context: Any) -> list[str]:
    """Return the files that this worker passed through since the call before."""
    files = sorted(seen)
    seen.clear()
    sys.setprofile(profiler(seen))
    return files


def files_of_one_task(path: Path) -> set[str]:
    """Return the files that each of several tasks passed through, in the caller, the loop and the worker."""
    here: set[str] = set()
    trips: list[set[str]] = []
    threading.setprofile(profiler(here))
    sys.setprofile(profiler(here))
    try:
        with TaskQueue(path, {"traced": traced}, pool_size=1) as queue:
            queue.add("traced").result(30)
            for _ in range(TRIPS):
                here.clear()
                in_worker = queue.add("traced").result(30)
                trips.append(here | set(in_worker))
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]
    return set.intersection(*trips)


def test_a_plain_task_takes_a_short_path_without_limits_dependencies_webhooks_or_schedules(tmp_path):
    files = files_of_one_task(tmp_path / "queue.db")
    assert {"queue/loop.py", "stores/sqlite/store.py", "workers/run/runner.py"} <= files
    assert [file for file in files if any(part in file for part in NOT_NEEDED)] == []
    assert len(files) <= FILES, sorted(files)
