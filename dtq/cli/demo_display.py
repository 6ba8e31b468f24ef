"""The display of `dtq demo`: a progress bar, a line for each worker, and messages about workers and tasks."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from dtq.cli.common import counted
from dtq.queue.events import Event
from dtq.queue.task_queue import TaskQueue
from dtq.workers.backend import WorkerInfo

REFRESH, LINE_INTERVAL = 0.05, 1.0  # seconds between updates on a terminal, and between lines elsewhere
STALL_TIMEOUT = 60.0  # seconds without an outcome after which the demo gives up
MAX_WORKER_LINES = 16


class DemoCounts(NamedTuple):
    """How many of the demo's own tasks have each status."""

    done: int
    failed: int
    retrying: int

    def __str__(self) -> str:
        return f"{self.done} done, {self.failed} failed, {self.retrying} retrying"


class DemoDisplay:
    """Shows the progress, reports what happens to workers and tasks, and kills a worker once a third is done."""

    def __init__(self, console: Console, queue: TaskQueue, queue_name: str, total: int) -> None:
        self._console = console
        self._queue = queue
        self._queue_name = queue_name
        self._total = total
        self._began = time.monotonic()
        self._killed = ""  # the id of the killed worker
        self._died = self._replaced = False
        queue.on("worker:exited", self._on_exit)
        queue.on("worker:started", self._on_start)
        queue.on("task:retrying", self._on_retry)
        queue.on("task:failed", self._on_failure)

    def watch(self) -> None:
        """Return when all tasks have ended, or when none has for STALL_TIMEOUT seconds."""
        self._began = time.monotonic()
        if not self._console.is_terminal:
            self._follow(LINE_INTERVAL, lambda counts: self._say(f"{counts}, {self._rate(counts):.0f} tasks/s"))
        else:
            with Live(console=self._console, auto_refresh=False) as live:
                self._follow(REFRESH, lambda counts: live.update(self._frame(counts), refresh=True))

    def complaints(self) -> list[str]:
        """Return what did not happen to the workers. Call it after the queue has shut down, when all events have
        arrived."""
        return [] if self._replaced else ["no busy worker was killed and replaced"]

    def _follow(self, every: float, draw: Callable[[DemoCounts], None]) -> None:
        counts = self._counts()
        changed_at = drawn_at = time.monotonic()
        while counts.done + counts.failed < self._total and (now := time.monotonic()) < changed_at + STALL_TIMEOUT:
            if now >= drawn_at + every:
                drawn_at = now
                draw(counts)
            if not self._killed and 3 * counts.done >= self._total:
                self._kill_one()
            time.sleep(REFRESH)
            before, counts = counts, self._counts()
            changed_at = changed_at if counts == before else time.monotonic()
        draw(counts)

    def _counts(self) -> DemoCounts:
        counts = self._queue.stats().queues.get(self._queue_name, {})
        return DemoCounts(*(counts.get(status, 0) for status in ("completed", "failed", "retrying")))

    def _rate(self, counts: DemoCounts) -> float:
        return (counts.done + counts.failed) / (time.monotonic() - self._began)

    def _frame(self, counts: DemoCounts) -> Table:
        ended = counts.done + counts.failed
        frame = Table.grid()
        frame.add_row(Text(f"{ended} of {self._total} ended: {counts}; {self._rate(counts):.0f} tasks/s"))
        frame.add_row(ProgressBar(self._total, ended, width=60))
        frame.add_row(self._lines())
        return frame

    def _lines(self) -> Table:
        """Render a line for each worker. `done` counts the calls that it has returned from, whatever the outcome."""
        lines = Table.grid(padding=(0, 2))
        workers = self._queue.workers()
        for worker in workers[:MAX_WORKER_LINES]:
            lines.add_row(worker.id, str(worker.pid), f"{worker.done} done", self._doing(worker))
        if len(workers) > MAX_WORKER_LINES:
            lines.add_row("...", "", "", f"and {len(workers) - MAX_WORKER_LINES} more")
        return lines

    def _doing(self, worker: WorkerInfo) -> Text:
        if worker.task_id is None:
            return Text(worker.state, style="dim")
        task = self._queue.get(worker.task_id)
        return Text(f"{task.type}  {task.note}", no_wrap=True, overflow="ellipsis")

    def _kill_one(self) -> None:
        for worker in self._queue.workers():
            if worker.task_id:
                self._killed = worker.id
                self._say(f"kill -9 {worker.pid}: worker {worker.id}, in the middle of a task", "bold")
                with suppress(ProcessLookupError):
                    os.kill(worker.pid, signal.SIGKILL)
                return

    # --- events, on the thread of the listeners

    def _on_exit(self, event: Event) -> None:
        if event.data["signal"]:
            self._died = True
            self._say(f"worker {_short(event.worker)} died of signal {event.data['signal']}", "yellow")

    def _on_start(self, event: Event) -> None:
        if self._died and not self._replaced:
            self._replaced = True
            self._say(f"worker {_short(event.worker)} is replaced by process {event.data['pid']}", "green")

    def _on_retry(self, event: Event) -> None:
        if event.task and event.task.error and event.task.error.signal:
            self._say(f"its task, a {event.task.type}, runs again in {event.task.retry_delay:g} s", "green")

    def _on_failure(self, event: Event) -> None:
        if event.task:
            self._say(f"{event.task.type} failed permanently after {counted(event.task.attempts, 'attempt')}", "yellow")

    def _say(self, line: str, style: str = "") -> None:
        self._console.print(Text(line, style), soft_wrap=True)


def _short(worker: str | None) -> str:
    """Return w2 for host-1234-ab12/w2."""
    return (worker or "").rpartition("/")[2]
