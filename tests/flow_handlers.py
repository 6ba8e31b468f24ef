"""Handlers for test_flow.py and for the node processes that test_flow_kills.py kills."""

from __future__ import annotations

import os
import time


def value(payload, context):
    return payload


def total(payload, context):
    """Return the sum of the parents' results."""
    return sum(context.parents.values())


def tell(payload, context):
    """Return the results and the missing parents, unchanged."""
    return {"results": dict(context.parents), "missing": context.parents.missing}


def ask_for(payload, context):
    return context.parents[payload]


async def total_async(payload, context):
    return sum(context.parents.values())


def fail(payload, context):
    raise ValueError("no")


def large(payload, context):
    return "x" * payload


def sleep(payload, context):
    """Sleep in short steps, so that a thread can be interrupted between them."""
    give_up_at = time.monotonic() + payload
    while time.monotonic() < give_up_at:
        time.sleep(0.01)


def wait_for_file(payload, context):
    while not os.path.exists(payload):
        time.sleep(0.005)


def progress_and_wait(payload, context):
    context.progress(50)
    sleep(payload, context)


def begin_and_end(payload, context):
    """Append the beginning and the end to a log outside the queue, which the tests check."""
    with open(payload["log"], "a") as log:
        log.write(f"{context.task_id} begins\n")
        log.flush()
        time.sleep(payload["seconds"])
        log.write(f"{context.task_id} ends\n")
    return payload["n"]
