"""Dashboard: a live overview of a queue, which leaves the kernel free for the next cell.

queue.stats(), queue.workers() --twice a second, on a thread--> Reading --view--> HTML in the page
events: outcome, duration, error ------------------------------------^            (a sentence without a kernel)
"""

from __future__ import annotations

import html
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Self

import ipywidgets as widgets
import pandas as pd
from IPython.display import display

from dtq.errors import StoreError
from dtq.lab.figures import COLORS, OKABE_ITO, number
from dtq.monitor.moment import Moment, quantile
from dtq.queue.events import Event
from dtq.queue.manager import QueueManager
from dtq.queue.task_queue import TaskQueue
from dtq.stores.protocol import Counts
from dtq.task.model import Task
from dtq.workers.backend import WorkerInfo

EVERY = 0.5  # seconds between readings
SHOWN = 120  # readings in a curve
LATENCIES = 1000  # completed tasks in the percentiles: the latest
FAILURES = 5  # failures in the list: the latest
WIDE, HIGH = 300, 48  # pixels of a curve
SHADES = {
    "blocked": OKABE_ITO["grey"], "pending": OKABE_ITO["sky"], "processing": OKABE_ITO["blue"],
    "retrying": COLORS["retried"], "completed": COLORS["completed"], "failed": COLORS["failed"],
    "cancelled": OKABE_ITO["purple"],
}  # fmt: skip
STATES = {"starting": "&#9676;", "idle": "&#9675;", "busy": "&#9679;", "retiring": "&#9685;"}  # rings, empty to full
STYLE = (
    "<style>.dtq-board{font-size:inherit;max-width:960px}.dtq-board div.row{display:flex;flex-wrap:wrap;gap:2em}"
    ".dtq-board b.big{font-size:1.6em;font-weight:600;display:block;line-height:1.3}"
    ".dtq-board table{border-collapse:collapse}.dtq-board td,.dtq-board th{padding:1px 10px 1px 0;text-align:left}"
    ".dtq-board i{display:inline-block;width:.8em;height:.8em;border-radius:2px;margin-right:.4em}"
    ".dtq-board svg polyline{fill:none;stroke-width:2}</style>"
)


class Reading(Moment, frozen=True):
    """The queue at one moment, in seconds since the dashboard began, and `rate`, the tasks that ended in a second since
    the last reading; 0 if that is unknown."""

    rate: float


class Dashboard:
    """Reads a queue until `stop`, or until the queue is closed. As a context manager, it stops at the end."""

    def __init__(self, queue: QueueManager) -> None:
        self.readings: deque[Reading] = deque(maxlen=SHOWN)
        self.latencies: deque[float] = deque(maxlen=LATENCIES)
        self.failures: deque[Task] = deque(maxlen=FAILURES)
        self._queue = queue
        self._began = time.monotonic()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="dtq-dashboard", daemon=True)
        self._look()
        self.widget = widgets.HTML(self._view())

    def start(self) -> Self:
        self._queue.on("task:completed", self._hear)
        self._queue.on("task:failed", self._hear)
        self._queue.on("queue:shutdown", self._end)
        self._thread.start()
        return self

    def stop(self) -> None:
        """Stop; the last picture stays. Further calls do nothing."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def frame(self) -> pd.DataFrame:
        """Return the data of the curves: a row for each reading, with seconds, waiting, running, ended, and tasks/s."""
        rows = [(r.at, r.waiting, r.running, r.ended, r.rate) for r in self.readings.copy()]
        return pd.DataFrame(rows, columns=["seconds", "waiting", "running", "ended", "rate"])

    # --- readings and events

    def _hear(self, event: Event) -> None:
        task = event.task
        if task is not None and event.name == "task:completed":
            self.latencies.append((task.finished_at or event.at) - task.created_at)
        elif task is not None:
            self.failures.appendleft(task)

    def _end(self, event: Event) -> None:
        self._over.set()

    def _run(self) -> None:
        try:
            while not self._over.wait(EVERY):
                self._look()
                self.widget.value = self._view()
        except StoreError:  # the queue was closed: the last picture stays
            pass
        finally:
            for name, listener in (
                ("task:completed", self._hear), ("task:failed", self._hear), ("queue:shutdown", self._end),
            ):  # fmt: skip
                self._queue.off(name, listener)

    def _look(self) -> None:
        now = Moment(time.monotonic() - self._began, self._queue.stats().counts)
        before = self.readings[-1] if self.readings else None
        self.readings.append(Reading(now.at, now.counts, now.rate_since(before) or 0.0))

    def _view(self) -> str:
        workers = self._queue.workers() if isinstance(self._queue, TaskQueue) else []
        return view([*self.readings], [*self.latencies], workers, [*self.failures])


def dashboard(queue: QueueManager) -> Dashboard:
    """Show the dashboard of the queue and return at once. It is updated until `stop`, or until the queue ends."""
    shown = Dashboard(queue)
    twin = "<p><em>A live dashboard of the queue appears here when you run the notebook.</em></p>"
    display({**shown.widget._repr_mimebundle_(), "text/html": twin, "text/plain": "Dashboard"}, raw=True)
    return shown.start()


# --- what it looks like ----------------------------------------------------------------------------------------------


def view(
    readings: Sequence[Reading], latencies: Sequence[float], workers: Iterable[WorkerInfo], failures: Iterable[Task]
) -> str:
    """Return the dashboard as HTML. Each colour has a word beside it, and each curve its numbers."""
    now = readings[-1]
    parts = [
        _row([_curve("waiting", [r.waiting for r in readings], SHADES["pending"], "tasks"),
              _curve("throughput", [r.rate for r in readings], SHADES["completed"], "tasks/s"),
              _percentiles(latencies)]),
        _row([_by_status(now.counts), _workers(workers)]),
        _failures(failures),
    ]  # fmt: skip
    return f'{STYLE}<div class="dtq-board">{"".join(parts)}</div>'


def _row(parts: Iterable[str]) -> str:
    return f'<div class="row">{"".join(f"<div>{part}</div>" for part in parts if part)}</div>'


def _curve(name: str, values: Sequence[float], color: str, unit: str) -> str:
    most, step = max(values) or 1.0, WIDE / (SHOWN - 1)
    points = " ".join(
        f"{WIDE - step * back:.0f},{(HIGH - 3) * (1 - value / most) + 2:.0f}"
        for back, value in enumerate(reversed(values))
    )
    seconds = EVERY * (len(values) - 1)
    words = f"{name}, the last {seconds:.0f} s: now {number(values[-1])}, at most {number(max(values))} {unit}"
    return (
        f'{name} ({unit})<b class="big">{number(values[-1])}</b><svg width="{WIDE}" height="{HIGH}" role="img" '
        f'aria-label="{words}"><title>{words}</title><polyline points="{points}" stroke="{color}"/></svg>'
    )


def _percentiles(latencies: Sequence[float]) -> str:
    if not latencies:
        return 'from add to result<b class="big">&ndash;</b>no task has completed yet'
    p50, p99 = (quantile(latencies, q) or 0.0 for q in (0.5, 0.99))
    return (
        f'from add to result, median<b class="big">{_duration(p50)}</b>'
        f"99 of 100 within {_duration(p99)}<br>(the last {len(latencies):,} tasks)"
    )


def _duration(seconds: float) -> str:
    return f"{seconds * 1000:.3g} ms" if seconds < 1 else f"{number(seconds)} s"


def _by_status(counts: Counts) -> str:
    rows = (
        f'<tr><td><i style="background:{SHADES[status]}"></i>{status}</td><td>{n:,}</td></tr>'
        for status, n in counts.items()
    )
    return f"<table><tr><th>status</th><th>tasks</th></tr>{''.join(rows)}</table>"


def _workers(workers: Iterable[WorkerInfo]) -> str:
    rows = "".join(
        f"<tr><td>{html.escape(worker.id)}</td><td>{STATES[worker.state]} {worker.state}</td>"
        f"<td>{worker.done:,}</td><td>{number(worker.busy_seconds)}</td><td>{worker.pid}</td>"
        f"<td><code>{html.escape((worker.task_id or '')[-8:])}</code></td></tr>"
        for worker in workers
    )
    head = "<tr><th>worker</th><th>state</th><th>tasks</th><th>busy (s)</th><th>process</th><th>current task</th></tr>"
    return f"<table>{head}{rows}</table>" if rows else ""


def _failures(failures: Iterable[Task]) -> str:
    rows = "".join(
        f"<tr><td><code>{html.escape(task.id[-8:])}</code></td><td>{html.escape(task.type)}</td>"
        f"<td>{html.escape(str(task.error)[:120])}</td></tr>"
        for task in failures
    )
    head = "<tr><th>latest failures</th><th>type</th><th>error</th></tr>"
    return f"<table>{head}{rows}</table>" if rows else ""
