"""A node for the tests that kill it: `python kill_node.py DATABASE` says READY when its workers are."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

from dtq import TaskQueue

HANDLERS = Path(__file__).with_name("queue_handlers.py")


def main(database: str) -> None:
    sys.path.insert(0, str(HANDLERS.parent))
    names = ("note", "sleep_if_asked", "hold_the_interpreter", "spin")
    queue = TaskQueue(database, {name: f"queue_handlers:{name}" for name in names}, pool_size=2)
    ready = threading.Semaphore(0)
    queue.on("worker:ready", lambda event: ready.release())
    with queue:
        for _ in range(2):
            ready.acquire()
        print("READY", *(worker.pid for worker in queue.workers()), flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main(sys.argv[1])
