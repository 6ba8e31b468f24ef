"""Handlers for the tests of the whole queue, named "queue_handlers:function", or by the path of this file."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time


def execute(payload, context):
    return payload


def nothing(payload, context):
    return None


def note(payload, context):
    """Append to a log outside the queue, which tests compare with the queue's own account; then sleep."""
    with open(payload["log"], "a") as log:
        log.write(f"{context.task_id} {context.attempt}\n")
    time.sleep(payload.get("seconds", 0))
    return payload.get("n")


def fail(payload, context):
    raise ValueError("no")


def spin(payload, context):
    while True:
        pass


def swallow(payload, context):
    """Ignore every exception."""
    while True:
        with contextlib.suppress(BaseException):
            time.sleep(60)


def hold_the_interpreter(payload, context):
    """Call C code that holds the interpreter for minutes."""
    context.progress(1)
    sum(range(10**11))


def ignore_signals(payload, context):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
    time.sleep(600)


async def wait(payload, context):
    await asyncio.sleep(payload)
    return payload


def freeze_in_the_middle_of_the_result(payload, context):
    """Return a large result, and suspend the process while it sends: the pool has read a part of it by then."""
    os.system(f"(sleep 0.02; kill -STOP {os.getpid()}) >/dev/null 2>&1 &")
    deadline = time.monotonic() + 0.05
    while time.monotonic() < deadline:
        pass
    return "x" * (1 << 19)


def sleep_if_asked(payload, context):
    time.sleep(payload)
    return payload


def die(payload, context):
    os.kill(os.getpid(), signal.SIGKILL)


def leave(payload, context):
    os._exit(payload)


def talk(payload, context):
    print("out")
    print("err", file=sys.stderr)
    context.log("log")
    context.progress(40, "nearly half")


def too_much(payload, context):
    return "x" * (2 << 20)


def no_json(payload, context):
    return object()
