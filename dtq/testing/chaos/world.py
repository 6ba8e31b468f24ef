"""World: what a simulation is made of: a clock that is made up, a store that everybody shares, and the order of things.

    events: (time, chance, what)  --> run_until(t): the next one, and the next ...
    a store call of a node        --> passing(): others come between, it stalls, it fails, its node dies
    what happened                 --> lines (for the promises), story (for people)

The same seed gives the same world, event by event.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Callable
from itertools import count
from typing import Any

from dtq.errors import StoreError
from dtq.stores.memory.store import MemoryStore
from dtq.task.model import Status, Task
from dtq.testing.chaos.invariants import EVERYBODY, Line, RunRecord, What, name_of

BEGIN = 1_000_000.0  # UTC seconds, when every world begins
LEASE = 4.0
SWEEP = 2.0  # seconds, after the end of its lease, until a task must have been taken over
LIMITED, MOST = "limited", 2  # a limit key, and how many of its tasks may run at once
NESTED = 3  # calls, one within the other, that others may come between
FAULTS = ("crash", "die", "hang", "refuse", "unheard", "stall", "skew", "drain", "cancel", "deaf")


class Crash(BaseException):
    """The process ends at this point; nothing in it can help that."""


class World:
    """One schedule. `kinds` are the faults that there are in it: each world has some of them, so that those which need
    quiet to show are found as well as those which need a storm (swarm testing: Groce et al., ISSTA 2012)."""

    def __init__(
        self, seed: int, make_store: Callable[[], MemoryStore] = MemoryStore, sleeps: bool = False
    ) -> None:  # fmt: skip
        self.chance = random.Random(seed)
        self.kinds = {kind for kind in FAULTS if self.chance.random() < 0.4}
        self.calm = False  # no more faults
        self.now = BEGIN
        self.slept = 0.0  # seconds in which the machine was asleep, all of it: no monotonic clock counts them
        self.woke_at = float("-inf")
        self._sleeps = random.Random(f"sleep {seed}") if sleeps else None
        self.store = make_store()
        self.dead: list[str] = []  # nodes, whose lock is free
        self.evidence = RunRecord([], {}, Counter(), 0, [], {LIMITED: MOST})
        self.story: list[str] = []
        self.clocks_differ = False  # then a lease that runs for one has run out for another, again and again
        self.inside: list[str] = []  # whose store calls are under way, outermost first
        self._events: list[tuple[float, float, int, Callable[[], None]]] = []
        self._serial = count()

    # --- time

    def at(self, time: float, do: Callable[[], None]) -> None:
        """Of two things at one time, chance decides which comes first."""
        heapq.heappush(self._events, (time, self.chance.random(), next(self._serial), do))

    def run_until(self, time: float) -> None:
        while self._events and self._events[0][0] <= time:
            at, _, _, do = heapq.heappop(self._events)
            self.now = max(self.now, at)
            do()
        self.now = max(self.now, time)

    @property
    def ticks(self) -> float:
        """The monotonic clock of every process."""
        return self.now - self.slept

    def sleep_now_and_then(self) -> None:
        """Plan the next sleep of the machine. It is no fault of any node."""
        if self._sleeps is not None and not self.calm:
            self.at(self.now + self._sleeps.expovariate(1 / 4.0), self._sleep)

    def _sleep(self) -> None:
        if self._sleeps is None or self.calm:
            return
        seconds = self._sleeps.choice((3.0, 60.0, 3600.0))
        self.tell("world", f"sleeps for {seconds:g} s")
        self.now += seconds
        self.slept += seconds
        self.woke_at = self.now
        self._events = [(at + seconds, chance, serial, do) for at, chance, serial, do in self._events]
        self.sleep_now_and_then()

    # --- chance

    def strikes(self, kind: str, odds: float) -> bool:
        """Whether this fault happens here."""
        return not self.calm and kind in self.kinds and self.chance.random() < odds

    def some_time(self, mean: float) -> float:
        return self.chance.expovariate(1 / mean)

    # --- the store, as one node or client has it

    def call(self, who: str, name: str, *args: Any, **options: Any) -> Any:
        """One call, between whose beginning and end, and whose end and answer, anything may happen."""
        self._pass_time(who)
        self._fail(who, name, "before")
        standing = self._standing(name, args)
        answer = getattr(self.store, name)(*args, **options)
        self._witness(who, name, answer, args, standing)
        self._fail(who, name, "after")
        self._pass_time(who)
        return answer

    def _pass_time(self, who: str) -> None:
        if len(self.inside) >= NESTED:
            return
        seconds = 0.0
        if self.strikes("stall", 0.01):
            seconds = self.some_time(LEASE)
            self.tell(who, f"stalls for {seconds:.1f} s")
            for node in (who, *self.inside):
                self.blame(node)
        elif self.chance.random() < 0.2:
            seconds = self.some_time(0.005)
        if seconds:
            self.inside.append(who)
            self.run_until(self.now + seconds)
            self.inside.pop()

    def _fail(self, who: str, name: str, when: str) -> None:
        if self.strikes("crash", 0.004):
            self.tell(who, f"crashes {when} {name}")
            raise Crash
        if self.strikes("refuse" if when == "before" else "unheard", 0.02):
            self.tell(who, f"hears that {name} failed ({when} it was done)")
            if name in ("claim", "reap") and when == "after":
                self.blame(who)  # it does not know what it was given
            raise StoreError(f"{name} failed, says the simulation")

    def _standing(self, name: str, args: tuple[Any, ...]) -> dict[str, int]:
        """The versions that an update meets."""
        outcomes = args[0] if name == "update" else ()
        return {task.id: task.version for task in self.store.get([task.id for task, _ in outcomes])}

    def _witness(self, who: str, name: str, answer: Any, args: tuple[Any, ...], standing: dict[str, int]) -> None:
        if name in ("claim", "reap"):
            for task in answer:
                self.note("claimed" if name == "claim" else "taken over", task, task.version, who)
            self._watch_the_limit()
            if name == "reap" and answer and self.clocks_differ:
                self.blame(EVERYBODY)
        elif name == "update":
            for id in sorted(answer):  # of two outcomes of one task, it was the one that knew better
                mine = [task for task, _ in args[0] if task.id == id]
                task = next((task for task in mine if task.version == standing.get(id)), mine[0])
                self.note("accepted", task, task.version, who)

    def _watch_the_limit(self) -> None:
        tasks = self.store.find(status=Status.PROCESSING)
        running = [task.id for task in tasks if task.limit_key == LIMITED and not task.doom]
        if len(running) > MOST:
            self.evidence.seen.append(f"{len(running)} tasks run under a limit of {MOST}: {', '.join(running)}")

    # --- what is known of it all

    def blame(self, who: str, faults: int = 1) -> None:
        self.evidence.faults[who] += faults

    def note(self, what: What, task: Task, number: int, who: str) -> None:
        self.evidence.lines.append(Line(what, name_of(task), number, who))
        self.tell(who, f"{what} {name_of(task)}, {number}")

    def tell(self, who: str, what: str) -> None:
        self.story.append(f"{self.now - BEGIN:9.4f}  {who:8}  {what}")

    def look_for_late_ones(self) -> None:
        """Nothing is processing past its lease and one sweep, when all is quiet."""
        for task in self.store.find(status=Status.PROCESSING):
            if (task.lease_until or 0) + SWEEP < self.now:
                self.evidence.seen.append(
                    f"{task.id} is processing {self.now - (task.lease_until or 0):.1f} s past its lease"
                )
