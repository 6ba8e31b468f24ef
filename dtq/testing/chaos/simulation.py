"""Simulation: several nodes with the real loop and the real MemoryStore, on a simulated clock.

    seed --> World, SimNodes, SimClient --a storm of faults, then calm--> RunRecord --> broken invariants

Nothing waits in real time, so thousands of schedules take a minute. All randomness comes from the seed, so a schedule
that breaks an invariant can be repeated, step by step:  dtq chaos memory: --seed 4711 --schedules 1
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
from dtq.testing.chaos.invariants import RunRecord, name_of
from dtq.testing.chaos.sim_clients import IdReuser, SimClient
from dtq.testing.chaos.sim_nodes import SimNode
from dtq.testing.chaos.world import BEGIN, LEASE, LIMITED, MAX_RUNNING, SWEEP, World

NODES = 3
TASKS = 14
STORM = 15.0  # simulated seconds with faults
CALM = 400.0  # simulated seconds without faults, by which every task must have ended
AWAKE = 1.5  # seconds after a sleep of the machine until every living node has taken a turn
STEP = 1.0  # seconds between checks, in the calm, whether every task has ended


class SimulatedRun(Struct):
    """The result of one seed: the broken invariants, the story line by line, and what was recorded."""

    seed: int
    broken: dict[str, list[str]]
    story: list[str]
    record: RunRecord

    def __str__(self) -> str:
        broken = [f"{name}: {sentence}" for name, sentences in self.broken.items() for sentence in sentences]
        return "\n".join([*self.story, *(broken or ["every promise was kept"])])


def simulate(
    seed: int, *, make_store: Callable[[], MemoryStore] = MemoryStore, make_loop: Callable[..., Loop] = Loop,
    sleeps: bool = False, reuse_ids: bool = False, pauses: bool = False,
) -> SimulatedRun:  # fmt: skip
    """Run the schedule of this seed. Return what it recorded and broke.

    Args:
        make_store: makes the store, which a test may break.
        make_loop: makes the loop of each node, which a test may break.
        sleeps: the whole machine sleeps now and then.
        reuse_ids: a client deletes tasks and adds others under their ids.
        pauses: the loops pause between turns now and then, as in a stream of tasks.
    """
    world = World(seed, make_store, sleeps)
    world.pauses = pauses
    with _quiet():
        Simulation(world, make_loop).run(reuse_ids)
    world.record.tasks = {name_of(task): task for task in world.store.find(limit=10 * TASKS)}
    world.store.close()
    return SimulatedRun(seed, invariants.broken(world.record), world.story, world.record)


def hunt(seeds: Iterable[int], **parts: Any) -> SimulatedRun | None:
    """Return the first schedule that breaks an invariant; None if all of them hold. `parts` are those of `simulate`."""
    return next((schedule for seed in seeds if (schedule := simulate(seed, **parts)).broken), None)


class Simulation:
    """The nodes and clients of one world."""

    def __init__(self, world: World, make_loop: Callable[..., Loop]) -> None:
        self.world = world
        self.make_loop = make_loop
        self.numbers = count(1)
        self.nodes: list[SimNode] = []
        world.store.set_lane(key=LIMITED, max_running=MAX_RUNNING)

    def run(self, reuse_ids: bool) -> None:
        world = self.world
        for _ in range(NODES):
            self.start_node()
        SimClient(world, TASKS, self.hint_nodes)
        if reuse_ids:
            IdReuser(world, self.hint_nodes)
        world.sleep_now_and_then()
        while (left := BEGIN + STORM - world.ticks) > 0:
            world.run_until(world.now + left)
        world.calm = True
        world.tell("world", "the storm is over")
        quiet_since = world.now
        while world.store.stats().unfinished and world.now < quiet_since + CALM and not world.record.violations:
            world.run_until(world.now + STEP)
            if world.now > quiet_since + LEASE + SWEEP:
                world.check_leases()

    def start_node(self) -> None:
        """Start a node. Right after a sleep it waits a little: a new node could not notice that sleep."""
        if self.world.now < self.world.woke_at + AWAKE:
            self.world.at(self.world.woke_at + AWAKE, self.start_node)
            return
        self.nodes = [node for node in self.nodes if node.alive]
        self.nodes.append(SimNode(self.world, f"n{next(self.numbers)}", self.make_loop, self.start_node_later))

    def start_node_later(self) -> None:
        self.world.at(self.world.now + self.world.some_time(1.0), self.start_node)

    def hint_nodes(self) -> None:
        for node in self.nodes:
            node.hint()


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence dtq's log: the stores of a simulation fail all the time."""
    log = logging.getLogger("dtq")
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before
