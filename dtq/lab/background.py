"""serve: run one queue at a time, however often a cell runs.

steady: add tasks until Stop, so that there is a load to disturb.

    serve(queue A) ---> A runs
    serve(queue B) ---> A is shut down, B runs
    assert_clean() ---> B is shut down
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Self

import ipywidgets as widgets
from IPython.display import display

from dtq.errors import DTQError
from dtq.lab import hygiene
from dtq.queue.manager import QueueManager
from dtq.queue.task_queue import TaskQueue

ADD_INTERVAL = 0.05  # seconds between two additions of a steady load


def serve(queue: TaskQueue) -> TaskQueue:
    """Start the queue and return it. The queue that `serve` started before is shut down first, with its store."""
    hygiene.end_before_next("queue", lambda: _close(queue))
    return queue.start()


def _close(queue: TaskQueue) -> None:
    queue.shutdown()
    with suppress(DTQError):  # it may be closed already
        queue.store.close()


def has_not_ended(queue: QueueManager) -> bool:
    """Return whether tasks of the queue may still run. A TaskQueue that was shut down runs none."""
    return not isinstance(queue, TaskQueue) or queue.is_running


class Steady:
    """Adds tasks at a steady rate, on a thread, until `stop` or its button. `ids` are those of the tasks so far."""

    def __init__(self, queue: QueueManager, task: dict[str, Any], make: Callable[[int], Any], rate: float) -> None:
        self.ids: list[str] = []
        self._queue, self._task, self._make, self._rate = queue, task, make, rate
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="dtq-steady", daemon=True)
        self.button = widgets.Button(description="Stop the load")
        self.button.on_click(lambda button: self._over.set())
        self.label = widgets.HTML("0 added")
        self.widget = widgets.HBox([self.button, self.label])

    def start(self) -> Self:
        self._thread.start()
        return self

    def stop(self) -> None:
        """Stop adding tasks. Return when the thread has ended."""
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        began = time.monotonic()
        while not self._over.wait(ADD_INTERVAL) and has_not_ended(self._queue):
            due = int((time.monotonic() - began) * self._rate)
            with suppress(DTQError):  # for example a full disk: tasks that were not added are added a moment later
                self._add(range(len(self.ids), due))
        self.button.disabled = True
        self.label.value = f"{len(self.ids)} added, and no more"

    def _add(self, numbers: range) -> None:
        tasks = [{**self._task, "payload": self._make(number)} for number in numbers]
        self.ids += [handle.id for handle in self._queue.add_many(tasks)]
        self.label.value = f"{len(self.ids)} added, {self._queue.stats().counts['completed']} completed"


def steady(queue: QueueManager, type: str, payload: Any = None, *, rate: float = 20.0, **options: Any) -> Steady:
    """Add tasks in the background, `rate` a second, until Stop is pressed or `stop` called; show the button.

    Args:
        queue: The queue to add them to. The load ends when it is closed.
        type: The type of the tasks.
        payload: The payload of all tasks, or a function of the task's number.
        rate: Tasks a second.
        options: The options of `add`.

    Returns:
        The load: `stop()` ends it, `ids` are the tasks.
    """
    make: Callable[[int], Any] = payload if callable(payload) else lambda number: payload
    load = Steady(queue, {"type": type, **options}, make, rate)
    hygiene.end_before_next("load", load.stop)
    twin = f"<p><em>A load of {rate:g} tasks a second runs here until you press Stop.</em></p>"
    text = f"a load of {rate:g} tasks a second, until Stop"
    display({**load.widget._repr_mimebundle_(), "text/html": twin, "text/plain": text}, raw=True)
    return load.start()
