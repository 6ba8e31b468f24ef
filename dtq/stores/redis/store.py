"""RedisStore: tasks on a Redis or Valkey server, for any number of processes on any number of machines.

    RedisStore   the protocol of dtq.stores, one method a script       (this file)
      Link       the server: clients, retries, its clock               (link.py)
        Lines    its connections                                       (lines.py)
      Ear        who listens for changes                               (ear.py)
      records    between tasks and what scripts take and give
      lua/       the scripts; lib.lua opens with the keys

- What is acknowledged is as safe as the server keeps it: `dtq doctor URL` says what that is.
- A node lives while it sends heartbeats: its tasks are taken over when their lease has run out. Heartbeats are always
  written, since nothing else tells.
- `clock` is the server's, so the clocks of the machines need not agree: a TaskQueue on this store goes by it.
- Scripts are kept short: large calls are cut into several. So a call of more than CHUNK tasks may have stored a part
  of them when the server goes away in the middle (adding them again does no harm), unless they depend on each other:
  then they are one step. Of a parent with thousands of children, some hundred are unblocked with its outcome, and the
  others right behind it, by whoever comes next.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import msgspec
from msgspec.structs import replace

from dtq.errors import InvalidTask, StoreError
from dtq.policy.limits import Limit
from dtq.stores.protocol import Node, Outcome, Stats, count_up
from dtq.stores.redis.client import PipelinedCalls, RedisClient
from dtq.stores.redis.records import brief_tasks_of, due_time, heard_text, new_record, outcome_record, tasks_of
from dtq.stores.redis.retries import RetryTokens
from dtq.stores.redis.subscriber import Subscriber
from dtq.stores.shared.readable import readable
from dtq.sync.forks import Forkable
from dtq.sync.wakeup import Wakeup
from dtq.task.codec import to_json
from dtq.task.model import TERMINAL, Task

CHUNK = 128  # tasks in one script
HURRY = 0.25  # seconds for which a call of the loop tries to reach the server: workers must not wait for it
STRETCH = 1000  # ids that one script of `find` looks at
PURGE = 200  # tasks that one script looks at, and removes
REPLY_KEPT = 60  # seconds for which a claim is remembered, for who has missed the reply
Claimed = tuple[list[Task], list[bytes]]  # and the times at which there may be more
_reply = msgspec.msgpack.Decoder().decode
_node = msgspec.json.Decoder(Node).decode
_limit = msgspec.json.Decoder(Limit).decode


class RedisStore(Forkable):
    """Keeps the protocol of dtq.stores on the server at `url`, or that of a `client` of redis-py (from Sentinel, say),
    which stays the caller's.

    `namespace` is which queue on this server; all its keys begin with "dtq:{namespace}:". `timeout`: seconds for which
    a call tries to reach the server before it raises StoreError (a call of the loop gives up sooner, and is made
    again). `cluster`: the URL is that of a node of a Redis Cluster, in which the namespace lives in one slot.
    `replicas`: so many replicas must have what is added, and what has ended, before it is acknowledged (WAIT): then it
    is not lost when one of them takes over. Where they have not within a second, StoreError.
    """

    def __init__(
        self,
        url: str = "redis://localhost:6379/0",
        *,
        namespace: str = "default",
        timeout: float = 5.0,
        cluster: bool = False,
        replicas: int = 0,
        client: Any = None,
    ) -> None:
        if not namespace or not namespace.isprintable() or set(namespace) & set("{}"):
            raise StoreError(f"namespace is {namespace!r}; allowed: printable text without braces")
        if not 0 < timeout <= 3600:
            raise StoreError(f"timeout is {timeout!r}; allowed: up to 3,600 seconds, more than 0")
        if not 0 <= replicas <= 100 or (replicas and cluster):
            raise StoreError(f"replicas is {replicas!r}; allowed: 0 to 100, and 0 on a cluster")
        self.link = RedisClient(url, client, namespace, timeout, cluster, replicas)
        self._id = os.urandom(8).hex()
        self._bell = Wakeup()
        self._ear: Subscriber | None = None
        self._nodes: dict[str, Node] = {}
        self._doubts = RetryTokens()
        self._foreseen: dict[float, float | None] = {}  # what next_due gives, while nothing has changed here
        self._closed = False
        self.follow_forks()

    @property
    def ahead(self) -> float:
        """Seconds by which the server's clock is ahead of this machine's, as last measured."""
        return self.link.ahead

    def clock(self) -> float:
        """The server's time, UTC seconds: what all nodes go by."""
        return time.time() + self.link.ahead

    def facts(self) -> dict[str, Any]:
        """What the server tells of itself (dtq.cli.checks says what it means)."""
        return self.link.facts()

    # --- add

    def add(self, tasks: Sequence[Task]) -> list[str]:
        parts = _parts(tasks, any(task.after for task in tasks))
        errand = PipelinedCalls("add", parts, lambda part: [[new_record(task) for task in part], self._id], self._added)
        told = zip(parts, self.link.calls(errand), strict=True)
        return [id for part, reply in told for id in _ids(reply) or (task.id for task in part)]

    def _added(self, reply: bytes) -> Any:
        """A part is there: the workers here can begin with it."""
        self._changed()
        return _reply(reply)

    # --- claim

    def claim(
        self, worker: str, n: int, lease: float, now: float, types: Collection[str], queues: Collection[str] = (),
        min_priority: int | None = None,
    ) -> list[Task]:  # fmt: skip
        if n <= 0:
            return []
        types, queues = sorted(types), sorted(queues)
        lowest = f"{1000 - (-1000 if min_priority is None else min_priority):04d}"
        kind = f"{hash((*types, None, *queues, min_priority)) & 0xFFFFFFFF:08x}"
        ask = partial(self._claim, worker, kind, [repr(now), repr(now + lease), types, queues, lowest])
        first, *others = [min(CHUNK, n - at) for at in range(0, n, CHUNK)]
        while self._doubts.has((worker, kind, 1 + len(others))):
            others.append(0)  # it is for what it gave when its answer was lost, and for no more
        answers = ask([first])
        if others and (len(answers[0][0]) >= first or self._doubts.has((worker, kind, 1))):
            with suppress(StoreError):  # they are in doubt now; what is here already must not be lost with them
                answers += ask(others, 1)
        tasks = [task for found, _ in answers for task in found]
        if len(tasks) < n:
            self._foresee(now, answers[-1][1])
        return tasks

    def _claim(self, worker: str, kind: str, how: list[Any], sizes: list[int], start: int = 0) -> list[Claimed]:
        """Several claims of so many tasks, of which the first has this number: each has a doubt of its own."""
        names = [(worker, kind, number) for number in range(start, start + len(sizes))]
        with self._doubts.tokens_for([(name, None) for name in names]) as tokens:
            asked = [
                [worker, size, *how, f"{kind}{number}", token, REPLY_KEPT]
                for size, token, (_, _, number) in zip(sizes, tokens, names, strict=True)
            ]
            return self.link.calls(PipelinedCalls("claim", asked, read=_claimed), HURRY)

    def _foresee(self, now: float, times: list[bytes]) -> None:
        """What `next_due` will be asked for next, mostly. Whoever changes it from now on will ring, if we listen."""
        self._foreseen = {now: _first(times)} if self._ear else {}

    # --- update

    def update(self, outcomes: Sequence[Outcome]) -> set[str]:
        with self._doubts.tokens_for([((task.id, task.version), task) for task, _ in outcomes]) as tokens:
            sent = list(zip(outcomes, tokens, strict=True))
            whole = any(task.after for _, planted in outcomes for task in planted)
            parts = _parts(sent, whole)
            errand = PipelinedCalls("update", parts, self._update, _reply)
            replies = self.link.calls(errand, HURRY)
        self._foreseen = {}
        if any(left for _, left in replies):
            self._settle()
        accepted: set[str] = set()
        for part, reply in zip(parts, replies, strict=True):
            accepted |= {task.id for (task, _), _ in part}.difference(_ids(reply))
        return accepted

    def _update(self, part: Sequence[tuple[Outcome, str]]) -> list[Any]:
        """What update.lua is to do."""
        outcomes = [
            outcome_record(task, token, [new_record(new) for new in planted]) for (task, planted), token in part
        ]
        return [outcomes, self._id]

    def _settle(self) -> None:
        """Until the children of all ended parents know. Where it cannot go on, the next claim will."""
        with suppress(StoreError):
            while self.link.call("settle", [self._id], HURRY):
                pass

    # --- leases

    def heartbeat(self, node: Node, held: Sequence[Task], lease: float, now: float) -> set[str]:
        lost: set[str] = set()
        until = repr(now + lease)
        body = to_json(replace(node, seen_at=now)).decode()
        for part in _parts(held) or [()]:
            tasks = [[task.id, task.version, task.worker or "", heard_text(task)] for task in part]
            asked = time.time()
            reply = _reply(self.link.call("heartbeat", [node.id, body, until if lease else "", until, tasks], HURRY))
            self.link.set_clock(reply[1], asked)
            lost.update(reply[0])
        self._nodes[node.id] = node
        if not lease:
            del self._nodes[node.id]
        return lost

    def reap(self, worker: str, n: int, lease: float, now: float) -> list[Task]:
        tasks: list[Task] = []
        while True:
            wanted = min(CHUNK, n - len(tasks))
            found = tasks_of(self.link.call("reap", [worker, wanted, repr(now), repr(now + lease)], HURRY))
            tasks += found
            if len(found) < CHUNK:
                return tasks

    # --- look

    def get(self, ids: Iterable[str], *, brief: bool = False) -> list[Task]:
        read = brief_tasks_of if brief else tasks_of
        errand = PipelinedCalls("get", _parts(list(ids)), lambda part: [part, brief], read)
        return [task for tasks in self.link.calls(errand) for task in tasks]

    def find(
        self, *, status: str | None = None, queue: str | None = None, type: str | None = None,
        finished_after: float | None = None, after: str = "", limit: int = 100, brief: bool = False,
    ) -> list[Task]:  # fmt: skip
        ended_after = "" if finished_after is None else repr(finished_after)
        tasks: list[Task] = []
        for which in [status] if status else ["open", *sorted(TERMINAL)]:
            tasks += self._find([which, queue or "", type or "", ended_after], after, limit, brief)
        return sorted(tasks, key=lambda task: task.id)[:limit]

    def _find(self, filters: list[str], after: str, limit: int, brief: bool) -> list[Task]:
        read = brief_tasks_of if brief else tasks_of
        tasks: list[Task] = []
        while (wanted := min(CHUNK, limit - len(tasks))) > 0:
            last, found = self.link.call("find", [*filters, after, wanted, STRETCH, brief])
            tasks += read(found)
            if not last:
                break
            after = last.decode()
        return tasks

    def stats(self) -> Stats:
        counters, heads, later, nodes, limits = _reply(self.link.call("stats"))
        rows = readable(_counter, _pairs(counters), "a counter")
        times = [due_time(head) for head in heads] + ([float(later)] if later else [])
        oldest = min(times, default=None)
        return Stats(
            *count_up(rows), oldest, readable(_node, nodes, "a node"), readable(_limit, limits[1::2], "a limit")
        )

    def next_due(self, now: float) -> float | None:
        if now in self._foreseen:
            return self._foreseen[now]
        return _first(self.link.call("next_due", repr(now), HURRY))

    # --- lanes, removal, waking

    def set_lane(
        self, queue: str | None = None, type: str | None = None, key: str | None = None, **changes: Any
    ) -> None:
        nothing = Limit(queue, type, key)
        selector = to_json(nothing.selector).decode()
        while True:
            old = dict(_pairs(_reply(self.link.call("stats"))[4])).get(selector, "")  # as it stands there, to the byte
            known = next(iter(readable(_limit, [old], "a limit")), nothing) if old else nothing
            limit = _limit(to_json(known.with_changes(changes)))  # 3 becomes 3.0, as it will be read
            new = "" if limit.is_void else to_json(limit).decode()
            if self.link.call("limit", [selector, old, new, limit.rate != known.rate, self._id]):
                return self._changed()

    def delete(self, ids: Iterable[str]) -> int:
        n, left = 0, 0
        for part in _parts(list(dict.fromkeys(ids))):
            removed, left = self.link.call("delete", [part, self._id])
            n += removed
        if left:
            self._settle()
        self._changed()
        return n

    def purge(self, before: float, statuses: Collection[str]) -> int:
        wanted = sorted(set(map(str, statuses)) & set(map(str, TERMINAL)))
        while True:
            removed, looked_at = self.link.call("purge", [repr(before), wanted, PURGE], HURRY)
            if removed or looked_at < PURGE:
                return int(removed)

    def _changed(self) -> None:
        self._foreseen = {}
        self._bell.ring()

    def fileno(self) -> int:
        self._listen()
        return self._bell.fileno()

    def wait(self, timeout: float) -> bool:
        self._listen()
        return self._bell.wait(timeout)

    def _listen(self) -> None:
        if self._ear is None and not self._closed:
            self._ear = Subscriber(self.link, self._bell, self._id)

    def close(self) -> None:
        if self._closed:
            return
        for node in list(self._nodes.values()):
            with suppress(StoreError):  # the others will see that its lease runs out
                self.heartbeat(node, [], 0, node.seen_at)
        self.abandon()

    def in_child(self) -> None:
        """After a fork: the nodes, the thread that listens and the connections are the parent's (see Lines)."""
        self._nodes, self._foreseen, self._ear = {}, {}, None
        if not self._closed:
            self._bell.close()
            self._bell = Wakeup()

    def abandon(self) -> None:
        """Lets go of everything without a word to anybody, as a killed process would; for tests of crashes."""
        self._closed = True
        if self._ear is not None:
            self._ear.close()
        self._bell.close()
        self.link.close()


def _pairs(values: list[Any]) -> list[tuple[Any, Any]]:
    """Fields and values, which a hash gives by turns."""
    return list(zip(values[::2], values[1::2], strict=True))


def _counter(pair: tuple[str, str]) -> tuple[str, str, str, int]:
    queue, type, *_, status = pair[0].split("\x1f")
    return queue, type, status, int(pair[1])


def _parts(items: Sequence[Any], whole: bool = False) -> list[Sequence[Any]]:
    """The items in parts of CHUNK, or all at once."""
    size = max(len(items), 1) if whole else CHUNK
    return [items[i : i + size] for i in range(0, len(items), size)]


def _claimed(reply: list[Any]) -> Claimed:
    records, times = reply
    return tasks_of(records), times


def _first(times: list[bytes]) -> float | None:
    return min(map(float, times), default=None)


def _ids(reply: list[Any]) -> list[str]:
    """Those that add, or update, tells. Raises InvalidTask where it tells of an unknown parent."""
    if reply[0] is False:
        raise InvalidTask(f"after is {reply[1]!r}; allowed: the id of a task that is stored, or added by the same call")
    ids: list[str] = reply[0] or []
    return ids
