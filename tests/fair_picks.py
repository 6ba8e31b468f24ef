"""The plain rule of which tasks go next, applied to all lanes at once. It is the reference for
`dtq.policy.picking.pick`, which reads only as many lanes as it needs."""

from __future__ import annotations

from heapq import heapify, heappop, heappush

from dtq.policy.limits import Limit
from dtq.policy.picking import counts_from
from dtq.stores.memory.store import MemoryStore
from dtq.task.model import Status

RATE_TOLERANCE = 0.01


class PlainGate:
    def __init__(self, limit: Limit, running, next_at):
        self.limit = limit
        self.next_at = dict(next_at)
        self.running = {}
        for lane, n in running.items():
            if limit.covers(lane):
                bucket = limit.bucket(lane)
                self.running[bucket] = self.running.get(bucket, 0) + n

    def is_open(self, bucket, now):
        limit = self.limit
        if limit.paused or (limit.max_running and self.running.get(bucket, 0) >= limit.max_running):
            return False
        if not limit.rate:
            return True
        return max(0.0, self.next_at.get(bucket, 0.0) - limit.ahead - RATE_TOLERANCE / limit.rate) <= now

    def enter(self, bucket, now):
        self.running[bucket] = self.running.get(bucket, 0) + 1
        if self.limit.rate:
            self.next_at[bucket] = max(self.next_at.get(bucket, 0.0), now) + 1 / self.limit.rate


class PlainShare:
    def __init__(self):
        self.marks = {}
        self.now = 0.0

    def mark(self, key):
        return max(self.marks.get(key, 0.0), self.now)

    def serve(self, key):
        self.now = self.mark(key)
        self.marks[key] = self.now + 1


class PlainStore(MemoryStore):
    """Looks at every task for each claim."""

    def __init__(self):
        super().__init__()
        self.plain_share = PlainShare()
        self.plain_next_at = {}

    def _set_limit(self, limit):
        if limit.rate != self._limit(limit.selector).rate or limit.is_void:
            self.plain_next_at.pop(limit.selector, None)
        super()._set_limit(limit)

    def claim(self, worker, n, lease, now, types, queues=(), min_priority=None):
        self.wanted = types, queues
        return super().claim(worker, n, lease, now, types, queues, min_priority)

    def _pick(self, kinds, n, now, min_priority):
        types, queues = self.wanted
        lanes, running = {}, {}
        for task in self._tasks.values():
            if task.status == Status.PROCESSING:
                running[task.lane] = running.get(task.lane, 0) + 1
        for lane, ready in self._ready_queue._ready.items():
            heads = sorted({head for head in ready if self._ready_queue._is_ready(head)})
            heads = [head for head in heads if min_priority is None or -head[0] >= min_priority]
            if heads and lane[1] in types and (not queues or lane[0] in queues):
                lanes[lane] = heads
        gates = [
            PlainGate(limit, running, self.plain_next_at.get(selector, {})) for selector, limit in self._limits.items()
        ]
        picked = plain_pick(lanes, n, now, gates, self.plain_share)
        for gate in gates:
            self.plain_next_at[gate.limit.selector] = {b: at for b, at in gate.next_at.items() if at > now}
        return [self._tasks[self._id[head[2]]] for head in picked]


def plain_pick(lanes, n, now, gates, share):
    def gates_of(lane):
        return [(gate, gate.limit.bucket(lane)) for gate in gates if gate.limit.covers(lane)]

    def is_open(lane, at):
        return all(gate.is_open(bucket, at) for gate, bucket in gates_of(lane))

    rivals = {}
    for lane, heads in lanes.items():
        if is_open(lane, now):
            rivals.setdefault(lane[2], []).append((heads[0], lane, iter(heads[1:])))
    for group in rivals.values():
        heapify(group)
    order = [(group[0][0][0], share.mark(key), group[0][0], key) for key, group in rivals.items()]
    heapify(order)
    picked = []
    while order and len(picked) < n:
        _, mark, _, key = heappop(order)
        group = rivals[key]
        head, lane, behind = heappop(group)
        at = counts_from(head[1], now)
        if is_open(lane, at):
            for gate, bucket in gates_of(lane):
                gate.enter(bucket, at)
            if len(rivals) > 1:
                share.serve(key)
            picked.append(head)
            mark = share.mark(key)
            if following := next(behind, None):
                heappush(group, (following, lane, behind))
        if group:
            heappush(order, (group[0][0][0], mark, group[0][0], key))
    return picked
