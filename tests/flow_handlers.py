"""Handlers of test_flow.py, and of the processes that it kills."""

from __future__ import annotations

import os
import time


def value(payload, context):
    return payload


def total(payload, context):
    """Of what the parents gave."""
    return sum(context.parents.values())


def tell(payload, context):
    """What it got, as it got it."""
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
    """In steps, between which a thread can be told to end."""
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
    """Appends to a log outside the queue, which is what the tests believe."""
    with open(payload["log"], "a") as log:
        log.write(f"{context.task_id} begins\n")
        log.flush()
        time.sleep(payload["seconds"])
        log.write(f"{context.task_id} ends\n")
    return payload["n"]
