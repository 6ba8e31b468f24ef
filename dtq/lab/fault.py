"""The fault lab: breaks a running queue on purpose, and writes down what and when, so that it can be done again.

    fault.kill() ----------- SIGKILL, SIGSTOP, SIGCONT ---------> worker processes
    fault.drop_ack() --+
    fault.slow_disk() -+---> FaultyStore ---(passes on)---> Store     the seam between loop and disk
    fault.clock_step() ----> Clock                                    the seam between loop and time
    fault.crash_between() -> one more node, which kills itself there

    store = lab.FaultyStore("queue.db")
    queue = TaskQueue(store, handlers, clock=lab.Clock()).start()
    fault = lab.fault(queue, seed=3)

Each fault is entered into `fault.log` as (seconds since the lab began, kind, *arguments), where kind is the name of a
method: `fault.play(log)` does it all again at the same times. Whom chance hits, the seed decides.
"""

from __future__ import annotations

import contextlib
import html
import inspect
import os
import pickle
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import cloudpickle
import ipywidgets as widgets
import msgspec
from IPython.display import display

from dtq.errors import DTQError, StoreError
from dtq.queue.task_queue import TaskQueue
from dtq.stores.open import open_store
from dtq.stores.protocol import Store
from dtq.workers.backend import WorkerInfo

Entry = tuple[Any, ...]  # seconds, kind, arguments
WITHIN = 10.0  # seconds until there must be a worker to hit, or a task for a node that is to crash over it
WRITES = frozenset({"add", "claim", "update", "heartbeat", "reap", "set_lane", "delete", "purge"})
ANSWERED = ("add", "claim", "update")  # calls whose answer matters
CRASHES = {
    ("claim", "run"): ("claim", False),
    ("run", "update"): ("update", True),
    ("update", "ack"): ("update", False),
}
KINDS = {
    "workers": ("kill", "freeze", "thaw"),
    "store": ("drop_ack", "deliver_twice", "slow_disk", "full_disk", "free_disk", "crash_between"),
    "clock": ("clock_step",),
}
BUTTONS: tuple[tuple[Any, ...], ...] = (  # what it says, the fault, its arguments
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


# --- seams -----------------------------------------------------------------------------------------------------------


def _passed_on(name: str) -> Callable[..., Any]:
    def method(self: FaultyStore, *args: Any, **options: Any) -> Any:
        return self._call(name, *args, **options)

    return method


class FaultyStore:
    """Passes every call on to a store (or the one that a URL names) and, when it is told to, does so badly."""

    add = _passed_on("add")
    claim = _passed_on("claim")
    update = _passed_on("update")
    heartbeat = _passed_on("heartbeat")
    reap = _passed_on("reap")
    get = _passed_on("get")
    find = _passed_on("find")
    stats = _passed_on("stats")
    set_lane = _passed_on("set_lane")
    next_due = _passed_on("next_due")
    delete = _passed_on("delete")
    purge = _passed_on("purge")
    fileno = _passed_on("fileno")
    wait = _passed_on("wait")
    close = _passed_on("close")

    def __init__(self, store: str | os.PathLike[str] | Store) -> None:
        self.url = os.fspath(store) if isinstance(store, (str, os.PathLike)) else None
        self.store = open_store(store)
        self.delay = 0.0  # seconds before each write
        self.is_full = False
        self.unheard: set[str] = set()  # methods whose next answer is lost
        self.doubled: set[str] = set()  # methods whose next message comes twice

    def _call(self, name: str, *args: Any, **options: Any) -> Any:
        if name in WRITES:
            time.sleep(self.delay)
            if self.is_full:
                raise StoreError(f"{name}: nothing was stored, the disk is full (says the fault lab)")
        answer = getattr(self.store, name)(*args, **options)
        if answer and _taken(self.doubled, name):
            answer = self._once_more(name, answer, *args, **options)
        if answer and _taken(self.unheard, name):
            raise StoreError(f"{name}: the answer was lost (says the fault lab)")
        return answer

    def _once_more(self, name: str, answer: Any, *args: Any, **options: Any) -> Any:
        """Of a claim it is the answer that comes twice: its last task, once more. Of the others, the call."""
        if name == "claim":
            return [*answer, answer[-1]]
        getattr(self.store, name)(*args, **options)
        return answer


def _taken(names: set[str], name: str) -> bool:
    """Whether it was among them; it no longer is. Of two threads, one gets True."""
    try:
        names.remove(name)
    except KeyError:
        return False
    return True


class Clock:
    """The time of day as a queue's `clock`, wrong by `offset` seconds. Workers read the right time: their tasks begin
    and end by that."""

    def __init__(self) -> None:
        self.offset = 0.0

    def __call__(self) -> float:
        return time.time() + self.offset


# --- the lab ---------------------------------------------------------------------------------------------------------


class Fault:
    """The faults of one queue. A worker that is not named is chosen by the seed, among those that are at work if any
    are. What a queue was not made for raises DTQError, which says how to make it."""

    def __init__(self, queue: TaskQueue, seed: int = 0) -> None:
        self.began = time.time()
        self.log: list[Entry] = []
        self._queue = queue
        self._chance = random.Random(seed)
        self._frozen: set[int] = set()  # process ids

    def marks(self, since: float | None = None) -> list[tuple[float, str]]:
        """When and what, for figures: seconds since then (UTC; `Recorder.began`, say), or since the lab began."""
        shift = 0.0 if since is None else self.began - since
        return [(seconds + shift, " ".join(map(str, what))) for seconds, *what in self.log]

    # --- workers

    def kill(self, worker: str | None = None) -> str:
        """SIGKILL: no goodbye, no clean-up. Gives whom it hit."""
        return self._hit("kill", signal.SIGKILL, worker)

    def freeze(self, worker: str | None = None) -> str:
        """SIGSTOP: it is there, and does nothing, until `thaw`. Gives whom it hit."""
        return self._hit("freeze", signal.SIGSTOP, worker)

    def thaw(self) -> None:
        """All that are frozen go on, unless their pool has lost patience and killed them."""
        while self._frozen:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._frozen.pop(), signal.SIGCONT)
        self._note("thaw")

    def _hit(self, kind: str, number: signal.Signals, worker: str | None) -> str:
        give_up_at = time.monotonic() + WITHIN
        while (victim := self._send(number, worker)) is None:
            if time.monotonic() > give_up_at:
                there = ", ".join(info.id for info in self._queue.workers()) or "none"
                raise DTQError(
                    f"no worker {worker or ''} that {kind} could hit within {WITHIN:g} s; there are: {there}"
                )
            time.sleep(0.01)
        self._note(kind, victim.id)
        return victim.id

    def _send(self, number: signal.Signals, worker: str | None) -> WorkerInfo | None:
        """Whom it hit; nobody, where none is there at the moment, or the chosen one has died meanwhile."""
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
            raise DTQError('the workers are threads of this very process: make the queue with executor="process"')
        fit = [w for w in workers if w.pid and w.pid not in self._frozen and name in (None, w.id)]
        return self._chance.choice([worker for worker in fit if worker.task_id] or fit)

    # --- messages

    def drop_ack(self, of: str = "update") -> None:
        """The next answer to an `add`, a `claim` or an `update` is lost: the store has done it, and the caller hears
        of an error."""
        self._store().unheard.add(_one_of("of", of, ANSWERED))
        self._note("drop_ack", of)

    def deliver_twice(self, what: str = "claim") -> None:
        """The next message comes twice: a task that was claimed goes to two workers, an outcome ("update") or a new
        task ("add") is handed in again."""
        self._store().doubled.add(_one_of("what", what, ANSWERED))
        self._note("deliver_twice", what)

    # --- disk and time

    def slow_disk(self, seconds: float = 0.1) -> None:
        """From now on each write takes so much longer; 0: no longer."""
        self._store().delay = seconds
        self._note("slow_disk", seconds)

    def full_disk(self) -> None:
        """From now on nothing can be written, until `free_disk`."""
        self._store().is_full = True
        self._note("full_disk")

    def free_disk(self) -> None:
        self._store().is_full = False
        self._note("free_disk")

    def clock_step(self, seconds: float) -> None:
        """The clock of this node leaps: forward, or backward if negative."""
        clock = self._queue.clock
        if not isinstance(clock, Clock):
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
        """One more node, on the same store and with the same handlers, takes a task and is killed between two steps:
        "claim" and "run", "run" and "update", or "update" and "ack". Returns when it is dead. This process is not
        harmed: what dies is a process of its own, so the store must have been opened by a URL."""
        method, before = CRASHES[_one_of("the pair of steps", (first, second), CRASHES)]
        url = self._store().url
        if url is None:
            raise DTQError("another node cannot open this store: give FaultyStore a URL or a path, not a store")
        _crash(cloudpickle.dumps((url, self._handlers(), method, before)))
        self._note("crash_between", first, second)

    def _handlers(self) -> dict[str, Any]:
        registry = self._queue.registry
        return {type: registry.function(type) or registry.source(type).where for type in registry.types()}

    # --- again, and by hand

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the log down, to be played again, by another lab too."""
        Path(path).write_bytes(msgspec.json.encode(self.log))

    def play(self, script: Iterable[Entry] | str | os.PathLike[str]) -> Playing:
        """Does these faults, in the background, each so many seconds from now: [(0.5, "kill"), (1.5, "freeze", "w2")],
        or the log of another lab, or the file in which that was saved."""
        if isinstance(script, (str, os.PathLike)):
            script = msgspec.json.decode(Path(script).read_bytes(), type=list[Entry])
        entries = sorted(script, key=lambda entry: entry[0])
        for entry in entries:
            _one_of("the fault", entry[1], [kind for kinds in KINDS.values() for kind in kinds])
        return Playing(self, entries)

    def buttons(self) -> None:
        """Shows a button for each fault that this queue was made for."""
        said = widgets.HTML("")
        row = [_button(self, said, *button) for button in BUTTONS if self._offers(button[1])]
        shown = widgets.VBox([widgets.HBox(row, layout=widgets.Layout(flex_flow="row wrap")), said])
        names = ", ".join(button.description for button in row)
        twin = f"<p><em>Buttons stand here when you run the notebook: {html.escape(names)}.</em></p>"
        display({**shown._repr_mimebundle_(), "text/html": twin, "text/plain": f"Buttons: {names}"}, raw=True)

    def _offers(self, kind: str) -> bool:
        if kind in KINDS["clock"]:
            return isinstance(self._queue.clock, Clock)
        return kind in KINDS["workers"] or isinstance(self._queue.store, FaultyStore)

    def _note(self, kind: str, *args: Any) -> None:
        self.log.append((round(time.time() - self.began, 3), kind, *args))


class Playing:
    """A script under way. `wait` for its end, and for what went wrong in it."""

    def __init__(self, fault: Fault, entries: list[Entry]) -> None:
        self._fault = fault
        self._entries = entries
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="dtq-fault", daemon=True)
        self._thread.start()

    def wait(self, timeout: float = 60.0) -> None:
        """Returns when all is done. Raises TimeoutError, and what a fault has raised."""
        self._thread.join(timeout)
        if self._thread.is_alive():
            raise TimeoutError(f"the script has not ended after {timeout:g} s; it lasts {self._entries[-1][0]:g} s")
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
    """The fault lab of this queue, whose log begins now."""
    return Fault(queue, seed)


def _button(fault: Fault, said: widgets.HTML, text: str, kind: str, *args: Any) -> widgets.Button:
    def press(_: widgets.Button) -> None:
        try:
            getattr(fault, kind)(*args)
        except DTQError as error:
            said.value = html.escape(str(error))
        else:
            seconds, *what = fault.log[-1]
            said.value = html.escape(f"{seconds:.1f} s: {' '.join(map(str, what))}")

    button = widgets.Button(description=text)
    button.on_click(press)
    return button


def _one_of(what: str, value: Any, allowed: Iterable[Any]) -> Any:
    if value not in (known := list(allowed)):
        raise DTQError(f"{what} is {value!r}; allowed: {', '.join(map(repr, known))}")
    return value


# --- a node that dies ------------------------------------------------------------------------------------------------


def _crash(orders: bytes) -> None:
    """Runs `_doomed` in a process of its own until it is dead."""
    command = [sys.executable, "-c", f"{DOOMED}\n_doomed()"]
    path = [os.path.abspath(entry) for entry in sys.path]
    try:
        node = subprocess.run(command, input=pickle.dumps((path, orders)), stderr=subprocess.PIPE, timeout=WITHIN)
    except subprocess.TimeoutExpired:
        raise DTQError(
            f"the node that was to crash found no task within {WITHIN:g} s: add more than the others take at once, "
            "or have it crash before the queue is started"
        ) from None
    if node.returncode != -signal.SIGKILL:
        raise DTQError(f"the node that was to crash failed: {node.stderr.decode()[-2000:]}")


def _doomed() -> None:
    """The life of that node. Its code is handed over as text, so it imports for itself what it needs."""
    import os
    import pickle
    import signal
    import sys
    import threading

    sys.path[:], orders = pickle.load(sys.stdin.buffer)
    from dtq import TaskQueue, open_store

    url, handlers, method, before = pickle.loads(orders)
    store = open_store(url)
    step = getattr(store, method)

    def fatal_step(*args):  # type: ignore[no-untyped-def]
        is_mine = method == "claim" or any(
            task.status != "pending" for task, _ in args[0]
        )  # or taken over, to be freed
        answer = None if before and is_mine else step(*args)
        if is_mine and (before or answer):
            os.kill(os.getpid(), signal.SIGKILL)
        return answer

    setattr(store, method, fatal_step)
    with TaskQueue(store, handlers, pool_size=1):
        threading.Event().wait()


DOOMED = inspect.getsource(_doomed)  # as it is now: the file may be edited while this process lives
