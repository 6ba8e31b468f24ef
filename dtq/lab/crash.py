"""Crash a node between two steps: a new process opens the store, takes a task, and kills itself at that point."""

from __future__ import annotations

import inspect
import os
import pickle
import signal
import subprocess
import sys
from typing import Any

import cloudpickle

from dtq.errors import DTQError

TIMEOUT = 10.0  # seconds within which the node must find a task to crash on
CRASHES = {  # the two steps -> the method of the store at which the node dies, and whether before or after it
    ("claim", "run"): ("claim", False),
    ("run", "update"): ("update", True),
    ("update", "ack"): ("update", False),
}


def crash_node(url: str, handlers: dict[str, Any], steps: tuple[str, str]) -> None:
    """Run a node with these handlers on the store at `url` until it dies between the two steps of CRASHES.

    Raises:
        DTQError: The node found no task within TIMEOUT seconds, or failed.
    """
    instructions = cloudpickle.dumps((url, handlers, *CRASHES[steps]))
    command = [sys.executable, "-c", f"{DOOMED}\n_doomed()"]
    path = [os.path.abspath(entry) for entry in sys.path]
    try:
        node = subprocess.run(
            command, input=pickle.dumps((path, instructions)), stderr=subprocess.PIPE, timeout=TIMEOUT
        )
    except subprocess.TimeoutExpired:
        raise DTQError(
            f"the node that was to crash found no task within {TIMEOUT:g} s: add more tasks than the other nodes take "
            "at once, or crash it before you start the queue"
        ) from None
    if node.returncode != -signal.SIGKILL:
        raise DTQError(f"the node that was to crash failed: {node.stderr.decode()[-2000:]}")


def _doomed() -> None:
    """Run the node. The new process gets this function as text, so all imports are inside it."""
    import os
    import pickle
    import signal
    import sys
    import threading

    sys.path[:], instructions = pickle.load(sys.stdin.buffer)
    from dtq import TaskQueue, open_store

    url, handlers, method, before = pickle.loads(instructions)
    store = open_store(url)
    step = getattr(store, method)

    def fatal_step(*args):  # type: ignore[no-untyped-def]
        # an update may also release tasks that were claimed ahead; those are pending
        counts = method == "claim" or any(task.status != "pending" for task, _ in args[0])
        reply = None if before and counts else step(*args)
        if counts and (before or reply):
            os.kill(os.getpid(), signal.SIGKILL)
        return reply

    setattr(store, method, fatal_step)
    with TaskQueue(store, handlers, pool_size=1):
        threading.Event().wait()


DOOMED = inspect.getsource(_doomed)  # read now: the file may be edited while this process runs
