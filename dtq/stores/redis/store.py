"""RedisStore: tasks on a Redis or Valkey server, for any number of processes on any number of machines.

    RedisStore        the protocol of dtq.stores, one script for each method    (this file)
      Claim           a claim of many tasks as several calls                    (claims.py)
      RedisClient     the server: scripts, retries, its clock                   (client.py)
        Connections   its connections                                           (connections.py)
      Subscriber      wakes waiting threads when another process changes something
      records         convert tasks to what scripts take, and back
      lua/            the scripts; lib.lua begins with a list of the keys

- What is acknowledged is as safe as the server keeps it; `dtq doctor URL` reports how safe that is.
- A node is alive while it sends heartbeats: its tasks are taken over once their lease has ended. So each heartbeat is
  written, also where nothing has changed.
- `clock` is that of the server, and a TaskQueue on this store uses it: the clocks of the machines need not agree.
- Scripts are short: a large call becomes several. If the server goes away in the middle of a call of more than
  TASKS_PER_SCRIPT tasks, a part of them may be stored (adding them again does no harm). Tasks that depend on each other
  are one script, whatever their number.
- Of a parent with thousands of children, some hundred are unblocked with its outcome. The others follow at once, by
  calls of settle.lua or by the next claim of any node.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from msgspec.structs import replace

from dtq.errors import StoreError
from dtq.policy.limits import Limit
from dtq.stores.protocol import ClaimRequest, Exchanged, Node, Outcome, Stats
from dtq.stores.redis.claims import LOOP_TIMEOUT, Claim
from dtq.stores.redis.client import TASKS_PER_SCRIPT, PipelinedCalls, RedisClient, in_parts
from dtq.stores.redis.records import (
    brief_tasks_of,
    ids_of,
    new_record,
    pairs_of,
    progress_text,
    read_limit,
    stats_of,
    tasks_of,
)
from dtq.stores.redis.retry_tokens import RetryTokens
from dtq.stores.redis.subscriber import Subscriber
from dtq.stores.redis.updates import Update, adds_children, reply_of
from dtq.stores.shared.decoding import decode_or_skip
from dtq.sync.forks import Forkable
from dtq.sync.waits import Wakeup
from dtq.task.codec import to_json
from dtq.task.model import TERMINAL, Task

IDS_PER_FIND = 1000  # ids that one call of find.lua looks at
TASKS_PER_PURGE = 200  # tasks that one call of purge.lua looks at


class RedisStore(Forkable):
    """A store on a Redis or Valkey server, by the protocol of dtq.stores.

    Args:
        url: where the server is.
        namespace: which queue on this server; all its keys begin with "dtq:{namespace}:".
        timeout: seconds for which a call tries to reach the server. Calls of the loop give up sooner and are repeated.
        cluster: whether the URL is that of a node of a Redis Cluster; the namespace is in one slot.
        replicas: how many replicas must have a write of `add` or `update` before it is acknowledged (WAIT), so that it
            is not lost when one of them takes over. StoreError where they do not within a second.
        client: a redis-py client to use instead of `url`, for example from Sentinel; the caller closes it.

    Raises:
        StoreError: an argument is out of range, or the server cannot be reached.
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
        self.client = RedisClient(url, client, namespace, timeout, cluster, replicas)
        self._id = os.urandom(8).hex()
        self._wakeup = Wakeup()
        self._subscriber: Subscriber | None = None
        self._nodes: dict[str, Node] = {}
        self._tokens = RetryTokens()
        self._due: dict[float, float | None] = {}  # now -> what next_due returns, while nothing has changed
        self._closed = False
        self.follow_forks()

    @property
    def ahead(self) -> float:
        """Seconds by which the server's clock is ahead of this machine's, as last measured."""
        return self.client.ahead

    def clock(self) -> float:
        """Return the server's time (UTC seconds), which all nodes use."""
        return time.time() + self.client.ahead

    def facts(self) -> dict[str, Any]:
        """Return facts about the server, which dtq.cli.checks judges."""
        return self.client.facts()

    # --- add

    def add(self, tasks: Sequence[Task]) -> list[str]:
        parts = in_parts(tasks, any(task.after for task in tasks))
        calls = PipelinedCalls("add", parts, lambda part: [[new_record(task) for task in part], self._id], self._added)
        replies = zip(parts, self.client.call_all(calls), strict=True)
        return [id for part, reply in replies for id in ids_of(reply) or (task.id for task in part)]

    def _added(self, reply: bytes) -> Any:
        """Wake the workers of this process for the part that is stored, and return the reply."""
        self._changed()
        return reply_of(reply)

    # --- claim

    def claim(
        self, worker: str, n: int, lease: float, now: float, types: Collection[str], queues: Collection[str] = (),
        min_priority: int | None = None,
    ) -> list[Task]:  # fmt: skip
        if n <= 0:
            return []
        request = ClaimRequest(worker, n, lease, now, types, queues, min_priority)
        return self._claimed(request, *Claim(self.client, self._tokens, request).run())

    def _claimed(self, request: ClaimRequest, tasks: list[Task], times: list[bytes]) -> list[Task]:
        if len(tasks) < request.n:
            self._remember_due(request.now, times)
        return tasks

    def _remember_due(self, now: float, times: list[bytes]) -> None:
        """Keep the answer to the `next_due` that usually follows. Every later change wakes a subscriber, so this is
        only right where there is one."""
        self._due = {now: _first(times)} if self._subscriber else {}

    # --- update

    def update(self, outcomes: Sequence[Outcome]) -> set[str]:
        with self._update(outcomes) as update:
            self.client.call_all(update.calls, LOOP_TIMEOUT)
        return self._accepted(update)

    def exchange(self, outcomes: Sequence[Outcome], claim: ClaimRequest) -> Exchanged:
        if claim.n <= 0 or adds_children(outcomes):  # the update may be refused: nothing must be claimed then
            return self.update(outcomes), self.claim(*claim)
        with self._update(outcomes) as update:
            claimed = Claim(self.client, self._tokens, claim).run(before=update.calls)
        exchanged = self._accepted(update), self._claimed(claim, *claimed)
        if update.has_children_left:
            self._changed()  # they were unblocked after the claim
        return exchanged

    @contextmanager
    def _update(self, outcomes: Sequence[Outcome]) -> Iterator[Update]:
        """Yield the update, whose calls the body makes."""
        with self._tokens.tokens_for([((task.id, task.version), task) for task, _ in outcomes]) as tokens:
            yield Update(outcomes, tokens, self._id)

    def _accepted(self, update: Update) -> set[str]:
        self._due = {}
        if update.has_children_left:
            self._unblock_children()
        return update.accepted()

    def _unblock_children(self) -> None:
        """Unblock or doom the children that are left of ended parents. Where that fails, the next claim continues."""
        with suppress(StoreError):
            while self.client.call("settle", [self._id], LOOP_TIMEOUT):
                pass

    # --- leases

    def heartbeat(self, node: Node, held: Sequence[Task], lease: float, now: float) -> set[str]:
        lost: set[str] = set()
        until = repr(now + lease)
        body = to_json(replace(node, seen_at=now)).decode()
        for part in in_parts(held) or [()]:
            tasks = [[task.id, task.version, task.worker or "", progress_text(task)] for task in part]
            sent_at = time.time()
            reply = reply_of(
                self.client.call("heartbeat", [node.id, body, until if lease else "", until, tasks], LOOP_TIMEOUT)
            )
            self.client.set_clock(reply[1], sent_at)
            lost.update(reply[0])
        self._nodes[node.id] = node
        if not lease:
            del self._nodes[node.id]
        return lost

    def reap(self, worker: str, n: int, lease: float, now: float) -> list[Task]:
        tasks: list[Task] = []
        while True:
            wanted = min(TASKS_PER_SCRIPT, n - len(tasks))
            found = tasks_of(self.client.call("reap", [worker, wanted, repr(now), repr(now + lease)], LOOP_TIMEOUT))
            tasks += found
            if len(found) < TASKS_PER_SCRIPT:
                return tasks

    # --- look

    def get(self, ids: Iterable[str], *, brief: bool = False) -> list[Task]:
        read = brief_tasks_of if brief else tasks_of
        calls = PipelinedCalls("get", in_parts(list(ids)), lambda part: [part, brief], read)
        return [task for tasks in self.client.call_all(calls) for task in tasks]

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
        while (wanted := min(TASKS_PER_SCRIPT, limit - len(tasks))) > 0:
            last, found = self.client.call("find", [*filters, after, wanted, IDS_PER_FIND, brief])
            tasks += read(found)
            if not last:
                break
            after = last.decode()
        return tasks

    def stats(self) -> Stats:
        return stats_of(reply_of(self.client.call("stats")))

    def next_due(self, now: float) -> float | None:
        if now in self._due:
            return self._due[now]
        return _first(self.client.call("next_due", repr(now), LOOP_TIMEOUT))

    # --- lanes, removal, waking

    def set_lane(
        self, queue: str | None = None, type: str | None = None, key: str | None = None, **changes: Any
    ) -> None:
        unlimited = Limit(queue, type, key)
        selector = to_json(unlimited.selector).decode()
        while True:
            old = dict(pairs_of(reply_of(self.client.call("stats"))[4])).get(selector, "")  # the stored bytes
            known = next(iter(decode_or_skip(read_limit, [old], "a limit")), unlimited) if old else unlimited
            limit = read_limit(to_json(known.with_changes(changes)))  # 3 becomes 3.0, as when it is read back
            new = "" if limit.is_void else to_json(limit).decode()
            if self.client.call("limit", [selector, old, new, limit.rate != known.rate, self._id]):
                return self._changed()

    def delete(self, ids: Iterable[str]) -> int:
        n, left = 0, 0
        for part in in_parts(list(dict.fromkeys(ids))):
            removed, left = self.client.call("delete", [part, self._id])
            n += removed
        if left:
            self._unblock_children()
        self._changed()
        return n

    def purge(self, before: float, statuses: Collection[str]) -> int:
        wanted = sorted(set(map(str, statuses)) & set(map(str, TERMINAL)))
        while True:
            removed, looked_at = self.client.call("purge", [repr(before), wanted, TASKS_PER_PURGE], LOOP_TIMEOUT)
            if removed or looked_at < TASKS_PER_PURGE:
                return int(removed)

    def _changed(self) -> None:
        self._due = {}
        self._wakeup.wake()

    def fileno(self) -> int:
        self._listen()
        return self._wakeup.fileno()

    def wait(self, timeout: float) -> bool:
        self._listen()
        return self._wakeup.wait(timeout)

    def _listen(self) -> None:
        if self._subscriber is None and not self._closed:
            self._subscriber = Subscriber(self.client, self._wakeup, self._id)

    def close(self) -> None:
        if self._closed:
            return
        for node in list(self._nodes.values()):
            with suppress(StoreError):  # other nodes will see its lease end
                self.heartbeat(node, [], 0, node.seen_at)
        self.abandon()

    def in_child(self) -> None:
        """Forget, after a fork, the parent's nodes and subscriber; Connections does so for its own."""
        self._nodes, self._due, self._subscriber = {}, {}, None
        if not self._closed:
            self._wakeup.close()
            self._wakeup = Wakeup()

    def abandon(self) -> None:
        """Close without telling other nodes, as if this process were killed; for tests of crashes."""
        self._closed = True
        if self._subscriber is not None:
            self._subscriber.close()
        self._wakeup.close()
        self.client.close()


def _first(times: list[bytes]) -> float | None:
    return min(map(float, times), default=None)
