"""A node in its own process: `python monitor_node.py STORE`, until its stdin ends."""

from __future__ import annotations

import sys
import time

from dtq import TaskQueue


def obey(payload, context):
    """Takes as long, and fails as often, as the payload says; tells how long it took by its own watch."""
    began = time.perf_counter()
    time.sleep(payload["seconds"])
    took = time.perf_counter() - began
    if context.attempt <= payload.get("fails", 0):
        raise ValueError(str(took))
    return took


if __name__ == "__main__":
    with TaskQueue(sys.argv[1], {"obey": obey}, 2):
        print("ready", flush=True)
        sys.stdin.read()
