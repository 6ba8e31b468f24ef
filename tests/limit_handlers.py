"""The handler for tests of limits: it appends the times of its beginning and its end to a log outside the queue."""

from __future__ import annotations

import os
import time


def execute(payload, context):
    line = f"{payload.get('tenant', '')} {time.time()} "
    time.sleep(payload.get("seconds", 0))
    log = os.open(payload["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(log, f"{line}{time.time()}\n".encode())
    os.close(log)
