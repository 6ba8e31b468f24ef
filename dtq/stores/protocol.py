"""Protocol: the rules that every store keeps.

A store is mechanism only: it claims atomically, compares and sets, counts, and wakes waiting nodes. The pure
transitions of dtq.task.transitions decide what happens to a task; a store ends no task by itself. MemoryStore is the
executable specification, and dtq.testing.conformance checks every store against the rules below.

        add           claim               update (the status comes from the transition)
    -----------> waiting -----> processing --------------------------------------------> terminal, or waiting again
                                 |      ^
                                 +-reap-+  the lease has expired, or the node is dead: a new worker holds the task
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import msgspec

from dtq.policy.limits import Limit
from dtq.task.model import Status, Task

Counts = dict[str, int]  # status -> how many
Outcome = tuple[Task, Sequence[Task]]  # a task after its transition, and the successors to add with it


class Node(msgspec.Struct, frozen=True, omit_defaults=True):
    """A process that runs tasks, as it describes itself in each heartbeat. Times are UTC seconds."""

    id: str
    host: str = ""
    pid: int = 0
    started_at: float = 0.0
    seen_at: float = 0.0
    workers: int = 0
    busy: int = 0
    types: tuple[str, ...] = ()
    metrics: dict[str, Any] = {}


class Workers(msgspec.Struct, frozen=True):
    """The number of workers on all nodes, and how many of them are running a task."""

    total: int
    active: int

    @property
    def idle(self) -> int:
        """The number of workers that run no task."""
        return self.total - self.active


class Stats(msgspec.Struct, frozen=True):
    """The contents of a store, counted by each transition as it happens.

    `counts` is by status; `queues` and `types` hold the same for each queue and each type. `oldest` is the due time of
    the task that has waited longest, in UTC seconds. `nodes` and `limits` are those in the store.
    """

    counts: Counts
    queues: dict[str, Counts]
    types: dict[str, Counts]
    oldest: float | None
    nodes: list[Node]
    limits: list[Limit]

    @property
    def total(self) -> int:
        """The number of tasks in the store."""
        return sum(self.counts.values())

    @property
    def running(self) -> int:
        """The number of tasks that are `processing`."""
        return self.counts[Status.PROCESSING]

    @property
    def unfinished(self) -> int:
        """The number of tasks that are not terminal."""
        return sum(self.counts[s] for s in ("blocked", "pending", "processing", "retrying"))

    @property
    def workers(self) -> Workers:
        """The workers of all nodes."""
        return Workers(sum(n.workers for n in self.nodes), sum(n.busy for n in self.nodes))


class ClaimRequest(NamedTuple):
    """The arguments of one `claim`."""

    worker: str
    n: int
    lease: float
    now: float
    types: Collection[str]
    queues: Collection[str] = ()
    min_priority: int | None = None


Exchanged = tuple[set[str], list[Task]]  # what `update` returns, and what `claim` returns


@runtime_checkable
class Store(Protocol):
    """What every store does. Any thread may call any method. `now` and all times are UTC seconds, `lease` is seconds.
    A store may also be an ExchangingStore.

    A method does all of its work or, if it raises, none of it. Each raises StoreError if the store cannot be read or
    written. What a method has returned survives `kill -9` (see each store for power loss).
    """

    def add(self, tasks: Sequence[Task]) -> list[str]:
        """Store these new `tasks`, in order. Return for each the id of the task that stands for it.

        - A task whose `id` or `key` is taken is not stored: the id of the task that has it is returned instead.
        - A new task has version 1, or one above the highest version of any deleted task: no version of an id recurs.
        - It is `pending`, or `blocked` while a task named in `after` is not terminal.
        - `after` names tasks that are stored, or added by the same call; any other id raises InvalidTask, and nothing
          is stored. The parents of a task that is not stored, because its id or key is taken, are not checked.
        - A parent that has already failed or was cancelled dooms the task, unless `on_parent_failure` is "run".
        - Everything is durable before this returns.
        """

    def claim(
        self,
        worker: str,
        n: int,
        lease: float,
        now: float,
        types: Collection[str],
        queues: Collection[str] = (),
        min_priority: int | None = None,
    ) -> list[Task]:
        """Take up to n waiting tasks for `worker` alone. Return them, best first.

        - Only tasks of these `types` and of these `queues` (any queue if it is empty), with at least `min_priority`.
        - Only due tasks: `run_at` <= now. Order: priority (higher first), then the limit key that was served least,
          then `run_at`, then insertion.
        - Only lanes whose limits are open; waiting for a limit costs no attempt. For a rate, a task counts from `now`,
          or from its `run_at` if that is up to a second later: the claim may have waited for a lock.
        - A claimed task is `processing`, with version + 1, attempts + 1, `worker`, `started_at` = now and
          `lease_until` = now + lease.
        - Doomed tasks come first, whatever their limits: waiting tasks whose `expires` has passed (doom "expired"), and
          children of a parent that failed or was cancelled. They are claimed without an attempt, to be ended.
        - The cost does not grow with the number of tasks or limit keys that wait, are scheduled for later, paused or
          throttled. Of lanes whose limits open at the same time, one claim opens a bounded number; `next_due` is in the
          past until all are open.
        """

    def update(self, outcomes: Sequence[Outcome]) -> set[str]:
        """Apply `outcomes`: replace each task whose stored version equals its own. Return the ids of those tasks.

        - The new version is version + 1, so an outcome is accepted once. A task with another version is not changed.
        - The fields in STATE are replaced; all others (type, queue, payload, ...) stay as they were added.
        - A terminal task that waits again waits for its parents as a new task does: `blocked` while one of them is not
          terminal, doomed by one that failed. Deleted parents no longer count.
        - The successors of an accepted task are added as by `add`; those of a refused task are not.
        - A successor with the same `key` as its own task takes the key over: that task has no key afterwards.
        - A `blocked` task becomes `pending` when its last parent is terminal. A parent that failed or was cancelled
          dooms it at once, unless `on_parent_failure` is "run".
        - Everything is durable before this returns.
        """

    def heartbeat(self, node: Node, held: Sequence[Task], lease: float, now: float) -> set[str]:
        """Report that `node` lives and holds the tasks `held`, as they were claimed. Return the ids that it has lost.

        - If version and worker still match, the lease is extended to `now` + `lease`, and progress and note are stored;
          the version stays.
        - The other tasks were cancelled, reaped or deleted: the node must stop their attempts.
        - A node sends a heartbeat before its first claim, and a last one, with a lease of 0, to leave.
        - If the node holds nothing and has not changed, nothing is written.
        """

    def reap(self, worker: str, n: int, lease: float, now: float) -> list[Task]:
        """Take over, for `worker`, up to n `processing` tasks whose lease has expired at `now` or whose node is dead.

        Return them with version + 1, the new worker and a new lease, and the same number of attempts. A worker does not
        take its own tasks before their leases end. A dead node is removed once it holds no more tasks.
        """

    def get(self, ids: Iterable[str], *, brief: bool = False) -> list[Task]:
        """Return the tasks with these ids, in this order, without unknown ids.

        With `brief`, tasks come without payload, result, history, log and traceback (see `brief_of`).
        """

    def find(
        self,
        *,
        status: str | None = None,
        queue: str | None = None,
        type: str | None = None,
        finished_after: float | None = None,
        after: str = "",
        limit: int = 100,
        brief: bool = False,
    ) -> list[Task]:
        """Return up to `limit` tasks in the order of their ids, starting after the id `after`: pages stay stable while
        tasks come and go. With `brief`, as in `get`, many large tasks take little memory.

        `status`, `queue` and `type` select the tasks with exactly this value, `finished_after` those that finished
        later than this time; None selects all.
        """

    def stats(self) -> Stats:
        """Return counters by queue, type and status, the oldest waiting task, nodes and limits.

        The cost does not grow with tasks or limit keys, except keys with waiting tasks of several priorities.
        """

    def set_lane(
        self,
        queue: str | None = None,
        type: str | None = None,
        key: str | None = None,
        *,
        paused: bool | None = None,
        rate: float | None = None,
        burst: int | None = None,
        max_running: int | None = None,
    ) -> None:
        """Change the limit of the lanes of this `queue`, `type` and limit `key`, where None means every one.

        `paused`, `rate`, `burst` and `max_running` are the settings (see Limit). None keeps a setting, 0 removes it.
        """

    def next_due(self, now: float) -> float | None:
        """Return the time at which `claim` may find more than now: a task becomes due or expires, or a rate opens.

        None if no such time is known. It may be too early, and in the past if `claim` has not moved all due tasks yet.
        """

    def delete(self, ids: Iterable[str]) -> int:
        """Remove the tasks with these `ids`, except those that are `processing`. Return how many were removed.

        The store keeps their highest version (see `add`); so does `purge`. A waiting child is treated as if the parent
        was cancelled. A running child keeps its version, and is doomed when it waits again.
        """

    def purge(self, before: float, statuses: Collection[str]) -> int:
        """Remove tasks of these terminal statuses that finished before this time, at most a few thousand a call.

        Return how many were removed; 0 means that nothing is left to remove. A task that an unfinished task names in
        `after` is kept.
        """

    def fileno(self) -> int:
        """Return a descriptor that becomes readable when something changed. It is a hint, and may be wrong."""

    def wait(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds for that hint, and clear it. Return True if it came. 0 does not wait."""

    def close(self) -> None:
        """Remove the nodes that used this store object, and release all resources. Closing twice is harmless."""


@runtime_checkable
class ExchangingStore(Store, Protocol):
    """A store that does an update and a claim in one step. It saves a loop with many small turns a transaction, or a
    round trip to a server."""

    def exchange(self, outcomes: Sequence[Outcome], claim: ClaimRequest) -> Exchanged:
        """Do `update(outcomes)` and then `claim(*claim)`. Return what both return.

        - The claim finds the tasks that the update has unblocked, added or put back, and the room that it has made
          under limits.
        - Everything is durable before this returns.
        """


def clock_of(store: Store) -> Callable[[], float]:
    """Return the clock that all nodes of a store use: the server's if the store has one, else this machine's."""
    clock: Callable[[], float] = getattr(store, "clock", time.time)
    return clock


def sum_counts(rows: Iterable[tuple[str, str, str, int]]) -> tuple[Counts, dict[str, Counts], dict[str, Counts]]:
    """Sum up rows of (queue, type, status, count). Return the counts by status: of all tasks, by queue, and by type."""
    counts = dict.fromkeys(map(str, Status), 0)
    queues: dict[str, Counts] = {}
    types: dict[str, Counts] = {}
    for queue, type, status, n in rows:
        for table in (counts, queues.setdefault(queue, {}), types.setdefault(type, {})):
            table[status] = table.get(status, 0) + n
    return counts, queues, types


def doom_from(parent_id: str, status: str, strict: bool) -> str | None:
    """Return why the child of this terminal parent must not run; None if it may. A child that is not `strict` may
    always run."""
    return f"its parent {parent_id} is {status}" if strict and status != Status.COMPLETED else None


def parents_of(task: Task, stands_for: Mapping[str, str]) -> tuple[str, ...]:
    """Return the ids of the tasks that this one waits for.

    `stands_for` maps each id of the same call to the id that stands for it: if a parent was not stored because its key
    was taken, the task waits for the task that has the key. No task waits for itself.
    """
    parents = (stands_for.get(parent, parent) for parent in task.after)
    return tuple(parent for parent in parents if parent != task.id)
