"""Limits and fairness: which waiting task is next. Pure policy over the heads of the lanes; time is passed in.

A lane is (queue, type, limit key). A limit names some lanes and may pause them, bound how many of their tasks run at
once, and how many start a second. A claim looks only at the heads of lanes that are open, so its cost does not grow
with what waits.

    lane A  ##########  --- heads ---.
    lane B  ###         --- heads ---+--> pick: highest priority, then the key that was served least,
    lane C  (closed)                       then due time, then order of insertion
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from heapq import heapify, heappop, heappush
from math import ceil
from typing import Any

import msgspec

from dtq.errors import DTQError

Lane = tuple[str, str, str]  # queue, type, limit key
Selector = tuple[str | None, str | None, str | None]  # the same, None standing for any
Head = tuple[int, float, int]  # -priority, run_at, insertion number: the smallest goes first

MAX_RATE = 1e6  # tasks a second
MAX_COUNT = 10**9
EACH = "*"  # a limit with this key applies to every key on its own
IN_LINE = 1.0  # seconds, at most, that a claim waits for its turn at a store
ROUNDING = 0.01  # of an interval: adding up intervals as floats must not cost the last task of a burst


class Limit(msgspec.Struct, frozen=True):
    """What the lanes that it names are held to. None stands for any queue, type or key; "*" for each key on its own.

    `rate` is in tasks a second, `burst` how many of them may start at once after a pause; 0 means without limit.
    """

    queue: str | None = None
    type: str | None = None
    key: str | None = None
    paused: bool = False
    rate: float = 0.0
    burst: int = 1
    max_running: int = 0

    def covers(self, lane: Lane) -> bool:
        queue, type_, key = lane
        return (
            self.queue in (None, queue)
            and self.type in (None, type_)
            and (self.key in (None, key) or (self.key == EACH and key != ""))
        )

    def bucket(self, lane: Lane) -> str:
        """What is counted together: everything that the limit covers, or each key on its own."""
        return lane[2] if self.key == EACH else ""

    @property
    def selector(self) -> Selector:
        return self.queue, self.type, self.key

    def with_changes(self, changes: Mapping[str, Any]) -> Limit:
        """The limit as it is after `set_lane`: what is None stays as it is."""
        return msgspec.structs.replace(self, **{name: value for name, value in changes.items() if value is not None})

    @property
    def is_void(self) -> bool:
        return not (self.paused or self.rate or self.max_running)


def check(name: str, value: object, most: float, whole: bool = False) -> None:
    """Raises DTQError where this setting of a limit cannot be."""
    kinds = int if whole else (int, float)
    if value is not None and (isinstance(value, bool) or not isinstance(value, kinds) or not 0 <= value <= most):
        raise DTQError(f"{name} is {value!r}; allowed: a {'whole ' * whole}number from 0 (no limit) to {most:,.0f}")


def changes(rate: float | None, burst: int | None, max_running: int | None) -> dict[str, Any]:
    """What `set_lane` is to change. Raises DTQError."""
    check("rate", rate, MAX_RATE)
    check("burst", burst, MAX_COUNT, whole=True)
    check("max_running", max_running, MAX_COUNT, whole=True)
    if rate and burst is None:
        burst = usual_burst(rate)
    if burst == 0 or rate is burst is max_running is None:
        raise DTQError("a limit needs a rate, max_running, or both; burst is 1 or more, and goes with a rate")
    return {"rate": rate, "burst": burst, "max_running": max_running}


def usual_burst(rate: float) -> int:
    """What comes within a tenth of a second: no less, or each start that is a moment late would be lost to the rate."""
    return max(1, ceil(rate / 10))


class Gate:
    """A limit at work during one claim: how many run, and when the next may start, bucket by bucket.

    The rate is kept by the generic cell rate algorithm (ITU-T I.371): a token bucket that is a single time. `next_at`
    is when the bucket would be full again; a task may start while that is at most `burst - 1` intervals ahead.
    """

    def __init__(self, limit: Limit, running: Mapping[Lane, int], next_at: Mapping[str, float]) -> None:
        self.limit = limit
        self.next_at = dict(next_at)
        self.running: dict[str, int] = {}
        for lane, n in running.items():
            if limit.covers(lane):
                bucket = limit.bucket(lane)
                self.running[bucket] = self.running.get(bucket, 0) + n

    def opens_at(self, bucket: str) -> float:
        """From when on the rate allows one more to start; 0 where it always does."""
        if not self.limit.rate:
            return 0.0
        return self.next_at.get(bucket, 0.0) - (self.limit.burst - 1) / self.limit.rate

    def is_open(self, bucket: str, now: float) -> bool:
        limit = self.limit
        if limit.paused or (limit.max_running and self.running.get(bucket, 0) >= limit.max_running):
            return False
        slack = ROUNDING / limit.rate if limit.rate else 0.0
        return self.opens_at(bucket) <= now + slack

    def owed(self, now: float) -> dict[str, float]:
        """The buckets that are not full: what has to be kept."""
        return {bucket: at for bucket, at in self.next_at.items() if at > now}

    def enter(self, bucket: str, now: float) -> None:
        self.running[bucket] = self.running.get(bucket, 0) + 1
        if self.limit.rate:
            self.next_at[bucket] = max(self.next_at.get(bucket, 0.0), now) + 1 / self.limit.rate


class Share:
    """Who has been served how much: start-time fair queueing (Goyal, Vin, Cheng 1996) between limit keys.

    Each key has a mark that grows by one with each task served; the lowest goes first. `now` is the mark of the one
    served last: a key that comes back after a while starts from there, so that nobody saves up a claim to serve only
    him.
    """

    def __init__(self, marks: Mapping[str, float], now: float = 0.0) -> None:
        self.marks = dict(marks)
        self.now = now

    def mark(self, key: str) -> float:
        return max(self.marks.get(key, 0.0), self.now)

    def serve(self, key: str) -> None:
        self.now = self.mark(key)
        self.marks[key] = self.now + 1

    def ahead(self) -> dict[str, float]:
        """The marks that still matter: a key without one stands at `now`."""
        return {key: mark for key, mark in self.marks.items() if mark > self.now}


class _Contender:
    """A lane that takes part in one claim."""

    def __init__(self, lane: Lane, heads: Iterator[Head], gates: Iterable[Gate]) -> None:
        self.heads = heads
        self.gates = [(gate, gate.limit.bucket(lane)) for gate in gates if gate.limit.covers(lane)]

    def is_open(self, now: float) -> bool:
        return all(gate.is_open(bucket, now) for gate, bucket in self.gates)

    def start(self, head: Head, now: float) -> bool:
        """Lets this task of the lane through its gates; says whether they were open."""
        at = counts_from(head[1], now)
        if not self.is_open(at):
            return False
        for gate, bucket in self.gates:
            gate.enter(bucket, at)
        return True


def counts_from(run_at: float, now: float) -> float:
    """When a task has started, for the rate. A claim that stood in line at the store may have been made a moment before
    the task came; one that was made long before it is by a clock that was set back."""
    return run_at if now < run_at <= now + IN_LINE else now


def pick(
    lanes: Mapping[Lane, Iterator[Head]], n: int, now: float, gates: Iterable[Gate], share: Share
) -> list[tuple[Lane, Head]]:
    """The up to n tasks that go next, best first. Each lane gives its own heads, best first; gates and share are
    brought up to date."""
    gates = list(gates)
    rivals: dict[str, list[tuple[Head, Lane, _Contender]]] = {}  # the lanes of each key, a heap by head
    for lane, heads in lanes.items():
        contender = _Contender(lane, heads, gates)
        if contender.is_open(now) and (head := next(heads, None)):
            rivals.setdefault(lane[2], []).append((head, lane, contender))
    for group in rivals.values():
        heapify(group)
    order = [(group[0][0][0], share.mark(key), group[0][0], key) for key, group in rivals.items()]
    heapify(order)
    picked: list[tuple[Lane, Head]] = []
    while order and len(picked) < n:
        key = heappop(order)[3]
        group = rivals[key]
        head, lane, contender = heappop(group)
        if contender.start(head, now):
            if len(rivals) > 1:
                share.serve(key)
            picked.append((lane, head))
            if following := next(contender.heads, None):
                heappush(group, (following, lane, contender))
        if group:
            heappush(order, (group[0][0][0], share.mark(key), group[0][0], key))
    return picked
