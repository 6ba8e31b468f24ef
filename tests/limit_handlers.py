"""What the tests of limits run: work that writes down when it began and ended, in a log outside the queue."""

from __future__ import annotations

import os
import time


def execute(payload, context):
    line = f"{payload.get('tenant', '')} {time.time()} "
    time.sleep(payload.get("seconds", 0))
    log = os.open(payload["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(log, f"{line}{time.time()}\n".encode())
    os.close(log)
