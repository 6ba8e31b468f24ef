"""The world of a simulation: a simulated clock, one store that all nodes share, and a queue of events.

    events: (time, tie-breaker, action)  --> run_until(t): one after the other
    a node's store call                  --> call(): other events come between; it stalls, fails, or its node crashes
    what happened                        --> record (for the invariants), story (for people)

The same seed makes the same world, event by event.
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
from dtq.testing.chaos.invariants import ANY_NODE, Line, LineKind, RunRecord, name_of

BEGIN = 1_000_000.0  # UTC seconds at which every world begins
LEASE = 4.0
SWEEP = 2.0  # seconds after the end of its lease by which a task must have been taken over
LIMITED, MAX_RUNNING = "limited", 2  # a limit key, and how many of its tasks may run at once
MAX_NESTED_CALLS = 3  # store calls under way, one within the other
FAULTS = ("crash", "die", "hang", "refuse", "unheard", "stall", "skew", "drain", "cancel", "deaf")


class Crash(BaseException):
    """The process ends here. No code in it can prevent that."""


class World:
    """One schedule.

    `kinds` are the faults that it has. Each world has only some of them, so that it also finds the bugs that show only
    in a quiet world (swarm testing: Groce et al., ISSTA 2012).
    """

    def __init__(
        self, seed: int, make_store: Callable[[], MemoryStore] = MemoryStore, sleeps: bool = False
    ) -> None:  # fmt: skip
        self.rng = random.Random(seed)
        self.kinds = {kind for kind in FAULTS if self.rng.random() < 0.4}
        self.calm = False  # no more faults
        self.pauses = False  # loops pause between their turns
        self.now = BEGIN
        self.slept = 0.0  # seconds that the machine slept; no monotonic clock counts them
        self.woke_at = float("-inf")
        self._sleeps = random.Random(f"sleep {seed}") if sleeps else None
        self.store = make_store()
        self.dead: list[str] = []  # nodes whose lock is free
        self.record = RunRecord([], {}, Counter(), 0, [], {LIMITED: MAX_RUNNING})
        self.story: list[str] = []
        self.clocks_differ = False  # then a lease may be valid for one node and expired for another
        self.inside: list[str] = []  # the callers of the store calls under way, outermost first
        self._events: list[tuple[float, float, int, Callable[[], None]]] = []
        self._serial = count()

    # --- time

    def at(self, time: float, do: Callable[[], None]) -> None:
        """Schedule an action. Of two actions at one time, the random generator decides which comes first."""
        heapq.heappush(self._events, (time, self.rng.random(), next(self._serial), do))

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
        """Schedule the next sleep of the machine. No node is to blame for it."""
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
        self._events = [(at + seconds, rng, serial, do) for at, rng, serial, do in self._events]
        self.sleep_now_and_then()

    # --- rng

    def strikes(self, kind: str, odds: float) -> bool:
        """Return True if this fault happens here."""
        return not self.calm and kind in self.kinds and self.rng.random() < odds

    def some_time(self, mean: float) -> float:
        return self.rng.expovariate(1 / mean)

    # --- a call of the store

    def call(self, who: str, name: str, *args: Any, **options: Any) -> Any:
        """Make one store call. Anything may happen before it begins, and between its end and its answer."""
        self._pass_time(who)
        self._fail(who, name, "before")
        stored = self._stored_versions(name, args)
        answer = getattr(self.store, name)(*args, **options)
        self._record_call(who, name, answer, args, stored)
        self._fail(who, name, "after")
        self._pass_time(who)
        return answer

    def _pass_time(self, who: str) -> None:
        if len(self.inside) >= MAX_NESTED_CALLS:
            return
        seconds = 0.0
        if self.strikes("stall", 0.01):
            seconds = self.some_time(LEASE)
            self.tell(who, f"stalls for {seconds:.1f} s")
            for node in (who, *self.inside):
                self.blame(node)
        elif self.rng.random() < 0.2:
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
            self.tell(who, f"gets an error from {name} ({when} it was done)")
            if name in ("claim", "exchange", "reap") and when == "after":
                self.blame(who)  # it does not know which tasks it got
            raise StoreError(f"{name} failed, says the simulation")

    def _stored_versions(self, name: str, args: tuple[Any, ...]) -> dict[str, int]:
        """Return the stored versions that an update is about to meet."""
        outcomes = args[0] if name in ("update", "exchange") else ()
        return {task.id: task.version for task in self.store.get([task.id for task, _ in outcomes])}

    def _record_call(self, who: str, name: str, answer: Any, args: tuple[Any, ...], stored: dict[str, int]) -> None:
        if name == "exchange":
            self._record_call(who, "update", answer[0], args, stored)
            self._record_call(who, "claim", answer[1], args, stored)
        elif name in ("claim", "reap"):
            for task in answer:
                self.note("claimed" if name == "claim" else "taken over", task, task.version, who)
            self._check_limit()
            if name == "reap" and answer and self.clocks_differ:
                self.blame(ANY_NODE)
        elif name == "update":
            for id in sorted(answer):  # of two outcomes of one task, the store took the one with its version
                mine = [task for task, _ in args[0] if task.id == id]
                task = next((task for task in mine if task.version == stored.get(id)), mine[0])
                self.note("accepted", task, task.version, who)

    def _check_limit(self) -> None:
        tasks = self.store.find(status=Status.PROCESSING)
        running = [task.id for task in tasks if task.limit_key == LIMITED and not task.doom]
        if len(running) > MAX_RUNNING:
            self.record.violations.append(
                f"{len(running)} tasks run under a limit of {MAX_RUNNING}: {', '.join(running)}"
            )

    # --- records

    def blame(self, who: str, faults: int = 1) -> None:
        self.record.faults[who] += faults

    def note(self, what: LineKind, task: Task, number: int, who: str) -> None:
        self.record.lines.append(Line(what, name_of(task), number, who))
        self.tell(who, f"{what} {name_of(task)}, {number}")

    def tell(self, who: str, what: str) -> None:
        self.story.append(f"{self.now - BEGIN:9.4f}  {who:8}  {what}")

    def check_leases(self) -> None:
        """Record each task that is still processing after its lease and one sweep."""
        for task in self.store.find(status=Status.PROCESSING):
            if (task.lease_until or 0) + SWEEP < self.now:
                self.record.violations.append(
                    f"{task.id} is processing {self.now - (task.lease_until or 0):.1f} s past its lease"
                )
