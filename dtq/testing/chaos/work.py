"""The handler of a run with faults: says when it begins and ends, and in between takes its time, or fails as planned.

payload: `log`, where to say it; `seconds`; `fails`, how many first attempts raise. Its result is the name of the run.
"""

from __future__ import annotations

import os
import time
from functools import cache
from typing import Any

from dtq.testing.chaos.history_log import Witness
from dtq.testing.chaos.invariants import Line

_witness = cache(Witness)  # one for each worker


def execute(payload: dict[str, Any], context: Any) -> str:
    run = f"{os.getpid()}-{time.monotonic_ns()}"
    witness = _witness(payload["log"])
    witness.write(Line("began", context.task_id, context.attempt, run))
    time.sleep(payload["seconds"])
    if context.attempt <= payload["fails"]:
        raise ValueError("as planned")
    witness.write(Line("ended", context.task_id, context.attempt, run))
    return run
