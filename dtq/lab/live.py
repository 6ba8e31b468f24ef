"""Progress bars that move while tasks run and the kernel is free for the next cell.

queue.stats() --10 times a second, on a thread--> widgets in the page
                                                  (a sentence instead where no kernel runs: GitHub, nbviewer)
"""

from __future__ import annotations

import threading
import time

import ipywidgets as widgets
from IPython.display import display

from dtq.errors import StoreError
from dtq.lab.background import has_not_ended
from dtq.queue.manager import QueueManager
from dtq.stores.protocol import Stats
from dtq.task.model import TERMINAL, Status

TICK = 0.1  # seconds between updates
# Okabe and Ito's palette, which people with colour blindness can tell apart too
BARS = {"completed": "#009E73", "failed": "#D55E00", "to go": "#56B4E9"}


class Progress:
    """The bars of one queue, until `total` of its tasks have ended."""

    def __init__(self, queue: QueueManager, total: int) -> None:
        self.bars = {name: _bar(name, color, total) for name, color in BARS.items()}
        self.bars["to go"].value = total
        self.label = widgets.HTML(_caption(0, total, 0.0))
        self.widget = widgets.VBox([*self.bars.values(), self.label])
        self._queue = queue
        self._total = total
        self._began = time.monotonic()
        self._before = queue.stats().counts
        self._over = threading.Event()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="dtq-progress", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wait(self, timeout: float = 60.0) -> None:
        """Return when all tasks have ended and the bars show it. Raise TimeoutError with the number of tasks left after
        `timeout` seconds, and StoreError if the queue is closed before that."""
        if not self._over.wait(timeout):
            raise TimeoutError(f"{self.label.value} after {timeout} s: {self._queue.stats().counts}")
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        left = self._total
        try:
            while left > 0:
                time.sleep(TICK)
                left = self._show(self._queue.stats())
                if left and not has_not_ended(self._queue):
                    raise StoreError(f"the queue was shut down with {left} tasks to go")
        except Exception as error:  # for example closed: the bars stay as they are, and `wait` raises the error
            self._error = error
        self._over.set()

    def _show(self, stats: Stats) -> int:
        """Move the bars. Return how many tasks have not ended."""
        new = {status: stats.counts[status] - self._before[status] for status in TERMINAL}
        ended = sum(new.values())
        left = self._total - ended
        for name, bar in self.bars.items():
            bar.value = left if name == "to go" else new[Status(name)]
        self.label.value = _caption(ended, left, ended / (time.monotonic() - self._began))
        return left


def progress(queue: QueueManager, total: int) -> Progress:
    """Show the bars and return at once. Call `wait` on the result to wait for `total` tasks to end."""
    shown = Progress(queue, total)
    display({**shown.widget._repr_mimebundle_(), "text/html": _twin(total), "text/plain": f"{total} tasks"}, raw=True)
    shown.start()
    return shown


def _bar(name: str, color: str, total: int) -> widgets.IntProgress:
    return widgets.IntProgress(
        max=total, description=name, style={"bar_color": color}, layout=widgets.Layout(width="70%")
    )


def _caption(ended: int, left: int, rate: float) -> str:
    return f"{ended} ended, {left} to go, {rate:.0f} tasks/s"


def _twin(total: int) -> str:
    """Return what readers see without a kernel."""
    return f"<p><em>Live bars for {total} tasks appear here when you run the notebook.</em></p>"
