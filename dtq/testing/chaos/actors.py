"""Actors of a simulation: nodes, each the real Loop over workers that are made up; and clients, who add and cancel.

    Node: Loop --> NodeStore --> World.call --> the one store
            |
            +----> SimPool: attempts that begin, end, raise, hang, or take their worker with them, as chance has it

A node is a process: it crashes at any store call, and its workers with it; it stalls while its workers go on; its clock
leaps. One that has crashed is followed by another.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence, Set
from itertools import count
from typing import Any, cast

from dtq.errors import DTQError, StoreError
from dtq.queue.events import Emitter
from dtq.queue.handle import Waiters
from dtq.queue.loop import Loop
from dtq.stores.protocol import Outcome
from dtq.stores.shared.overlap import run_offered_work
from dtq.task.model import ErrorInfo, Status, Task
from dtq.task.transitions import cancel
from dtq.testing.chaos.invariants import Line
from dtq.testing.chaos.world import LEASE, LIMITED, Crash, World
from dtq.workers import backend
from dtq.workers.groups import Pool, WorkerGroup

TYPE = "work"
WORKERS = 2  # of each node
LOOK = 1.0  # seconds between looks at the store where no hint comes, as in TaskQueue
TIMEOUT = 8.0  # of each attempt
SKEW = 30.0  # seconds, at most, that a clock is wrong
DEATHS = {"die": ErrorInfo("WorkerDied", signal=9), "hang": ErrorInfo("Timeout")}


class NodeStore:
    """The store as one process has it; what is no call of its own goes through unharmed."""

    def __init__(self, world: World, who: str) -> None:
        self._world = world
        self._who = who

    def __getattr__(self, name: str) -> Any:
        return getattr(self._world.store, name)

    def add(self, tasks: Sequence[Task]) -> list[str]:
        ids: list[str] = self._world.call(self._who, "add", tasks)
        return ids

    def claim(self, *args: Any) -> list[Task]:
        """As where a server is busy with it: the loop hears its workers meanwhile."""
        run_offered_work()
        tasks: list[Task] = self._world.call(self._who, "claim", *args)
        return tasks

    def update(self, outcomes: Sequence[Outcome]) -> set[str]:
        run_offered_work()  # as `claim` does
        accepted: set[str] = self._world.call(self._who, "update", outcomes)
        return accepted

    def heartbeat(self, *args: Any) -> set[str]:
        lost: Any = sorted(self._world.call(self._who, "heartbeat", *args))  # the same order each time, unlike a set
        return lost  # type: ignore[no-any-return]

    def reap(self, worker: str, n: int, lease: float, now: float) -> list[Task]:
        """Who has died is known by its lock, as on one machine."""
        tasks: list[Task] = self._world.call(self._who, "reap", worker, n, lease, now, list(self._world.dead))
        return tasks


class Teller(Emitter):
    """Notes which endings the loop tells of."""

    def __init__(self, world: World, who: str) -> None:
        super().__init__()
        self._world = world
        self._who = who

    def hears_any(self, names: Set[str]) -> bool:
        return True

    def emit(self, name: str, at: float, task: Task | None = None, *_: object, **__: object) -> None:
        if task is not None and name in ("task:completed", "task:failed", "task:retrying", "task:cancelled"):
            self._world.note("told", task, task.version, self._who)


class Job:
    """An attempt that runs. `fate`: returns, raises, or what its worker dies of."""

    def __init__(self, task: Task, run: str, fate: str, began: float) -> None:
        self.task, self.run, self.fate, self.began = task, run, fate, began


class SimPool:
    """A Pool (dtq.workers.backend) whose workers are made up. They go on while their node stalls, and end with it."""

    def __init__(self, world: World, node: Node) -> None:
        self._world = world
        self._node = node
        self._running: list[Job] = []
        self._waiting: list[Task] = []
        self._says: list[backend.Report] = []

    def capacity(self) -> Iterator[tuple[int, Collection[str]]]:
        if (n := 2 * WORKERS - len(self._running) - len(self._waiting)) > 0:
            yield n, {TYPE}

    def dispatch(self, tasks: Sequence[Task], *_: Any) -> None:
        for task in tasks:
            self._world.note("given", task, task.version, self._node.id)
        self._waiting += tasks
        self._fill()

    def poll(self) -> list[backend.Report]:
        said, self._says = self._says, []
        return said

    def deadline(self) -> float | None:
        return None

    def workers(self) -> list[backend.WorkerInfo]:
        return []

    def stop(self, task: Task) -> None:
        for job in [job for job in self._running if job.task.version == task.version and job.task.id == task.id]:
            self._leave(job, ErrorInfo("Cancelled"))
        for other in [other for other in self._waiting if (other.id, other.version) == (task.id, task.version)]:
            self._waiting.remove(other)
            self._says.append(backend.Returned(other))
        self._fill()

    def recall(self) -> None:
        self._says += map(backend.Returned, self._waiting)
        self._waiting.clear()

    def vanish(self) -> None:
        self._running.clear()
        self._waiting.clear()

    def _fill(self) -> None:
        while self._waiting and len(self._running) < WORKERS:
            self._begin(self._waiting.pop(0))

    def _begin(self, task: Task) -> None:
        world = self._world
        run = f"{task.id}.{next(self._node.runs)}@{self._node.id}"
        fate = next((kind for kind in DEATHS if world.strikes(kind, 0.05)), "")
        fate = fate or ("raise" if task.attempts <= task.payload["fails"] else "return")
        job = Job(task, run, fate, world.now)
        seconds = TIMEOUT if fate == "hang" else min(world.some_time(task.payload["seconds"]), TIMEOUT)
        self._running.append(job)
        world.note("began", task, task.attempts, run)
        world.at(world.now + seconds, lambda: self._end(job))

    def _end(self, job: Job) -> None:
        if job not in self._running:
            return  # it was stopped, or its node is gone
        if job.fate == "return":
            self._world.note("ended", job.task, job.task.attempts, job.run)
        self._world.evidence.deaths += job.fate in DEATHS
        self._leave(job, None if job.fate == "return" else DEATHS.get(job.fate, ErrorInfo("ValueError", "as planned")))
        self._fill()
        self._node.wake(self._world.now)

    def _leave(self, job: Job, error: ErrorInfo | None) -> None:
        self._running.remove(job)
        seconds = self._world.now - job.began
        result = None if error else job.run
        self._says.append(backend.Finished(job.task, "w1", job.began, seconds, result, error, "", False))


class Node:
    """A process with a Loop; `on_death` is called when it has crashed or left."""

    def __init__(self, world: World, id: str, make_loop: Callable[..., Loop], on_death: Callable[[], None]) -> None:
        self.id = id
        self.runs = count(1)
        self.alive = True
        self._world = world
        self._on_death = on_death
        self._skew = 0.0
        self._next = float("inf")
        self._is_asked = False  # to take another turn when this one is over
        self.pool = SimPool(world, self)
        staff = [WorkerGroup(Pool(WORKERS), cast(Any, self.pool))]  # the loop asks it for no more than what is above
        self.loop = make_loop(
            NodeStore(world, id), staff, Teller(world, id), Waiters(), lease=LEASE,
            types=lambda: {TYPE}, chance=world.chance.random, monotonic=lambda: world.ticks,
        )  # fmt: skip
        self.loop.id = id
        self.wake(world.now)

    def wake(self, at: float) -> None:
        """It takes its turn by then."""
        if at < self._next:
            self._next = at
            self._world.at(at, lambda: self._turn_if_due(at))

    def hint(self) -> None:
        """Somebody has changed the store; the datagram that says so may be lost."""
        if self.alive and not self._world.strikes("deaf", 0.3):
            self.wake(self._world.now + self._world.some_time(0.001))

    def _turn_if_due(self, at: float) -> None:
        if not self.alive or at != self._next:
            return
        self._next = float("inf")
        if self.id in self._world.inside:  # in the midst of a turn: it comes back to this
            self._is_asked = True
            return
        self._maybe_skew()
        self._maybe_drain()
        try:
            self._turn()
        except Crash:
            self._world.blame(self.id)
            self._die("is dead")

    def _turn(self) -> None:
        try:
            due = self.loop.turn(self._world.now + self._skew) - self._skew
            if self.loop.is_drained():
                self.loop.sign_off(self._world.now + self._skew)
                self._die("has left")
        except StoreError:
            due = self._world.now + 0.1  # while leaving: once more
        due, self._is_asked = self._world.now if self._is_asked else due, False
        self.wake(max(self._world.now + 0.0005, min(due, self._world.now + LOOK)))

    def _die(self, how: str) -> None:
        self.alive = False
        self.pool.vanish()
        self._world.dead.append(self.id)
        self._world.tell(self.id, how)
        self._on_death()

    def _maybe_skew(self) -> None:
        if self._world.calm:
            self._skew = 0.0
        elif self._world.strikes("skew", 0.003):
            self._skew = self._world.chance.uniform(-SKEW, SKEW)
            self._world.clocks_differ = True
            self._world.tell(self.id, f"its clock is {self._skew:+.1f} s off")

    def _maybe_drain(self) -> None:
        if not self.loop.draining and self._world.strikes("drain", 0.003):
            self._world.tell(self.id, "drains")
            self.loop.drain()


class Client:
    """Adds tasks, some after others, some twice by their key; and cancels some. What it was told, it knows."""

    def __init__(self, world: World, tasks: int, tell: Callable[[], None]) -> None:
        self._world = world
        self._store = NodeStore(world, "client")
        self._tell = tell
        self._left = tasks
        self._known: list[str] = []
        world.at(world.now, self._act)

    def _act(self) -> None:
        world = self._world
        try:
            if self._left > 0:
                self._add(min(self._left, world.chance.randint(1, 4)))
            if self._known and world.strikes("cancel", 0.3):
                self._cancel(world.chance.choice(self._known))
        except (Crash, DTQError):
            pass  # this client is gone, or was refused; another one goes on
        if self._left > 0 or not world.calm:
            world.at(world.now + world.some_time(0.8), self._act)

    def _add(self, n: int) -> None:
        tasks = [self._task(f"t{self._left - k:02}") for k in range(n)]
        self._left -= n
        ids = self._store.add(tasks)
        self._known += ids
        self._world.evidence.lines += [Line("acknowledged", id) for id in ids]
        self._world.tell("client", f"added {', '.join(ids)}")
        self._tell()

    def _task(self, id: str) -> Task:
        chance = self._world.chance
        return Task(
            type=TYPE, id=id, created_at=self._world.now, run_at=self._world.now, timeout=TIMEOUT, max_attempts=9,
            payload={"fails": chance.choice((0, 0, 0, 1, 2, 9)), "seconds": chance.choice((0.01, 0.3, 3.0))},
            after=tuple(chance.sample(self._known[-6:], 1)) if self._known and chance.random() < 0.3 else (),
            limit_key=LIMITED if chance.random() < 0.4 else "", retry_delay=0.5, retry_backoff="constant",
            priority=chance.randint(0, 1),
        )  # fmt: skip

    def _cancel(self, id: str) -> None:
        (task,) = self._store.get([id])
        if not task.is_terminal and task.status != Status.CANCELLED:
            if self._store.update([(cancel(task, self._world.now), ())]):
                self._world.evidence.lines.append(Line("cancelled", id))
            self._tell()


class Reuser:
    """Deletes tasks, also such as run (it cancels them first), and adds others under their ids at once."""

    def __init__(self, world: World, tell: Callable[[], None]) -> None:
        self._world = world
        self._store = NodeStore(world, "reuser")
        self._tell = tell
        self._lives = count(2)
        world.at(world.now + 1.0, self._act)

    def _act(self) -> None:
        world = self._world
        if world.calm:
            return
        try:
            if tasks := world.store.find():
                self._use_again(world.chance.choice(tasks))
        except (Crash, StoreError):
            pass  # the cancel came to nothing: another time
        world.at(world.now + world.some_time(0.5), self._act)

    def _use_again(self, task: Task) -> None:
        world = self._world
        if not task.is_terminal:
            self._store.update([(cancel(task, world.now), ())])
        for old in world.store.get([task.id]):
            if world.store.delete([old.id]):
                world.note("deleted", old, old.version, "reuser")
                payload = {**old.payload, "life": f"{old.id}#{next(self._lives)}"}
                new = Task(
                    type=TYPE, id=old.id, created_at=world.now, run_at=world.now, timeout=TIMEOUT, max_attempts=9,
                    payload=payload, limit_key=old.limit_key, retry_delay=0.5, retry_backoff="constant",
                )  # fmt: skip
                world.store.add([new])
                world.note("acknowledged", new, 0, "reuser")
                self._tell()
