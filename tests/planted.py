"""Bugs, for the test that plants them in the processes of a siege: `python planted.py NAME ORDERS`, instead of
`python -m dtq.testing.chaos.node ORDERS`.

Each is a function that breaks something of dtq in its own process, in a way in which a queue may well be broken, and
is entered with the promise that must be seen broken then.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable

from msgspec.structs import replace

from dtq.queue.loop import Loop
from dtq.stores.shared.peers import Fates
from dtq.stores.sqlite import dependencies, schema
from dtq.stores.sqlite.lanes import Lanes
from dtq.stores.sqlite.rows import json_list
from dtq.stores.sqlite.store import SQLiteStore
from dtq.task.model import Status
from dtq.task.transitions import interrupt, release, succeed
from dtq.testing.chaos import node

SEED = 1
FREEZES = 1296  # a node that has work is frozen past its lease, and nothing else happens to it until it goes on
PLANTED: dict[str, tuple[Callable[[], None], str, int]] = {}


def breaks(promise: str, seed: int = SEED):
    """Enters a bug, with a seed whose faults bring it out."""

    def enter(plant: Callable[[], None]) -> Callable[[], None]:
        PLANTED[plant.__name__] = plant, promise, seed
        return plant

    return enter


@breaks("no_stale_write_is_accepted", seed=FREEZES)
def fencing_off() -> None:
    """An outcome of whatever version is accepted."""
    update = SQLiteStore._update

    def planted(self, db, outcomes):
        ids = json_list(task.id for task, _ in outcomes)
        now = {id: version for id, version, *_ in db.execute(schema.STANDING, (ids,))}
        return update(self, db, [(replace(task, version=now[task.id]), then) for task, then in outcomes])

    SQLiteStore._update = planted


@breaks("only_the_faulty_lose_their_tasks")
def lease_never_renewed() -> None:
    """A heartbeat is heard, and leaves the lease as it was."""
    schema.RENEW = schema.RENEW.replace("lease_until = ?", "lease_until = max(lease_until, 0 * ?)")


@breaks("completed_means_done")
def acknowledged_before_it_ran() -> None:
    """At most once instead of at least once: what is given to a worker counts as done."""
    take = Loop._take

    def planted(self, pool, tasks, now):
        take(self, pool, tasks, now)
        self._store.update([(succeed(task, "early", now), ()) for task in tasks if not task.doom])

    Loop._take = planted


@breaks("only_the_faulty_lose_their_tasks")
def reap_ignores_live_nodes() -> None:
    """Everybody else counts as dead."""

    def planted(self, dead, now, lease):
        mine = self.database.watch.peers.name
        nodes = self.database.read(lambda db: db.execute(schema.NODES).fetchall())
        return Fates([id for id, peer, _ in nodes if peer != mine], [])

    SQLiteStore._fates = planted


@breaks("everything_ends")
def nothing_is_reaped() -> None:
    SQLiteStore.reap = lambda *_: []


@breaks("nothing_acknowledged_is_lost")
def acknowledged_before_it_is_stored() -> None:
    """Says that all is stored, and keeps the last one back until the next call."""
    add, kept = SQLiteStore.add, []

    def planted(self, tasks):
        now, kept[:] = [*kept, *tasks[:-1]], tasks[-1:]
        known = {task.id for task in now} | {task.id for task in self.get({id for task in now for id in task.after})}
        add(self, [task for task in now if known.issuperset(task.after)])
        return [task.id for task in tasks]

    SQLiteStore.add = planted


@breaks("no_stale_write_is_accepted")
def given_twice() -> None:
    """A claim also gives what another has claimed before."""
    claim = SQLiteStore.claim

    def planted(self, *args):
        tasks = claim(self, *args)
        return tasks + [task for task in self.find(status=Status.PROCESSING, limit=1) if tasks and task not in tasks]

    SQLiteStore.claim = planted


@breaks("children_wait_for_their_parents")
def children_do_not_wait() -> None:
    dependencies._begun = lambda task, standing: replace(task, status=Status.PENDING)


@breaks("no_limit_is_exceeded")
def limits_forgotten() -> None:
    Lanes.gates = lambda *_: []


@breaks("only_the_faulty_lose_their_tasks")
def outcomes_dropped() -> None:
    """Now and then, an outcome is said to be stored, and is not."""
    update, numbers = SQLiteStore._update, itertools.count(1)

    def planted(self, db, outcomes):
        stored = [outcome for outcome in outcomes if next(numbers) % 50]
        update(self, db, stored)
        return {task.id for task, _ in outcomes}

    SQLiteStore._update = planted


@breaks("runs_are_paid_for")
def deaths_cost_nothing() -> None:
    """A task whose worker has died goes back as if it had never begun."""
    finish = Loop._finish

    def planted(self, task, report):
        died = report.error is not None and report.error.type == "WorkerDied"
        self._end(release(task)) if died else finish(self, task, report)

    Loop._finish = planted


@breaks("runs_are_paid_for")
def interruptions_cost_nothing() -> None:
    """What a dead node had goes back as if it had never been touched."""
    from dtq.queue import attempts

    attempts.interrupt = lambda task, now: replace(interrupt(task, now), interruptions=0)


@breaks("only_what_was_accepted_is_told", seed=FREEZES)
def refused_outcomes_are_told() -> None:
    """Listeners hear of every outcome, whether the store took it or not."""
    tell, commit = Loop._tell_of_endings, Loop._commit

    def planted(self, now, **how):
        outcomes = self._outcomes
        commit(self, now, **how)
        tell(self, [replace(task, version=task.version + 1) for task, _ in outcomes], now)

    Loop._tell_of_endings = lambda *_: None
    Loop._commit = planted


if __name__ == "__main__":
    PLANTED[sys.argv[1]][0]()
    node.main(sys.argv[2])
