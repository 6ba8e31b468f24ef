"""The clients of a simulation, which add, cancel and delete tasks; and the store as one simulated process sees it.

SimClient, IdReuser, SimNode --> SimStore --> World.call --> the one store
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any

from dtq.errors import DTQError, StoreError
from dtq.stores.shared.overlap import run_offered_work
from dtq.task.model import Status, Task
from dtq.task.transitions import cancel
from dtq.testing.chaos.invariants import Line
from dtq.testing.chaos.world import LIMITED, Crash, World
from dtq.testing.wrapper import StoreWrapper

TYPE = "work"
TIMEOUT = 8.0  # seconds that each attempt may take


class SimStore(StoreWrapper):
    """Passes the calls of nodes and clients through the world, where they may fail."""

    def __init__(self, world: World, caller: str) -> None:
        super().__init__(world.store)
        self._world = world
        self._caller = caller

    def call(self, name: str, *args: Any, **options: Any) -> Any:
        """Make a call of the store, in the world.

        As with a busy server, the loop collects reports of its workers during a claim or an update. As on one machine,
        the locks of dead nodes show that they are dead. A set would have another order in each process.
        """
        if name in ("set_lane", "delete", "purge"):  # what the world's clients and clean-up do always succeeds
            return super().call(name, *args, **options)
        if name in ("claim", "update", "exchange"):
            run_offered_work()
        if name == "reap":
            args = (*args, list(self._world.dead))
        answer = self._world.call(self._caller, name, *args, **options)
        return sorted(answer) if name == "heartbeat" else answer


class SimClient:
    """Adds tasks, some of them with parents, and cancels some. It knows only the tasks whose `add` returned."""

    def __init__(self, world: World, tasks: int, hint_nodes: Callable[[], None]) -> None:
        self._world = world
        self._store = SimStore(world, "client")
        self._hint_nodes = hint_nodes
        self._left = tasks
        self._known: list[str] = []
        world.at(world.now, self._act)

    def _act(self) -> None:
        world = self._world
        try:
            if self._left > 0:
                self._add(min(self._left, world.rng.randint(1, 4)))
            if self._known and world.strikes("cancel", 0.3):
                self._cancel(world.rng.choice(self._known))
        except (Crash, DTQError):
            pass  # this client crashed or was refused; another one goes on
        if self._left > 0 or not world.calm:
            world.at(world.now + world.some_time(0.8), self._act)

    def _add(self, n: int) -> None:
        tasks = [self._task(f"t{self._left - k:02}") for k in range(n)]
        self._left -= n
        ids = self._store.add(tasks)
        self._known += ids
        self._world.record.lines += [Line("acknowledged", id) for id in ids]
        self._world.tell("client", f"added {', '.join(ids)}")
        self._hint_nodes()

    def _task(self, id: str) -> Task:
        rng = self._world.rng
        return Task(
            type=TYPE, id=id, created_at=self._world.now, run_at=self._world.now, timeout=TIMEOUT, max_attempts=9,
            payload={"fails": rng.choice((0, 0, 0, 1, 2, 9)), "seconds": rng.choice((0.01, 0.3, 3.0))},
            after=tuple(rng.sample(self._known[-6:], 1)) if self._known and rng.random() < 0.3 else (),
            limit_key=LIMITED if rng.random() < 0.4 else "", retry_delay=0.5, retry_backoff="constant",
            priority=rng.randint(0, 1),
        )  # fmt: skip

    def _cancel(self, id: str) -> None:
        (task,) = self._store.get([id])
        if not task.is_terminal and task.status != Status.CANCELLED:
            if self._store.update([(cancel(task, self._world.now), ())]):
                self._world.record.lines.append(Line("cancelled", id))
            self._hint_nodes()


class IdReuser:
    """Deletes tasks, also running ones (it cancels them first), and adds others under their ids at once."""

    def __init__(self, world: World, hint_nodes: Callable[[], None]) -> None:
        self._world = world
        self._store = SimStore(world, "reuser")
        self._hint_nodes = hint_nodes
        self._lives = count(2)
        world.at(world.now + 1.0, self._act)

    def _act(self) -> None:
        world = self._world
        if world.calm:
            return
        try:
            if tasks := world.store.find():
                self._reuse_id(world.rng.choice(tasks))
        except (Crash, StoreError):
            pass  # the cancel failed: try another task later
        world.at(world.now + world.some_time(0.5), self._act)

    def _reuse_id(self, task: Task) -> None:
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
                self._hint_nodes()
