"""The handler of a chaos run: it records when it begins and ends, and sleeps or fails in between as its payload says.

Payload: `life`, the task's name in the history if that is not its id; `log`, the path of the history; `seconds`, how
long to sleep; `fails`, how many of the first attempts raise. The result is the name of the run.
"""

from __future__ import annotations

import os
import time
from functools import cache
from typing import Any

from dtq.testing.chaos.history_log import HistoryLog
from dtq.testing.chaos.invariants import Line

_open_log = cache(HistoryLog)  # one for each worker


def execute(payload: dict[str, Any], context: Any) -> str:
    run = f"{os.getpid()}-{time.monotonic_ns()}"
    name, history = payload.get("life", context.task_id), _open_log(payload["log"])
    history.write(Line("began", name, context.attempt, run))
    time.sleep(payload["seconds"])
    if context.attempt <= payload["fails"]:
        raise ValueError("as planned")
    history.write(Line("ended", name, context.attempt, run))
    return run
