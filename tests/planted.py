"""Bugs that a test plants in the processes of a chaos run: `python planted.py NAME ORDERS`, instead of
`python -m dtq.testing.chaos.node ORDERS`.

Each bug is a function that breaks one thing of dtq in its own process, as a queue may well be broken. It is registered
with the promise that a chaos run must see broken.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from typing import Any

from msgspec.structs import replace

from dtq.queue import attempt_tracker
from dtq.queue.loop import Loop
from dtq.stores.shared.peers import LostNodes
from dtq.stores.sqlite import choice, dependencies, schema
from dtq.stores.sqlite.rows import json_list
from dtq.stores.sqlite.store import SQLiteStore
from dtq.task.model import Status
from dtq.task.transitions import interrupt, release, succeed
from dtq.testing.chaos import node

SEED = 1
FREEZES = 1296  # a node that has work is frozen past its lease, and nothing else happens to it until it goes on
PLANTED: dict[str, tuple[Callable[[], None], str, int]] = {}


def breaks(promise: str, seed: int = SEED):
    """Register a bug, with the promise that it breaks and a seed whose faults bring it out."""

    def enter(plant: Callable[[], None]) -> Callable[[], None]:
        PLANTED[plant.__name__] = plant, promise, seed
        return plant

    return enter


def patch(owner: Any, name: str, value: object) -> None:
    """Replace what `owner` has under this name. Fail where it has nothing: dtq would never use the new value."""
    if not hasattr(owner, name):
        raise AttributeError(f"{owner.__name__} has no {name}: this bug breaks nothing; name what it is called now")
    setattr(owner, name, value)


@breaks("no_stale_write_is_accepted", seed=FREEZES)
def fencing_off() -> None:
    """Accept an outcome of any version."""
    update = SQLiteStore._update

    def planted(self, db, outcomes):
        ids = json_list(task.id for task, _ in outcomes)
        now = dict(db.execute("SELECT id, version FROM task WHERE id IN (SELECT value FROM json_each(?))", (ids,)))
        return update(self, db, [(replace(task, version=now[task.id]), then) for task, then in outcomes])

    patch(SQLiteStore, "_update", planted)


@breaks("only_faulty_nodes_lose_tasks")
def lease_never_renewed() -> None:
    """Accept a heartbeat, but leave the lease as it was."""
    broken = schema.RENEW.replace("lease_until = ?", "lease_until = max(lease_until, 0 * ?)")
    assert broken != schema.RENEW, "RENEW sets the lease in another way now"
    patch(schema, "RENEW", broken)


@breaks("completed_means_done")
def acknowledged_before_it_ran() -> None:
    """Complete a task when a worker gets it: at most once instead of at least once."""
    take = Loop._take

    def planted(self, pool, tasks, now):
        take(self, pool, tasks, now)
        self._store.update([(succeed(task, "early", now), ()) for task in tasks if not task.doom])

    patch(Loop, "_take", planted)


@breaks("only_faulty_nodes_lose_tasks")
def reap_ignores_live_nodes() -> None:
    """Treat every other node as dead."""

    select_nodes = schema.NODES

    def planted(self, dead, now, lease):
        mine = self.database.watch.peers.name
        nodes = self.database.read(lambda db: db.execute(select_nodes).fetchall())
        return LostNodes([id for id, peer, _ in nodes if peer != mine], [])

    patch(SQLiteStore, "_fates", planted)


@breaks("every_task_ends")
def nothing_is_reaped() -> None:
    """Take over nothing."""
    patch(SQLiteStore, "reap", lambda *_: [])


@breaks("nothing_acknowledged_is_lost")
def acknowledged_before_it_is_stored() -> None:
    """Return the ids of all tasks, but store the last one with the next call."""
    add, kept = SQLiteStore.add, []

    def planted(self, tasks):
        now, kept[:] = [*kept, *tasks[:-1]], tasks[-1:]
        known = {task.id for task in now} | {task.id for task in self.get({id for task in now for id in task.after})}
        add(self, [task for task in now if known.issuperset(task.after)])
        return [task.id for task in tasks]

    patch(SQLiteStore, "add", planted)


@breaks("no_stale_write_is_accepted")
def given_twice() -> None:
    """Also claim a task that is claimed already."""
    claim = SQLiteStore.claim

    def planted(self, *args):
        tasks = claim(self, *args)
        return tasks + [task for task in self.find(status=Status.PROCESSING, limit=1) if tasks and task not in tasks]

    patch(SQLiteStore, "claim", planted)


@breaks("children_wait_for_their_parents")
def children_do_not_wait() -> None:
    """Let children start before their parents have ended."""
    patch(dependencies, "_with_first_status", lambda task, standing: replace(task, status=Status.PENDING))


@breaks("no_limit_is_exceeded")
def limits_forgotten() -> None:
    """Ignore all limits."""
    patch(choice, "read_gates", lambda *_: [])


@breaks("only_faulty_nodes_lose_tasks")
def outcomes_dropped() -> None:
    """Now and then, report an outcome as stored without storing it."""
    update, numbers = SQLiteStore._update, itertools.count(1)

    def planted(self, db, outcomes):
        stored = [outcome for outcome in outcomes if next(numbers) % 50]
        update(self, db, stored)
        return {task.id for task, _ in outcomes}

    patch(SQLiteStore, "_update", planted)


@breaks("every_run_is_counted")
def deaths_cost_nothing() -> None:
    """Return a task to the queue, as if it had never begun, when its worker died."""
    finish = Loop._finish

    def planted(self, task, report):
        died = report.error is not None and report.error.type == "WorkerDied"
        self._end(release(task)) if died else finish(self, task, report)

    patch(Loop, "_finish", planted)


@breaks("every_run_is_counted")
def interruptions_cost_nothing() -> None:
    """Return the tasks of a dead node as if they had never been claimed."""
    patch(attempt_tracker, "interrupt", lambda task, now: replace(interrupt(task, now), interruptions=0))


@breaks("only_accepted_outcomes_are_announced", seed=FREEZES)
def refused_outcomes_are_announced() -> None:
    """Announce every outcome, even one that the store refused."""
    tell, commit = Loop._emit_endings, Loop._commit

    def planted(self, now, **how):
        outcomes = self._outcomes
        commit(self, now, **how)
        tell(self, [replace(task, version=task.version + 1) for task, _ in outcomes], now)

    patch(Loop, "_emit_endings", lambda *_: None)
    patch(Loop, "_commit", planted)


if __name__ == "__main__":
    PLANTED[sys.argv[1]][0]()
    node.main(sys.argv[2])
