"""The fault lab: break a running queue on purpose, and record each fault with its time so that it can be replayed.

    fault.kill() ----------- SIGKILL, SIGSTOP, SIGCONT ---------> worker processes
    fault.drop_ack() --+
    fault.slow_disk() -+---> FaultyStore --(forwards to)--> Store     between the loop and the disk
    fault.clock_step() ----> Clock                                    between the loop and the time
    fault.crash_between() -> crash.py                                 one more node, which kills itself at that point

    store = lab.FaultyStore("queue.db")
    queue = TaskQueue(store, handlers, clock=lab.Clock()).start()
    fault = lab.fault(queue, seed=3)

Each fault is logged in `fault.log` as (seconds since the lab began, kind, *arguments), where kind is the name of a
method: `fault.play(log)` repeats all of them at the same times. The seed decides which worker is chosen at random.
"""

from __future__ import annotations

import contextlib
import html
import os
import random
import signal
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import msgspec
from IPython.display import display

from dtq.errors import DTQError
from dtq.lab.crash import CRASHES, crash_node
from dtq.lab.faulty import FaultyStore
from dtq.queue.task_queue import TaskQueue
from dtq.testing.wrapper import SkewedClock
from dtq.workers.backend import WorkerInfo

Entry = tuple[Any, ...]  # seconds, kind, arguments
BUTTON_TIMEOUT = 0.5  # the same for a button, which must not block the kernel
WORKER_TIMEOUT = 10.0  # seconds to wait for a worker that a fault can hit
MESSAGES = ("add", "claim", "update")  # calls of which a reply can be lost or a message repeated
KINDS = {
    "workers": ("kill", "freeze", "thaw"),
    "store": ("drop_ack", "deliver_twice", "slow_disk", "full_disk", "free_disk", "crash_between"),
    "clock": ("clock_step",),
}
BUTTONS: tuple[tuple[Any, ...], ...] = (  # label, fault, arguments
    ("Kill a worker", "kill"),
    ("Freeze a worker", "freeze"),
    ("Thaw", "thaw"),
    ("Lose an answer", "drop_ack"),
    ("Deliver twice", "deliver_twice"),
    ("Slow disk", "slow_disk", 0.1),
    ("Fast disk", "slow_disk", 0.0),
    ("Full disk", "full_disk"),
    ("Free disk", "free_disk"),
    ("Clock +60 s", "clock_step", 60.0),
)


class Fault:
    """The faults of one queue.

    Where no worker is named, the seed chooses one, among the busy ones if there are any. A fault that needs a
    FaultyStore or a Clock raises DTQError on a queue without one; the message shows how to make such a queue.
    """

    def __init__(self, queue: TaskQueue, seed: int = 0) -> None:
        self.began = time.time()
        self.log: list[Entry] = []
        self._queue = queue
        self._chance = random.Random(seed)
        self._frozen: set[int] = set()  # process ids
        self._patience = WORKER_TIMEOUT  # seconds to wait for a worker to hit

    def marks(self, since: float | None = None) -> list[tuple[float, str]]:
        """Return (seconds, text) of each fault, for figures. Seconds count from `since` (UTC epoch seconds, for example
        `Recorder.began`), or from the beginning of the lab."""
        shift = 0.0 if since is None else self.began - since
        return [(seconds + shift, " ".join(map(str, what))) for seconds, *what in self.log]

    # --- workers

    def kill(self, worker: str | None = None) -> str:
        """Send SIGKILL: the worker cannot clean up. Return the id of the worker that was hit."""
        return self._hit("kill", signal.SIGKILL, worker)

    def freeze(self, worker: str | None = None) -> str:
        """Send SIGSTOP: the worker lives but does nothing until `thaw`. Return the id of the worker that was hit."""
        return self._hit("freeze", signal.SIGSTOP, worker)

    def thaw(self) -> None:
        """Let all frozen workers continue, except those that their pool has killed in the meantime."""
        while self._frozen:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._frozen.pop(), signal.SIGCONT)
        self._note("thaw")

    def _hit(self, kind: str, number: signal.Signals, worker: str | None) -> str:
        give_up_at = time.monotonic() + self._patience
        while (victim := self._send(number, worker)) is None:
            if time.monotonic() > give_up_at:
                there = ", ".join(info.id for info in self._queue.workers()) or "none"
                raise DTQError(
                    f"no worker {worker or ''} that {kind} could hit within {self._patience:g} s; workers: {there}"
                )
            time.sleep(0.01)
        self._note(kind, victim.id)
        return victim.id

    def _send(self, number: signal.Signals, worker: str | None) -> WorkerInfo | None:
        """Send the signal. Return the worker that was hit, or None if there is none now or it has just died."""
        try:
            victim = self._choose(worker)
            os.kill(victim.pid, number)
        except (IndexError, ProcessLookupError):
            return None
        if number == signal.SIGSTOP:
            self._frozen.add(victim.pid)
        return victim

    def _choose(self, name: str | None) -> WorkerInfo:
        workers = self._queue.workers()
        if any(worker.pid == os.getpid() for worker in workers):
            raise DTQError('the workers are threads of this process: make the queue with executor="process"')
        fit = [w for w in workers if w.pid and w.pid not in self._frozen and name in (None, w.id)]
        return self._chance.choice([worker for worker in fit if worker.task_id] or fit)

    # --- messages

    def drop_ack(self, of: str = "update") -> None:
        """Lose the next reply to an `add`, a `claim` or an `update`: the store does the work, and the caller gets an
        error."""
        self._store().to_lose.add(_one_of("of", of, MESSAGES))
        self._note("drop_ack", of)

    def deliver_twice(self, what: str = "claim") -> None:
        """Deliver the next message twice: two workers get the same claimed task, or the same outcome ("update") or new
        task ("add") is sent again."""
        self._store().to_repeat.add(_one_of("what", what, MESSAGES))
        self._note("deliver_twice", what)

    # --- disk and time

    def slow_disk(self, seconds: float = 0.1) -> None:
        """Delay each write by this many seconds, until it is called again; 0 ends the delay."""
        self._store().delay = seconds
        self._note("slow_disk", seconds)

    def full_disk(self) -> None:
        """Fail every write until `free_disk`."""
        self._store().is_full = True
        self._note("full_disk")

    def free_disk(self) -> None:
        """Let writes succeed again."""
        self._store().is_full = False
        self._note("free_disk")

    def heal(self) -> None:
        """End the faults that last: frozen workers continue, and the disk is fast and free again."""
        if self._frozen:
            self.thaw()
        if isinstance(store := self._queue.store, FaultyStore):
            store.delay, store.is_full = 0.0, False
            store.to_lose.clear()
            store.to_repeat.clear()

    def clock_step(self, seconds: float) -> None:
        """Move the clock of this node forward by this many seconds, or backward if negative."""
        clock = self._queue.clock
        if not isinstance(clock, SkewedClock):
            raise DTQError(f"the queue's clock is {clock!r}; allowed: a Clock, as in TaskQueue(..., clock=lab.Clock())")
        clock.offset += seconds
        self._note("clock_step", seconds)

    def _store(self) -> FaultyStore:
        store = self._queue.store
        if not isinstance(store, FaultyStore):
            raise DTQError(
                f"the queue's store is {store!r}; allowed: a FaultyStore, as in TaskQueue(lab.FaultyStore(url), ...)"
            )
        return store

    # --- a whole node

    def crash_between(self, first: str, second: str) -> None:
        """Start one more node, on the same store and with the same handlers, and kill it between two steps of a task:
        "claim" and "run", "run" and "update", or "update" and "ack". Return when it is dead. It is a process of its
        own, so the store must have been opened by a URL."""
        steps = _one_of("the pair of steps", (first, second), CRASHES)
        url = self._store().url
        if url is None:
            raise DTQError("another node cannot open this store: pass a URL or a path to FaultyStore, not a store")
        crash_node(url, self._handlers(), steps)
        self._note("crash_between", first, second)

    def _handlers(self) -> dict[str, Any]:
        registry = self._queue.registry
        return {type: registry.function(type) or registry.source(type).where for type in registry.types()}

    # --- again, and by hand

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the log to a file, which `play` of this or another lab can replay."""
        Path(path).write_bytes(msgspec.json.encode(self.log))

    def play(self, script: Iterable[Entry] | str | os.PathLike[str]) -> Playing:
        """Inject these faults in the background.

        Args:
            script: Faults, each with its seconds from now, as in [(0.5, "kill"), (1.5, "freeze", "w2")]; or the log of
                another lab; or the file in which one was saved.
        """
        if isinstance(script, (str, os.PathLike)):
            script = msgspec.json.decode(Path(script).read_bytes(), type=list[Entry])
        entries = sorted(script, key=lambda entry: entry[0])
        for entry in entries:
            _one_of("the fault", entry[1], [kind for kinds in KINDS.values() for kind in kinds])
        return Playing(self, entries)

    def buttons(self) -> None:
        """Show a button for each fault that this queue supports."""
        message = widgets.HTML("")
        row = [_button(self, message, *button) for button in BUTTONS if self._offers(button[1])]
        shown = widgets.VBox([widgets.HBox(row, layout=widgets.Layout(flex_flow="row wrap")), message])
        names = ", ".join(button.description for button in row)
        twin = f"<p><em>Buttons appear here when you run the notebook: {html.escape(names)}.</em></p>"
        display({**shown._repr_mimebundle_(), "text/html": twin, "text/plain": f"Buttons: {names}"}, raw=True)

    @property
    def can_be_broken(self) -> bool:
        """Whether the queue still runs."""
        return self._queue.is_running

    def press(self, kind: str, *args: Any) -> str:
        """Do this within half a second, or not at all. Return what was done, or why it was not."""
        self._patience = BUTTON_TIMEOUT
        try:
            getattr(self, kind)(*args)
        except DTQError as error:
            return str(error)
        finally:
            self._patience = WORKER_TIMEOUT
        seconds, *what = self.log[-1]
        return f"{seconds:.1f} s: {' '.join(map(str, what))}"

    def _offers(self, kind: str) -> bool:
        if kind in KINDS["clock"]:
            return isinstance(self._queue.clock, SkewedClock)
        return kind in KINDS["workers"] or isinstance(self._queue.store, FaultyStore)

    def _note(self, kind: str, *args: Any) -> None:
        self.log.append((round(time.time() - self.began, 3), kind, *args))


class Playing:
    """A script that is being played."""

    def __init__(self, fault: Fault, entries: list[Entry]) -> None:
        self._fault = fault
        self._entries = entries
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="dtq-fault", daemon=True)
        self._thread.start()

    def wait(self, timeout: float = 60.0) -> None:
        """Return when the script has ended. Raise TimeoutError after `timeout` seconds, or what a fault raised."""
        self._thread.join(timeout)
        if self._thread.is_alive():
            raise TimeoutError(
                f"the script has not ended after {timeout:g} s; its last fault is due at {self._entries[-1][0]:g} s"
            )
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        began = time.monotonic()
        try:
            for seconds, kind, *args in self._entries:
                time.sleep(max(0.0, began + seconds - time.monotonic()))
                getattr(self._fault, kind)(*args)
        except Exception as error:
            self._error = error


def fault(queue: TaskQueue, seed: int = 0) -> Fault:
    """Return a fault lab for this queue. Its log begins now."""
    return Fault(queue, seed)


def _button(fault: Fault, said: widgets.HTML, text: str, kind: str, *args: Any) -> widgets.Button:
    """A button that never blocks the kernel, and is grey when the queue has ended."""

    def press(button: widgets.Button) -> None:
        button.disabled = not fault.can_be_broken
        said.value = html.escape(fault.press(kind, *args)) if fault.can_be_broken else "The queue has ended."

    button = widgets.Button(description=text)
    button.on_click(press)
    return button


def _one_of(what: str, value: Any, allowed: Iterable[Any]) -> Any:
    if value not in (known := list(allowed)):
        raise DTQError(f"{what} is {value!r}; allowed: {', '.join(map(repr, known))}")
    return value
