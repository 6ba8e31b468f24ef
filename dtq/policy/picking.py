"""Fairness: which waiting task is next. Pure functions over the heads of lanes; time is a parameter.

The store keeps the lanes of each kind in the order in which they are served, so `pick` reads only as many of them as it
needs.

    kind 1:  lane A  lane B  lane C ... 20,000 more     read from the left, one at a time
                |
    kind 2:  lane D  lane E ...                         one entry of each kind stands in the heap
                |
                '--> heap --> highest priority, then the key that was served least, then due time, then insertion

    a kind that is closed as a whole (for example in a paused queue) is not read at all
    a lane that its own limits close is listed in `Picked.closed`: the store sets it aside until it may open
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from heapq import heappop, heappush
from itertools import chain, islice
from math import inf
from typing import Any, NamedTuple

from dtq.policy.limits import Kind, Lane, Limit, kind_of

Head = tuple[int, float, int]  # -priority, run_at, insertion number: the smallest goes first
Entry = tuple[int, float, Head, Lane]  # -priority, mark of the key, first head: the smallest lane goes first

MAX_CLAIM_WAIT = 1.0  # seconds, at most, that a claim waits for its turn at a store
RATE_TOLERANCE = 0.01  # of an interval: rounding errors of floats must not delay the last task of a burst


class _Lookup(dict[str, Any]):
    """Values by bucket; each is read when it is first needed."""

    def __init__(self, read: Callable[[str], Any]) -> None:
        self._read = read

    def __missing__(self, bucket: str) -> Any:
        value = self[bucket] = self._read(bucket)
        return value


class Gate:
    """The state of a limit during one claim: for each bucket, how many tasks run and when the next may start.

    The rate follows the generic cell rate algorithm (ITU-T I.371), a token bucket in a single number: `next_at` is when
    the bucket is full again (0: it is full). A task may start while that is at most `burst - 1` intervals away.
    `running` and `next_at` are called only for buckets of lanes that take part.
    """

    def __init__(self, limit: Limit, running: Callable[[str], int], next_at: Callable[[str], float]) -> None:
        self.limit = limit
        self.running = _Lookup(running)
        self.next_at = _Lookup(next_at)
        self.used: dict[str, float] = {}  # buckets from which a task has started -> when they are full again

    def opens_at(self, bucket: str) -> float:
        """Return when the rate allows one more task to start; 0 for always."""
        if not self.limit.rate:
            return 0.0
        return float(self.next_at[bucket] - self.limit.ahead)

    def closed_until(self, bucket: str) -> float:
        """Return until when the bucket is closed: infinity where no time opens it."""
        limit = self.limit
        if limit.paused or (limit.max_running and self.running[bucket] >= limit.max_running):
            return inf
        return max(0.0, self.opens_at(bucket) - RATE_TOLERANCE / limit.rate) if limit.rate else 0.0

    def enter(self, bucket: str, now: float) -> None:
        """Count a task that starts."""
        self.running[bucket] += 1
        if self.limit.rate:
            self.next_at[bucket] = self.used[bucket] = max(self.next_at[bucket], now) + 1 / self.limit.rate


class Share:
    """How much each limit key was served: start-time fair queueing (Goyal, Vin, Cheng 1996).

    Each key has a mark that grows by one with each task served; the lowest mark goes first. `now` is the mark of the
    key served last. A key that comes back after a while starts from there, so it cannot save up turns. As every mark
    starts at `now` and grows by one, there are only two: `now`, and `now + 1` for the keys that are `ahead`.
    """

    def __init__(self, now: float = 0.0, ahead: Iterable[str] = ()) -> None:
        self.now = now
        self.ahead = dict.fromkeys(ahead)  # in the order in which they were served

    def mark(self, key: str) -> float:
        """Return the mark of a key."""
        return self.now + (key in self.ahead)

    def serve(self, key: str) -> None:
        """Count one task served."""
        if key in self.ahead:  # every other key was served or has no task: a new round begins
            self.now += 1
            self.ahead = {}
        self.ahead[key] = None


class Picked(NamedTuple):
    """What a claim takes, the keys that it served, and the lanes that their own limits close."""

    heads: list[tuple[Lane, Head]]  # best first
    served: dict[str, float]  # key -> its new mark
    closed: dict[Lane, float]  # lane -> until when


class _Kind:
    """The lanes of one kind during one claim; each is read when it is needed."""

    def __init__(self, kind: Kind, lanes: Iterator[Entry], gates: Iterable[Gate]) -> None:
        gates = [gate for gate in gates if gate.limit.queue in (None, kind[0]) and gate.limit.type in (None, kind[1])]
        self.shared = [gate for gate in gates if gate.limit.holds_all_of(kind)]
        self.gates = [gate for gate in gates if gate not in self.shared]
        self.lanes = lanes
        self.last: _Contender | None = None  # the lane that was read last

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
        """Count this task of the lane in its gates. Return False, and count nothing, where one is closed."""
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
    """Return the time at which a task starts, for the rate.

    The task's due time may be a moment after `now`: the claim waited for its turn while the task was added. A larger
    difference means that a clock was set back.
    """
    return run_at if now < run_at <= now + MAX_CLAIM_WAIT else now


def pick(
    kinds: Mapping[Kind, Iterator[Entry]],
    n: int,
    now: float,
    gates: Iterable[Gate],
    share: Share,
    behind: Callable[[Lane], Iterator[Head]],
) -> Picked:
    """Return the up to n tasks that go next, best first.

    `kinds` has the lanes of each kind, best first; `behind` returns the heads of a lane after its first. Gates and
    share are updated. Of each kind, one lane more is read than is served.
    """
    return _Picking(n, now, share, behind).run(kinds, list(gates))


def closed_until(lane: Lane, gates: Iterable[Gate]) -> float:
    """Return until when this lane is closed by limits that do not apply to its whole kind."""
    own = (gate for gate in gates if gate.limit.covers(lane) and not gate.limit.holds_all_of(kind_of(lane)))
    return max((gate.closed_until(gate.limit.bucket(lane)) for gate in own), default=0.0)


class _Picking:
    """The state of one claim."""

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
        open_kinds = [_Kind(kind, lanes, gates) for kind, lanes in kinds.items()]
        open_kinds = [kind for kind in open_kinds if kind.closed_until() <= self.now]
        for kind in open_kinds:
            self.read(kind)
        for kind in open_kinds:
            if len({item[3].lane[2] for item in self.order}) < 2:  # is there a second key? A kind has each key once
                self.read(kind)
        is_shared = len({item[3].lane[2] for item in self.order}) > 1
        while self.order and len(self.picked.heads) < self.n:
            self.serve_next(is_shared)
        return self.picked

    def read(self, kind: _Kind) -> None:
        """Enter the next lane of this kind that is open."""
        for priority, mark, head, lane in kind.lanes:
            contender = _Contender(lane, kind)
            if (until := contender.closed_until()) <= self.now:
                kind.last = contender
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
        if self.marks.get(key, mark) > mark:  # another lane of this key was served since
            heappush(self.order, (priority, self.marks[key], head, contender))
            return
        if contender.start(head, self.now):
            if is_shared:
                self.share.serve(key)
                self.picked.served[key] = self.share.mark(key)
            self.marks[key] = self.share.mark(key)
            self.picked.heads.append((contender.lane, head))
            if len(self.picked.heads) < self.n:
                self.enter_next(contender)

    def serve_alone(self, head: Head, contender: _Contender) -> None:
        """Take what is left to take from the only lane, which has no limits: there is nothing to compare."""
        heads = chain([head], self.heads_behind(contender))
        self.picked.heads.extend((contender.lane, head) for head in islice(heads, self.n - len(self.picked.heads)))

    def heads_behind(self, contender: _Contender) -> Iterator[Head]:
        if contender.behind is None:
            contender.behind = self.behind(contender.lane)
        return contender.behind

    def enter_next(self, contender: _Contender) -> None:
        """Enter the next task of a lane that was served."""
        if (head := next(self.heads_behind(contender), None)) is not None:
            heappush(self.order, (head[0], self.marks[contender.lane[2]], head, contender))
