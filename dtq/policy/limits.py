"""Limits and fairness: which waiting task is next. Pure policy over the heads of the lanes; time is passed in.

A lane is (queue, type, limit key). A limit names some lanes and may pause them, bound how many of their tasks run at
once, and how many start a second. Lanes of one queue and type are of one kind. The store keeps the lanes of each kind
in the order in which they would be served, so `pick` reads only as many of them as it needs.

    kind 1:  lane A  lane B  lane C ... 20,000 more     read from the left, one at a time
                |
    kind 2:  lane D  lane E ...                         one entry of each kind stands in the heap
                |
                '--> heap --> highest priority, then the key that was served least, then due time, then insertion

    a kind that is closed as a whole (its queue is paused, say) is not read at all
    a lane that its own limits close is reported in `Picked.closed`: the store puts it elsewhere until it may open
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from heapq import heappop, heappush
from itertools import chain, islice
from math import ceil, inf
from typing import Any, NamedTuple

import msgspec

from dtq.errors import DTQError

Lane = tuple[str, str, str]  # queue, type, limit key
Kind = tuple[str, str, str]  # queue, type, and "*" for all lanes with a limit key or "" for the one without
Selector = tuple[str | None, str | None, str | None]  # the same, None standing for any
Head = tuple[int, float, int]  # -priority, run_at, insertion number: the smallest goes first
Entry = tuple[int, float, Head, Lane]  # -priority, mark of the key, first head: the smallest lane goes first

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

    def holds_all_of(self, kind: Kind) -> bool:
        """Whether every lane of this kind is counted together by this limit, or paused by it."""
        queue, type_, key = kind
        fits = self.queue in (None, queue) and self.type in (None, type_)
        return fits and (self.key is None or (self.paused and self.key == key == EACH))

    @property
    def selector(self) -> Selector:
        return self.queue, self.type, self.key

    @property
    def ahead(self) -> float:
        """How far a bucket may be used up before its time, in seconds."""
        return (self.burst - 1) / self.rate if self.rate else 0.0

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


class _Known(dict[str, Any]):
    """Values by bucket, each looked up when it is first asked for."""

    def __init__(self, look: Callable[[str], Any]) -> None:
        self._look = look

    def __missing__(self, bucket: str) -> Any:
        value = self[bucket] = self._look(bucket)
        return value


class Gate:
    """A limit at work during one claim: how many run, and when the next may start, bucket by bucket.

    The rate is kept by the generic cell rate algorithm (ITU-T I.371): a token bucket that is a single time. `next_at`
    is when the bucket would be full again (0: it is full); a task may start while that is at most `burst - 1` intervals
    ahead. `running` and `next_at` are asked only for buckets of lanes that take part.
    """

    def __init__(self, limit: Limit, running: Callable[[str], int], next_at: Callable[[str], float]) -> None:
        self.limit = limit
        self.running = _Known(running)
        self.next_at = _Known(next_at)
        self.used: dict[str, float] = {}  # buckets from which a task has started -> when they are full again

    def opens_at(self, bucket: str) -> float:
        """Return from when on the rate allows one more to start; 0 where it always does."""
        if not self.limit.rate:
            return 0.0
        return float(self.next_at[bucket] - self.limit.ahead)

    def closed_until(self, bucket: str) -> float:
        """Return until when the bucket is closed; infinity if no time opens it."""
        limit = self.limit
        if limit.paused or (limit.max_running and self.running[bucket] >= limit.max_running):
            return inf
        return max(0.0, self.opens_at(bucket) - ROUNDING / limit.rate) if limit.rate else 0.0

    def enter(self, bucket: str, now: float) -> None:
        self.running[bucket] += 1
        if self.limit.rate:
            self.next_at[bucket] = self.used[bucket] = max(self.next_at[bucket], now) + 1 / self.limit.rate


class Share:
    """Who has been served how much: start-time fair queueing (Goyal, Vin, Cheng 1996) between limit keys.

    Each key has a mark that grows by one with each task served; the lowest goes first. `now` is the mark of the key
    served last: a key that comes back after a while starts from there, so it cannot save up turns. As every mark starts
    at `now` and grows by one, there are only two: `now`, and `now + 1` for the keys that are `ahead`.
    """

    def __init__(self, now: float = 0.0, ahead: Iterable[str] = ()) -> None:
        self.now = now
        self.ahead = dict.fromkeys(ahead)  # in the order in which they were served

    def mark(self, key: str) -> float:
        return self.now + (key in self.ahead)

    def serve(self, key: str) -> None:
        if key in self.ahead:  # every other key has had its turn, or had nothing: a new round begins
            self.now += 1
            self.ahead = {}
        self.ahead[key] = None


class Picked(NamedTuple):
    """What a claim takes, best first; the keys that it served; and lanes that their own limits close, until when."""

    heads: list[tuple[Lane, Head]]
    served: dict[str, float]  # key -> its mark now
    closed: dict[Lane, float]


class _Kind:
    """The lanes of one kind during one claim, read as they are needed."""

    def __init__(self, kind: Kind, lanes: Iterator[Entry], gates: Iterable[Gate]) -> None:
        gates = [gate for gate in gates if gate.limit.queue in (None, kind[0]) and gate.limit.type in (None, kind[1])]
        self.shared = [gate for gate in gates if gate.limit.holds_all_of(kind)]
        self.gates = [gate for gate in gates if gate not in self.shared]
        self.lanes = lanes
        self.last: _Contender | None = None  # the one that was read last

    def closed_until(self) -> float:
        return max((gate.closed_until(gate.limit.bucket(("", "", ""))) for gate in self.shared), default=0.0)


class _Contender:
    """A lane that takes part in one claim."""

    def __init__(self, lane: Lane, kind: _Kind) -> None:
        self.lane = lane
        self.kind = kind
        self.behind: Iterator[Head] | None = None
        self.gates = [(gate, gate.limit.bucket(lane)) for gate in kind.gates if gate.limit.covers(lane)]
        self.is_free = not self.gates and not kind.shared

    def closed_until(self) -> float:
        """Return until when its own limits close this lane."""
        return max((gate.closed_until(bucket) for gate, bucket in self.gates), default=0.0)

    def start(self, head: Head, now: float) -> bool:
        """Let this task of the lane through its gates. Return whether they were open."""
        if self.is_free:
            return True
        at = counts_from(head[1], now)
        if self.kind.closed_until() > at:
            self.kind.lanes = iter(())
            return False
        if self.closed_until() > at:
            return False
        for gate, bucket in self.gates:
            gate.enter(bucket, at)
        for gate in self.kind.shared:
            gate.enter("", at)
        return True


def counts_from(run_at: float, now: float) -> float:
    """When a task has started, for the rate. A claim that stood in line at the store may have been made a moment before
    the task came; one that was made long before it is by a clock that was set back."""
    return run_at if now < run_at <= now + IN_LINE else now


def pick(
    kinds: Mapping[Kind, Iterator[Entry]],
    n: int,
    now: float,
    gates: Iterable[Gate],
    share: Share,
    behind: Callable[[Lane], Iterator[Head]],
) -> Picked:
    """Return the up to n tasks that go next, best first.

    `kinds` gives the lanes of each kind, best first; `behind` the heads of a lane after its first. Gates and share are
    brought up to date. Of each kind one lane more is read than is served.
    """
    return _Picking(n, now, share, behind).run(kinds, list(gates))


def kind_of(lane: Lane) -> Kind:
    queue, type_, key = lane
    return queue, type_, EACH if key else ""


def closed_until(lane: Lane, gates: Iterable[Gate]) -> float:
    """Return until when this lane is closed by limits that do not hold all of its kind."""
    own = (gate for gate in gates if gate.limit.covers(lane) and not gate.limit.holds_all_of(kind_of(lane)))
    return max((gate.closed_until(gate.limit.bucket(lane)) for gate in own), default=0.0)


class _Picking:
    """One claim at work."""

    def __init__(self, n: int, now: float, share: Share, behind: Callable[[Lane], Iterator[Head]]) -> None:
        self.n = n
        self.now = now
        self.share = share
        self.behind = behind
        self.order: list[tuple[int, float, Head, _Contender]] = []  # a heap; heads differ, so it compares no contenders
        self.marks: dict[str, float] = {}  # of keys that were served in this claim
        self.picked = Picked([], {}, {})

    def run(self, kinds: Mapping[Kind, Iterator[Entry]], gates: list[Gate]) -> Picked:
        if self.n <= 0:
            return self.picked
        ways = [_Kind(kind, lanes, gates) for kind, lanes in kinds.items()]
        ways = [way for way in ways if way.closed_until() <= self.now]
        for way in ways:
            self.read(way)
        for way in ways:
            if len({item[3].lane[2] for item in self.order}) < 2:  # is there a rival? A kind has a key only once
                self.read(way)
        is_shared = len({item[3].lane[2] for item in self.order}) > 1
        while self.order and len(self.picked.heads) < self.n:
            self.serve_next(is_shared)
        return self.picked

    def read(self, way: _Kind) -> None:
        """Enter the next lane of this kind that is open."""
        for priority, mark, head, lane in way.lanes:
            contender = _Contender(lane, way)
            if (until := contender.closed_until()) <= self.now:
                way.last = contender
                heappush(self.order, (priority, mark, head, contender))
                return
            self.picked.closed[lane] = until

    def serve_next(self, is_shared: bool) -> None:
        priority, mark, head, contender = heappop(self.order)
        if contender is contender.kind.last:
            self.read(contender.kind)
        if not self.order and not is_shared and contender.is_free:
            self.serve_alone(head, contender)
            return
        key = contender.lane[2]
        if self.marks.get(key, mark) > mark:  # another lane of this key had its turn since
            heappush(self.order, (priority, self.marks[key], head, contender))
            return
        if contender.start(head, self.now):
            if is_shared:
                self.share.serve(key)
                self.picked.served[key] = self.share.mark(key)
            self.marks[key] = self.share.mark(key)
            self.picked.heads.append((contender.lane, head))
            if len(self.picked.heads) < self.n:
                self.go_on(contender)

    def serve_alone(self, head: Head, contender: _Contender) -> None:
        """Take what is left to take from the only lane, which has no limits: there is nothing to compare."""
        heads = chain([head], self.heads_behind(contender))
        self.picked.heads.extend((contender.lane, head) for head in islice(heads, self.n - len(self.picked.heads)))

    def heads_behind(self, contender: _Contender) -> Iterator[Head]:
        if contender.behind is None:
            contender.behind = self.behind(contender.lane)
        return contender.behind

    def go_on(self, contender: _Contender) -> None:
        """Enter the next task of a lane that was served."""
        if (head := next(self.heads_behind(contender), None)) is not None:
            heappush(self.order, (head[0], self.marks[contender.lane[2]], head, contender))
