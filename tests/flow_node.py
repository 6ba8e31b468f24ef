"""A process with a TaskQueue of two workers, for tests that kill it: python flow_node.py STORE ENDINGS.

It appends each task ending that the store has accepted to the file ENDINGS. It ends when its stdin is closed."""

from __future__ import annotations

import sys

from dtq import TaskQueue

NAMES = ("value", "total", "begin_and_end", "fail")


def note(event):
    with open(sys.argv[2], "a") as endings:
        endings.write(f"{event.task.id}\n")


if __name__ == "__main__":
    handlers = {name: f"flow_handlers:{name}" for name in NAMES}
    with TaskQueue(sys.argv[1], handlers, pool_size=2, lease=5) as queue:
        for name in ("task:completed", "task:failed", "task:cancelled"):
            queue.on(name, note)
        print("READY", *(worker.pid for worker in queue.workers()), flush=True)
        sys.stdin.read()
