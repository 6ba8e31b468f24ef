"""Simulation: the real loop and the real MemoryStore, several nodes of them, under a clock that is made up.

    seed --> World, Nodes, Client --a storm of virtual seconds, then calm--> RunRecord --> which promises were broken

Nothing waits, so thousands of schedules take a minute; all chance comes from the seed, so one that breaks a promise can
be run again, step by step:  dtq chaos memory: --seed 4711 --schedules 1
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

from msgspec import Struct

from dtq.queue.loop import Loop
from dtq.stores.memory.store import MemoryStore
from dtq.testing.chaos import invariants
from dtq.testing.chaos.actors import Client, Node, Reuser
from dtq.testing.chaos.invariants import RunRecord, name_of
from dtq.testing.chaos.world import BEGIN, LEASE, LIMITED, MOST, SWEEP, World

NODES = 3
TASKS = 14
STORM = 15.0  # virtual seconds with faults
CALM = 400.0  # and without: by then everything has to have ended
AWAKE = 1.5  # after a sleep of the machine, until every living node has taken a turn
STEP = 1.0  # of the calm, after which one looks whether all has ended


class Schedule(Struct):
    """What became of one seed: the promises that were broken, how; the story, line by line; and what was seen."""

    seed: int
    broken: dict[str, list[str]]
    story: list[str]
    evidence: RunRecord

    def __str__(self) -> str:
        told = [f"{name}: {sentence}" for name, sentences in self.broken.items() for sentence in sentences]
        return "\n".join([*self.story, *(told or ["every promise was kept"])])


def simulate(
    seed: int, *, make_store: Callable[[], MemoryStore] = MemoryStore, make_loop: Callable[..., Loop] = Loop,
    sleeps: bool = False, lives: bool = False,
) -> Schedule:  # fmt: skip
    """Runs the schedule of this seed. The store and the loop may be others, broken ones say. With `sleeps` the machine
    sleeps now and then; with `lives` ids are used again when their tasks were deleted."""
    world = World(seed, make_store, sleeps)
    with _quiet():
        _Cast(world, make_loop).play(lives)
    world.evidence.tasks = {name_of(task): task for task in world.store.find(limit=10 * TASKS)}
    world.store.close()
    return Schedule(seed, invariants.broken(world.evidence), world.story, world.evidence)


def hunt(seeds: Iterable[int], **parts: Any) -> Schedule | None:
    """The first schedule that breaks a promise; None if all are kept. `parts` as in `simulate`."""
    return next((schedule for seed in seeds if (schedule := simulate(seed, **parts)).broken), None)


class _Cast:
    """Who plays in a world."""

    def __init__(self, world: World, make_loop: Callable[..., Loop]) -> None:
        self.world = world
        self.make_loop = make_loop
        self.names = count(1)
        self.nodes: list[Node] = []
        world.store.set_lane(key=LIMITED, max_running=MOST)

    def play(self, lives: bool) -> None:
        world = self.world
        for _ in range(NODES):
            self.make_executors()
        Client(world, TASKS, self.tell)
        if lives:
            Reuser(world, self.tell)
        world.sleep_now_and_then()
        while (left := BEGIN + STORM - world.ticks) > 0:
            world.run_until(world.now + left)
        world.calm = True
        world.tell("world", "the storm is over")
        quiet_since = world.now
        while world.store.stats().unfinished and world.now < quiet_since + CALM and not world.evidence.seen:
            world.run_until(world.now + STEP)
            if world.now > quiet_since + LEASE + SWEEP:
                world.look_for_late_ones()

    def make_executors(self) -> None:
        """Start a node. One that starts right after a sleep would know nothing of it: it comes a little later."""
        if self.world.now < self.world.woke_at + AWAKE:
            self.world.at(self.world.woke_at + AWAKE, self.make_executors)
            return
        self.nodes = [node for node in self.nodes if node.alive]
        self.nodes.append(Node(self.world, f"n{next(self.names)}", self.make_loop, self.replace))

    def replace(self) -> None:
        self.world.at(self.world.now + self.world.some_time(1.0), self.make_executors)

    def tell(self) -> None:
        for node in self.nodes:
            node.hint()


@contextmanager
def _quiet() -> Iterator[None]:
    """A node says that its store failed; here it does so all the time."""
    log = logging.getLogger("dtq")
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before
