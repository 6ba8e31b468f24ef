"""The nodes of a simulation: each has the real Loop over simulated workers.

    SimNode: Loop --> SimStore --> World.call --> the one store
               |
               +----> SimPool: attempts that return, raise, hang or kill their worker, as the random generator decides

A node is a process. It may crash in any store call, and its workers end with it; it may stall while its workers go on;
its clock may jump. After a crash, another node replaces it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterator, Sequence, Set
from itertools import count
from typing import Any, cast

from dtq.errors import StoreError
from dtq.queue.coalescer import PAUSE, Coalescer
from dtq.queue.config import QueueConfig
from dtq.queue.events import Emitter
from dtq.queue.handle import Waiters
from dtq.queue.loop import Loop
from dtq.task.model import ErrorInfo, Task
from dtq.testing.chaos.sim_clients import TIMEOUT, TYPE, SimStore
from dtq.testing.chaos.world import LEASE, Crash, World
from dtq.workers import backend
from dtq.workers.groups import Pool, WorkerGroup

WORKERS = 2  # of each node
POLL_INTERVAL = 1.0  # seconds between polls of the store when no hint comes, as in TaskQueue
MAX_SKEW = 30.0  # seconds by which a clock may be wrong
DEATHS = {"die": ErrorInfo("WorkerDied", signal=9), "hang": ErrorInfo("Timeout")}


class RecordingEmitter(Emitter):
    """Records which outcomes the loop announces."""

    def __init__(self, world: World, node_id: str) -> None:
        super().__init__()
        self._world = world
        self._node_id = node_id

    def has_any_listener(self, names: Set[str]) -> bool:
        return True

    def emit(self, name: str, at: float, task: Task | None = None, *_: object, **__: object) -> None:
        if task is not None and name in ("task:completed", "task:failed", "task:retrying", "task:cancelled"):
            self._world.note("announced", task, task.version, self._node_id)


class SimCoalescer(Coalescer):
    """Pauses now and then, for no reason: a simulation has no stream of tasks that would be fast enough."""

    def __init__(self, world: World, node_id: str) -> None:
        super().__init__()
        self._rng = random.Random(f"pauses of {node_id} from {world.now}")

    @property
    def is_on(self) -> bool:
        return self._rng.random() < 0.5

    def pause(self, now: float, found: int, held: int) -> float:
        return PAUSE if found and self.is_on else 0.0


class SimAttempt:
    """A running attempt. `fate`: it returns, raises, or the reason for which its worker dies."""

    def __init__(self, task: Task, run: str, fate: str, began: float) -> None:
        self.task, self.run, self.fate, self.began = task, run, fate, began


class SimPool:
    """A WorkerBackend with simulated workers. They go on while their node stalls, and end when it crashes."""

    def __init__(self, world: World, node: SimNode) -> None:
        self._world = world
        self._node = node
        self._running: list[SimAttempt] = []
        self._waiting: list[Task] = []
        self._reports: list[backend.Report] = []

    def capacity(self) -> Iterator[tuple[int, Collection[str]]]:
        if (n := 2 * WORKERS - len(self._running) - len(self._waiting)) > 0:
            yield n, {TYPE}

    def dispatch(self, tasks: Sequence[Task], *_: Any) -> None:
        for task in tasks:
            self._world.note("dispatched", task, task.version, self._node.id)
        self._waiting += tasks
        self._start_waiting()

    def poll(self) -> list[backend.Report]:
        reports, self._reports = self._reports, []
        return reports

    def deadline(self) -> float | None:
        return None

    def workers(self) -> list[backend.WorkerInfo]:
        return []

    def stop(self, task: Task) -> None:
        for attempt in [
            attempt for attempt in self._running if attempt.task.version == task.version and attempt.task.id == task.id
        ]:
            self._finish(attempt, ErrorInfo("Cancelled"))
        for other in [other for other in self._waiting if (other.id, other.version) == (task.id, task.version)]:
            self._waiting.remove(other)
            self._reports.append(backend.Returned(other))
        self._start_waiting()

    def recall(self) -> None:
        self._reports += map(backend.Returned, self._waiting)
        self._waiting.clear()

    def crash(self) -> None:
        self._running.clear()
        self._waiting.clear()

    def _start_waiting(self) -> None:
        while self._waiting and len(self._running) < WORKERS:
            self._start(self._waiting.pop(0))

    def _start(self, task: Task) -> None:
        world = self._world
        run = f"{task.id}.{next(self._node.runs)}@{self._node.id}"
        fate = next((kind for kind in DEATHS if world.strikes(kind, 0.05)), "")
        fate = fate or ("raise" if task.attempts <= task.payload["fails"] else "return")
        attempt = SimAttempt(task, run, fate, world.now)
        seconds = TIMEOUT if fate == "hang" else min(world.some_time(task.payload["seconds"]), TIMEOUT)
        self._running.append(attempt)
        world.note("began", task, task.attempts, run)
        world.at(world.now + seconds, lambda: self._reach_end(attempt))

    def _reach_end(self, attempt: SimAttempt) -> None:
        if attempt not in self._running:
            return  # it was stopped, or its node crashed
        if attempt.fate == "return":
            self._world.note("ended", attempt.task, attempt.task.attempts, attempt.run)
        self._world.record.deaths += attempt.fate in DEATHS
        self._finish(
            attempt,
            None if attempt.fate == "return" else DEATHS.get(attempt.fate, ErrorInfo("ValueError", "as planned")),
        )
        self._start_waiting()
        self._node.wake(self._world.now)

    def _finish(self, attempt: SimAttempt, error: ErrorInfo | None) -> None:
        self._running.remove(attempt)
        seconds = self._world.now - attempt.began
        result = None if error else attempt.run
        self._reports.append(backend.Finished(attempt.task, "w1", attempt.began, seconds, result, error, "", False))


class SimNode:
    """A process with a Loop. It calls `on_death` when it has crashed or signed off."""

    def __init__(self, world: World, id: str, make_loop: Callable[..., Loop], on_death: Callable[[], None]) -> None:
        self.id = id
        self.runs = count(1)
        self.alive = True
        self._world = world
        self._on_death = on_death
        self._skew = 0.0
        self._next = float("inf")
        self._paused_until = 0.0
        self._is_asked = False  # to take another turn right after this one
        self.pool = SimPool(world, self)
        staff = [WorkerGroup(Pool(WORKERS), cast(Any, self.pool))]  # it has all that the loop uses
        self.loop = make_loop(
            SimStore(world, id), staff, RecordingEmitter(world, id), Waiters(),
            QueueConfig(lease=LEASE, chance=world.rng.random), types=lambda: {TYPE}, monotonic=lambda: world.ticks,
            coalescer=SimCoalescer(world, id) if world.pauses else None,
        )  # fmt: skip
        self.loop.id = id
        self.wake(world.now)

    def wake(self, at: float) -> None:
        """Take a turn at this time, or earlier, but not before a pause of the loop is over."""
        at = max(at, self._paused_until)
        if at < self._next:
            self._next = at
            self._world.at(at, lambda: self._turn_if_due(at))

    def hint(self) -> None:
        """Take a turn soon, as the store has changed. The hint may get lost, like a datagram."""
        if self.alive and not self._world.strikes("deaf", 0.3):
            self.wake(self._world.now + self._world.some_time(0.001))

    def _turn_if_due(self, at: float) -> None:
        if not self.alive or at != self._next:
            return
        self._next = float("inf")
        if self.id in self._world.inside:  # a turn is under way: take another one after it
            self._is_asked = True
            return
        self._maybe_skew()
        self._maybe_drain()
        try:
            self._turn()
        except Crash:
            self._world.blame(self.id)
            self._die("crashed")

    def _turn(self) -> None:
        try:
            due = self.loop.turn(self._world.now + self._skew) - self._skew
            if self.loop.is_drained():
                self.loop.sign_off(self._world.now + self._skew)
                self._die("signed off")
        except StoreError:
            due = self._world.now + 0.1  # signing off failed: try again
        self._paused_until = due if self.loop.is_pausing else 0.0
        due, self._is_asked = self._world.now if self._is_asked else due, False
        self.wake(max(self._world.now + 0.0005, min(due, self._world.now + POLL_INTERVAL)))

    def _die(self, how: str) -> None:
        self.alive = False
        self.pool.crash()
        self._world.dead.append(self.id)
        self._world.tell(self.id, how)
        self._on_death()

    def _maybe_skew(self) -> None:
        if self._world.calm:
            self._skew = 0.0
        elif self._world.strikes("skew", 0.003):
            self._skew = self._world.rng.uniform(-MAX_SKEW, MAX_SKEW)
            self._world.clocks_differ = True
            self._world.tell(self.id, f"its clock is {self._skew:+.1f} s off")

    def _maybe_drain(self) -> None:
        if not self.loop.draining and self._world.strikes("drain", 0.003):
            self._world.tell(self.id, "drains")
            self.loop.drain()
