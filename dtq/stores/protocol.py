"""Stores: where tasks live. The protocol that every store keeps, and `open_store`, which finds the store of a URL.

A store is mechanism only: it claims atomically, compares and sets, counts and wakes. What happens to a task is decided
by the pure transitions of dtq.task.model, and the store ends no task by itself. MemoryStore is the executable
specification, and dtq.testing.conformance holds the rules below as checks that every store has to pass.

        add           claim               update (status as the transition made it)
    -----------> waiting -----> processing -----------------------------------------> terminal, or waiting again
                     ^              |
                     +--- reap <----+  the lease has run out, or the node is dead
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import msgspec

from dtq.policy.limits import Limit
from dtq.task.model import Status, Task

Counts = dict[str, int]  # status -> how many
Outcome = tuple[Task, Sequence[Task]]  # a task after its transition, and the successors that it plants


class Node(msgspec.Struct, frozen=True, omit_defaults=True):
    """A process that runs tasks, as it describes itself with each heartbeat. Times are UTC seconds."""

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
    """Worker processes over all nodes."""

    total: int
    active: int

    @property
    def idle(self) -> int:
        return self.total - self.active


class Stats(msgspec.Struct, frozen=True):
    """What is in the store, counted by every transition as it happens. `oldest` is the due time of the task that waits
    longest."""

    counts: Counts
    queues: dict[str, Counts]
    types: dict[str, Counts]
    oldest: float | None
    nodes: list[Node]
    limits: list[Limit]

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    @property
    def running(self) -> int:
        return self.counts[Status.PROCESSING]

    @property
    def unfinished(self) -> int:
        return sum(self.counts[s] for s in ("blocked", "pending", "processing", "retrying"))

    @property
    def workers(self) -> Workers:
        return Workers(sum(n.workers for n in self.nodes), sum(n.busy for n in self.nodes))


@runtime_checkable
class Store(Protocol):
    """What every store does. `now` is UTC seconds; a method either does all of its work or, raising, none of it.

    Every method may be called from any thread. Raises StoreError where the store cannot be read or written: what was
    not returned was not stored. What a method has returned survives `kill -9` (see each store for power loss).
    """

    def add(self, tasks: Sequence[Task]) -> list[str]:
        """Stores new tasks, in order; gives for each the id that now stands for it.

        - A task whose `id`, or whose `key`, is taken is not stored: the id of the one that has it is given.
        - Stored at version 1, or above every version that a deleted task had, so that no version of an id comes twice.
        - It is `pending`; or `blocked` while a task named in `after` is not terminal.
        - `after` names tasks stored before or of the same call; an unknown one is InvalidTask, and nothing is stored.
          A task that is not stored, its id or key being taken, may name whom it likes: its parents may be gone by now.
        - A parent that has failed or was cancelled already dooms the task, unless `on_parent_failure` is "run".
        - Durable when it returns.
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
        """Takes up to n waiting tasks for `worker`, each for nobody else: best first.

        - Only tasks of these types, of these queues (all, if none is named), of at least this priority.
        - Due only: `run_at` has come. Order: priority (higher first), then the limit key that was served least, then
          `run_at`, then insertion.
        - Only lanes whose limits are open; waiting for a limit costs no attempt. For a rate, a task counts from `now`,
          or from its `run_at`, if that is up to a second later: the claim has stood in line meanwhile.
        - Claimed: `processing`, version + 1, attempts + 1, `worker`, `started_at` = now, `lease_until` = now + lease.
        - First of all, whatever their limits, come the doomed: waiting tasks whose `expires` has come (doom "expired"),
          and children of a parent that failed or was cancelled. They are claimed without an attempt, to be ended.
        - Its cost does not grow with how many tasks or limit keys wait, are scheduled for later, paused or throttled.
          Of lanes whose limits open at the same time it lets in a bounded number; `next_due` is in the past until all
          are in.
        """

    def update(self, outcomes: Sequence[Outcome]) -> set[str]:
        """Replaces each task whose stored version equals its own, and gives the ids of those. All in one step.

        - Stored at version + 1, so that an outcome is accepted once; any other version, or none, is left as it is.
        - The fields in STATE are replaced; what the task is (type, queue, payload, ...) stays as it was added.
        - A task that comes back from its end (it was terminal, and waits now) waits for its parents as a new one does:
          `blocked` while one of them is not terminal, doomed by one that failed; those that are gone count no more.
        - The successors of an accepted task are added as `add` does, those of a refused one are not.
        - A successor that has the `key` of the very task that plants it takes it over: that task has none from then on.
        - When the last of its parents is terminal, a `blocked` task becomes `pending`; a parent that failed or was
          cancelled dooms it at once, unless `on_parent_failure` is "run".
        - Durable when it returns.
        """

    def heartbeat(self, node: Node, held: Sequence[Task], lease: float, now: float) -> set[str]:
        """Says that the node lives and still has these tasks, each as it was claimed; gives the ids that it has lost.

        - Where version and worker still match, the lease is extended, and progress and note are stored; the version
          stays.
        - The other ids are given back: cancelled, reaped, deleted. Their attempt is to be stopped.
        - A node sends one before its first claim, and a last one with a lease of 0, by which it leaves.
        - With nothing held and nothing new to say, nothing is written.
        """

    def reap(self, worker: str, n: int, lease: float, now: float) -> list[Task]:
        """Takes over, for `worker`, up to n `processing` tasks whose lease has run out or whose node is known to be
        dead.

        Claimed anew (version + 1, worker, lease), but with no attempt; the task's own worker is never reaped by itself
        before its lease ends. Nodes known to be dead are forgotten when nothing is left of them.
        """

    def get(self, ids: Iterable[str], *, brief: bool = False) -> list[Task]:
        """Return the tasks of these ids, in this order; unknown ids are left out.

        With `brief`, each task is as `brief_of` leaves it: without payload, result, history, log and traceback.
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
        """Return up to `limit` tasks in the order of their ids, starting after the id `after`: pages that stay stable
        while tasks come and go. `brief`: as in `get`; a list of many large tasks then takes little memory."""

    def stats(self) -> Stats:
        """Counters by queue, type and status, the oldest waiting task, nodes and limits. The cost does not grow with
        tasks or limit keys, but for keys under which tasks of several priorities wait."""

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
        """Changes the limit of these lanes (see Limit); None leaves a setting as it is, 0 takes a limit away."""

    def next_due(self, now: float) -> float | None:
        """When, at the latest, `claim` may find something that it does not find now: a task comes due or expires, a
        rate opens. None if nothing is foreseen; may be early, even in the past, where claim has not moved all that is
        due."""

    def delete(self, ids: Iterable[str]) -> int:
        """Removes these tasks, but none that is `processing`; gives how many. Their highest version is kept (see
        `add`), by `purge` too.

        For the children that wait, for this parent or for anything else, it is as if cancelled. A child that runs keeps
        its version, and is doomed when it waits again.
        """

    def purge(self, before: float, statuses: Collection[str]) -> int:
        """Removes tasks of these terminal statuses that finished before this time, at most a few thousand a call;
        gives how many. A task that an unfinished one names in `after` is kept. 0 means that nothing is left to remove.
        """

    def fileno(self) -> int:
        """A descriptor that becomes readable when something changed: a hint, which may come early and for nothing."""

    def wait(self, timeout: float) -> bool:
        """Waits up to `timeout` seconds for that hint, takes it away, and says whether it came. 0 only looks."""

    def close(self) -> None:
        """Ends the nodes that spoke through this store, and gives everything back. Closing twice is harmless."""


def clock_of(store: Store) -> Callable[[], float]:
    """What a store's nodes go by: the clock of the store, if it has one (a server's, by which the machines need not
    agree), or else this machine's."""
    clock: Callable[[], float] = getattr(store, "clock", time.time)
    return clock


def clock_offset(store: Store) -> float:
    """Seconds by which that clock is ahead of this machine's."""
    ahead: float = getattr(store, "ahead", 0.0)
    return ahead


def sum_counts(rows: Iterable[tuple[str, str, str, int]]) -> tuple[Counts, dict[str, Counts], dict[str, Counts]]:
    """From (queue, type, status, how many): the tasks by status, in all, by queue, and by type."""
    counts = dict.fromkeys(map(str, Status), 0)
    queues: dict[str, Counts] = {}
    types: dict[str, Counts] = {}
    for queue, type, status, n in rows:
        for table in (counts, queues.setdefault(queue, {}), types.setdefault(type, {})):
            table[status] = table.get(status, 0) + n
    return counts, queues, types


def doom_from(parent_id: str, status: str, strict: bool) -> str | None:
    """Why the child of this ended parent is not to be run, if so; a child that is not `strict` runs all the same."""
    return f"its parent {parent_id} is {status}" if strict and status != Status.COMPLETED else None


def parents_of(task: Task, stands_for: Mapping[str, str]) -> tuple[str, ...]:
    """What the task waits for, where `stands_for` tells which ids of the same call gave way to others: a parent whose
    key was taken is waited for in the task that has the key. No task waits for itself."""
    parents = (stands_for.get(parent, parent) for parent in task.after)
    return tuple(parent for parent in parents if parent != task.id)
