"""Fencing: no version of an id occurs twice, even if its task was removed and the id is used again."""

from __future__ import annotations

from dtq.stores.protocol import Node, Store
from dtq.task.model import Task
from dtq.task.transitions import cancel, revive, succeed
from dtq.testing.conformance.kit import LEASE, NOW, Subject, broken, done, end, expect, job, jobs, promise, start, the


def _claimed_and_cancelled(store: Store, id: str = "a") -> Task:
    """Add the task, claim it, cancel it. Return the claim, which its worker still holds."""
    store.add([job(id)])
    (claim,) = start(store, id)
    end(store, cancel(claim, NOW))
    return claim


def _expect_fenced(store: Store, claim: Task) -> None:
    """Add the id of the old claim again and claim it: the old worker must not reach the new task."""
    store.add([job(claim.id, payload="new")])
    (new,) = start(store, claim.id)
    expect(end(store, succeed(claim, "old", NOW)), set(), "accepted from the worker of the removed task")
    expect(store.heartbeat(Node("w1"), [claim], LEASE, NOW), {claim.id}, "lost by the worker of the removed task")
    expect(end(store, succeed(new, "new", NOW)), {claim.id}, "accepted from the worker of the new task")
    expect(the(store, claim.id).result, "new", "result")


@promise("removal")
def check_a_claim_of_a_deleted_task_cannot_reach_the_new_one(store: Store) -> None:
    """If a task is deleted and its id added again, the result of an old claim is refused."""
    claim = _claimed_and_cancelled(store)
    store.delete(["a"])
    _expect_fenced(store, claim)


@promise("removal")
def check_a_claim_of_a_purged_task_cannot_reach_the_new_one(store: Store) -> None:
    """If a task is purged and its id added again, the result of an old claim is refused."""
    claim = _claimed_and_cancelled(store)
    expect(store.purge(NOW + 1, ["cancelled"]), 1, "number purged")
    _expect_fenced(store, claim)


@promise("removal")
def check_a_successor_with_the_id_of_a_removed_task_is_fenced(store: Store) -> None:
    """The worker of a removed task cannot change a successor that uses the task's id."""
    claim = _claimed_and_cancelled(store)
    store.delete(["a"])
    store.add([job("planter")])
    (planter,) = start(store, "planter")
    store.update([(done(planter), [job("a", payload="new")])])
    _expect_fenced(store, claim)


@promise("removal")
def check_a_new_task_begins_above_every_removed_version(store: Store) -> None:
    """A new task begins at version 1, or one above the highest version of all removed tasks."""
    store.add(jobs("a b c"))
    a, b, c = start(store, "a b c")
    end(store, done(a), broken(b), done(c))
    end(store, revive(the(store, "b"), NOW))
    store.add([job("d")])
    expect(the(store, "d").version, 1, "version of a new task where nothing was removed")
    store.delete(["d"])
    store.add([job("e")])
    expect(the(store, "e").version, 2, "version of a new task when one of version 1 was deleted")
    store.delete(["b"])  # version 4
    store.add(jobs("f b"))
    expect([task.version for task in store.get(["f", "b"])], [5, 5], "versions when one of version 4 was deleted")
    expect(store.purge(NOW + 1, ["completed"]), 2, "number purged, of version 3")
    store.add([job("g", after=("f",))])
    expect(the(store, "g").version, 5, "version of a child when lower versions were purged after that")


@promise("removal")
def check_a_family_deleted_in_one_call_counts_as_it_was(store: Store) -> None:
    """For a call that deletes parents and children, the versions from before the call count."""
    store.add([job("p"), job("c", after=("p",)), job("d", after=("c",), on_parent_failure="run")])
    store.delete(["p", "c", "d"])
    store.add([job("e")])
    expect(the(store, "e").version, 2, "version of a new task")


@promise("removal", twice=True)
def check_a_claim_stays_fenced_when_another_process_deletes(subject: Subject) -> None:
    """If one process deletes a task and another adds its id again, both refuse the result of an old claim."""
    one, two = subject.open(), subject.open()
    two.add([job("other")])
    start(two, "other")
    claim = _claimed_and_cancelled(one)
    one.delete(["a"])
    two.add([job("a", payload="new")])
    expect([end(store, done(claim)) for store in (one, two)], [set(), set()], "accepted from the old worker")
    (new,) = start(one, "a")
    expect(end(two, succeed(claim, "old", NOW)), set(), "accepted from the old worker when the new task runs")
    expect(end(one, done(new)), {"a"}, "accepted from the new worker")


@promise("durable", twice=True)
def check_versions_do_not_recur_after_a_restart(subject: Subject) -> None:
    """The highest removed version survives a kill -9, even if the store is empty otherwise."""
    store = subject.open()
    claims = [_claimed_and_cancelled(store, id) for id in "ab"]
    store.delete(["a"])
    store.purge(NOW + 1, ["cancelled"])
    subject.crash(store)
    store = subject.open()
    for claim in claims:
        _expect_fenced(store, claim)
    store.delete(["a", "b"])
    highest = max(claim.version for claim in claims)
    subject.crash(store)
    store = subject.open()
    store.add([job("c")])
    expect(the(store, "c").version > highest + 2, True, "a new task is above the tasks that were deleted last")
