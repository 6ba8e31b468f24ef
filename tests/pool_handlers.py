"""Handlers for the tests of pools: ordinary, slow, stubborn and deadly ones."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time


def echo(payload, context):
    return payload


def sleep(payload, context):
    time.sleep(payload)


def who(payload, context):
    return {"pid": os.getpid(), "name": context.worker_id}


def signal_self(payload, context):
    os.kill(os.getpid(), payload)
    time.sleep(60)


def leave(payload, context):
    os._exit(payload)


def stubborn(payload, context):
    """Ignore every exception and SIGTERM."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    context.progress(1)
    while True:
        try:
            while True:
                time.sleep(1)
        except BaseException:
            pass


def hold_interpreter(payload, context):
    """Call C code that does not return."""
    context.progress(1)
    sum(range(10**13))


def large(payload, context):
    return "x" * payload


def grandchild(payload, context):
    child = subprocess.Popen(["sleep", "1000"])
    if payload == "stay":
        time.sleep(60)
    if payload == "die":
        print(child.pid, flush=True)
        os._exit(3)
    return child.pid


def talk(payload, context):
    context.progress(50, "half")
    print("printed")
    return "done"


def chatter(payload, context):
    """Send messages forever: an interrupt is likely to arrive during a send."""
    while True:
        context._send_progress() if context._pending else context.progress(1)
        context._throttle = None


def fork_and_return(payload, context):
    """Fork, and return in both processes. The child has a copy of the worker."""
    return os.fork() == 0


def surroundings(payload, context):
    return {
        "pid": os.getpid(),
        "parent": os.getppid(),
        "session": os.getsid(0),
        "group": os.getpgrp(),
        "sigint": signal.getsignal(signal.SIGINT) == signal.SIG_IGN,
        "sigterm": signal.getsignal(signal.SIGTERM) == signal.SIG_DFL,
        "blocked": [int(n) for n in signal.pthread_sigmask(signal.SIG_BLOCK, [])],
        "descriptors": sorted(
            int(name) for name in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{name}")
        ),
        "stdin": os.path.realpath("/proc/self/fd/0"),
        "main": sorted(vars(sys.modules["__main__"])),
        "path": sys.path,
        "thread": threading.current_thread() is threading.main_thread(),
    }


async def nap(payload, context):
    await asyncio.sleep(payload)
    return payload


async def nap_through(payload, context):
    """Ignore cancellation."""
    context.progress(1)
    while True:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
