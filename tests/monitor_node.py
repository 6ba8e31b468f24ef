"""A node in its own process: `python monitor_node.py STORE`, until its stdin ends."""

from __future__ import annotations

import sys
import time

from dtq import TaskQueue


def obey(payload, context):
    """Take as long and fail as often as the payload asks. Return the measured duration."""
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
