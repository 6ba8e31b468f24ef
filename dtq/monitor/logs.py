"""Structured logs: one JSON object per line, made by structlog and written by a thread.

    events, alerts, metrics --structlog--> line --> bounded queue --> thread --> dtq.log, dtq.log.1, ...

No caller waits for the file: when the queue or the disk is full, lines are lost and counted, and the work goes on.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from contextlib import suppress
from typing import Any

import msgspec

try:
    import structlog
except ImportError:
    raise ImportError('the monitor writes its log with structlog: pip install "dtq[monitor]"') from None

from dtq.monitor.files import RotatingFile
from dtq.queue.events import Event

log = logging.getLogger("dtq")

QUEUE_CAPACITY = 10_000  # lines that may wait
LINES_PER_WRITE = 500
LEVELS = {
    "task:failed": "error",
    "task:retrying": "warning",
    "task:cancelled": "info",
    "task:expired": "info",
    "worker:started": "info",
    "worker:ready": "debug",
    "worker:exited": "info",
    "queue:paused": "info",
    "queue:resumed": "info",
    "queue:shutdown": "info",
    "alert:raised": "warning",
    "alert:cleared": "info",
    "task:added": "debug",
    "task:started": "debug",
    "task:progress": "debug",
    "task:log": "debug",
    "task:completed": "debug",
}


class Writer:
    """Writes lines to the file on its own thread. Its methods may be called from any thread."""

    def __init__(self, lines: RotatingFile) -> None:
        self.lost = 0
        self.trouble: str | None = None  # why lines are being lost
        self._lines = lines
        self._queue: queue.Queue[bytes | None] = queue.Queue(QUEUE_CAPACITY)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="dtq-log", daemon=True)
        self._thread.start()

    def msg(self, line: bytes) -> None:
        try:
            self._queue.put_nowait(line + b"\n")
        except queue.Full:
            self.lost += 1

    debug = info = warning = error = critical = msg

    def _run(self) -> None:
        while not (self._closing.is_set() and self._queue.empty()):
            batch = [self._queue.get()]
            while len(batch) < LINES_PER_WRITE and not self._queue.empty():
                batch.append(self._queue.get())
            if lines := [line for line in batch if line is not None]:
                self._write(lines)
        self._lines.close()

    def _write(self, batch: list[bytes]) -> None:
        try:
            self._lines.write(b"".join(batch))
            self.trouble = None
        except OSError as error:
            self.lost += len(batch)
            if self.trouble is None:
                log.warning("the log %s cannot be written, its lines are lost: %s", self._lines.path, error)
            self.trouble = str(error)

    def in_child(self) -> None:
        """After a fork: close the inherited descriptor; the thread that writes is the parent's."""
        self._lines.close()

    def close(self, timeout: float = 2.0) -> None:
        """Write the lines that wait, for at most `timeout` seconds."""
        self._closing.set()
        with suppress(queue.Full):  # the thread is stuck in a write; it ends if that ever returns
            self._queue.put(None, timeout=timeout)
            self._thread.join(timeout)


def structured(writer: Writer, level: str, **bound: Any) -> Any:
    """Return a structlog logger that writes to the writer, with these fields in each line."""
    return structlog.wrap_logger(
        writer,
        processors=[structlog.processors.add_log_level, structlog.processors.format_exc_info, _render],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        context_class=dict,
    ).bind(**bound)


def _render(_: Any, __: str, record: Any) -> bytes:
    return msgspec.json.encode({"at": record.pop("at", None) or time.time(), **record}, enc_hook=repr)


def write_event(logger: Any, event: Event) -> None:
    """Log the event at its level of LEVELS, with its task, attempt and node."""
    logger = logger.bind(at=event.at, **event.data)
    if event.worker:
        logger = logger.bind(worker=event.worker, node=event.worker.partition("/")[0])
    if (task := event.task) is not None:
        logger = logger.bind(task=task.id, type=task.type, queue=task.queue, attempt=task.attempts)
        if task.error is not None:
            logger = logger.bind(error=str(task.error))
    getattr(logger, LEVELS.get(event.name, "debug"))(event.name)
