"""A node for tests that kill it: `python kill_node.py STORE [LEASE] [DIRECTORY]`.

It changes to DIRECTORY after it has opened the store. Once its workers are ready, it prints READY and their process
ids.
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

from dtq import Task, TaskQueue

HANDLERS = Path(__file__).with_name("queue_handlers.py")


def main(store: str, lease: str = "30", directory: str = "") -> None:
    sys.path.insert(0, str(HANDLERS.parent))
    names = ("note", "sleep_if_asked", "hold_the_interpreter", "spin")
    handlers = {name: f"queue_handlers:{name}" for name in names}
    queue = TaskQueue(store, handlers, pool_size=2, lease=float(lease))
    if directory:
        os.chdir(directory)
    ready = threading.Semaphore(0)
    queue.on("worker:ready", lambda event: ready.release())
    if log := os.environ.get("DTQ_TEST_ENDINGS"):
        queue.on("task:completed", lambda event: note(log, event.task))
    with queue:
        for _ in range(2):
            ready.acquire()
        print("READY", *(worker.pid for worker in queue.workers()), flush=True)
        sys.stdin.read()


def note(log: str, task: Task) -> None:
    """Log an outcome that the store has accepted."""
    with open(log, "a") as file:
        file.write(f"{task.id} {task.version}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
