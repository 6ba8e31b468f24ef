"""The checks of dtq.testing.conformance find what they are there to find: each of these broken stores is caught."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import count, cycle
from unittest.mock import patch

import pytest
from msgspec.structs import replace

from dtq.policy.picking import Gate
from dtq.stores.file.changes import Change
from dtq.stores.file.replica import Replica
from dtq.stores.file.store import FileStore
from dtq.stores.memory.store import MemoryStore
from dtq.stores.protocol import Stats
from dtq.task.model import TERMINAL, Status, Task
from dtq.testing import conformance
from dtq.testing.conformance import Subject

BROKEN: list[tuple[type[MemoryStore], str]] = []


def caught_by(check: str):
    """Enters a broken store, with the check that has to fail on it (others may fail too)."""

    def enter(store: type[MemoryStore]) -> type[MemoryStore]:
        BROKEN.append((store, check))
        return store

    return enter


@caught_by("no_task_is_given_twice")
class ClaimsTwice(MemoryStore):
    """Returns a claimed task but leaves it claimable."""

    def _take(self, task: Task, *claim):
        taken = super()._take(task, *claim)
        self._put(task)
        return taken


@caught_by("a_call_may_be_about_hundreds_of_tasks")
class ServesTheFirstHundred(MemoryStore):
    """Splits a large call into parts, and sends only the first."""

    def update(self, outcomes):
        return super().update(outcomes[:100])


@caught_by("eight_threads_claim_each_task_once")
class LosesClaims(MemoryStore):
    """Sometimes claims a task without returning it."""

    _turn = cycle([True] * 9 + [False])

    def claim(self, *args, **options):
        return [task for task in super().claim(*args, **options) if next(self._turn)]


@caught_by("an_outcome_is_accepted_once")
class LosesUpdates(MemoryStore):
    """Says that it has accepted an outcome, and keeps the old task."""

    def _advance(self, task: Task):
        self._put(replace(self._tasks[task.id], version=task.version + 1))


@caught_by("a_late_result_cannot_overwrite_a_newer_one")
class BelievesZombies(MemoryStore):
    """Accepts an outcome of whatever version."""

    def _current(self, outcomes):
        return {task.id: (task, planted) for task, planted in outcomes if task.id in self._tasks}


@caught_by("an_exchange_claims_what_its_update_lets_run")
class ClaimsBeforeItUpdates(MemoryStore):
    """Exchanges in the wrong order."""

    def exchange(self, outcomes, claim):
        tasks = self.claim(*claim)
        return self.update(outcomes), tasks


@caught_by("the_order_is_priority_then_due_time_then_insertion")
class ServesTheLastFirst(MemoryStore):
    """A stack instead of a queue."""

    def _reserve_id(self, task: Task):
        self._number = -len(self._tasks) - len(self._seq) - 1
        return super()._reserve_id(task)


@caught_by("the_order_is_priority_then_due_time_then_insertion")
class IgnoresPriority(MemoryStore):
    """Claims by due time alone."""

    def _pick(self, kinds, n, now, min_priority):
        picked = super()._pick(kinds, 1000, now, min_priority)
        return sorted(picked, key=lambda task: task.run_at)[:n]


@caught_by("a_heartbeat_extends_the_lease")
class ForgetsLeases(MemoryStore):
    """Hears a heartbeat and leaves the lease as it was."""

    def _renew(self, task: Task, lease, now):
        return super()._renew(task, task.lease_until - now, now)


@caught_by("a_heartbeat_changes_nothing_but_lease_and_progress")
class BelievesTheHolder(MemoryStore):
    """Takes the task of a heartbeat as it is said to be."""

    def _renew(self, task: Task, lease, now):
        if not super()._renew(task, lease, now):
            return False
        self._set(replace(task, lease_until=now + lease))
        return True


@caught_by("only_an_expired_lease_is_reaped")
class ReapsTheLiving(MemoryStore):
    """Takes over a task a little before its lease has run out."""

    def reap(self, worker, n, lease, now):
        return super().reap(worker, n, lease, now + 5)


@caught_by("a_brief_look_leaves_out_what_may_be_large")
class ListsInFull(MemoryStore):
    """Ignores `brief` in find."""

    def find(self, *, brief=False, **wanted):
        return super().find(**wanted)


@caught_by("a_brief_look_leaves_out_what_may_be_large")
class CutsShort(MemoryStore):
    """Gives brief tasks to those who asked for whole ones."""

    def get(self, ids, *, brief=False):
        return super().get(ids, brief=True)


@caught_by("a_child_waits_for_its_parent")
class ForgetsDependencies(MemoryStore):
    """Starts children at once."""

    def _with_first_status(self, task: Task):
        return super()._with_first_status(replace(task, after=()))


@caught_by("a_child_waits_for_the_last_of_its_parents")
class WaitsForOneParentOnly(MemoryStore):
    """Unblocks a child when the first of its parents has ended."""

    def _unblock_children(self, parent: Task):
        for child in self._children.get(parent.id, ()):
            self._parents[child] &= {parent.id}
        super()._unblock_children(parent)


@caught_by("a_failed_parent_dooms_its_children")
class NeverTellsTheChildren(MemoryStore):
    """Leaves the children of a failed parent blocked for ever."""

    def _unblock_children(self, parent: Task):
        if parent.status == Status.COMPLETED:
            super()._unblock_children(parent)


@caught_by("a_revived_child_waits_for_its_parents_again")
class RevivesAtOnce(MemoryStore):
    """Lets a revived child run before its parents."""

    def _block_again(self, task: Task):
        pass


@caught_by("a_successor_takes_over_the_key_of_its_parent")
class KeepsTheKey(MemoryStore):
    """Passes the key to no successor."""

    def _cedes_key(self, task_id: str, successors):
        return False


@caught_by("a_task_whose_key_was_taken_over_is_claimed_without_it")
class GivesTheKeyBack(MemoryStore):
    """Claims each task as it was when it came, with the key that it had then."""

    def _register(self, task: Task, number: int):
        self.__dict__.setdefault("_key_of", {})[task.id] = task.key
        super()._register(task, number)

    def _take(self, task: Task, *claim):
        return super()._take(replace(task, key=self._key_of[task.id]), *claim)


@caught_by("the_counters_equal_a_recount")
class CountsWrong(MemoryStore):
    """Forgets to count a deleted task out."""

    def _delete(self, task: Task):
        super()._delete(task)
        self._counts[task.queue, task.type, task.status] += task.status in TERMINAL


@caught_by("a_taken_key_gives_the_task_that_has_it")
class IgnoresKeys(MemoryStore):
    """Stores a second task of the same key."""

    def _reserve_id(self, task: Task):
        self._keys.pop(task.key, None)
        return super()._reserve_id(task)


@caught_by("a_paused_lane_is_not_served")
class ServesPausedLanes(MemoryStore):
    """Knows rates and bounds, but no pause."""

    def _gates(self):
        return [
            Gate(replace(gate.limit, paused=False), lambda bucket: 0, gate.next_at.__getitem__)
            for gate in super()._gates()
        ]


@caught_by("a_rate_spaces_the_starts")
class ForgetsTheRate(MemoryStore):
    """Starts every claim with a full bucket."""

    def _gates(self):
        self._next_at.clear()
        return super()._gates()


@caught_by("a_rate_counts_from_when_a_task_was_due")
class CountsFromTheClaim(MemoryStore):
    """Counts what a claim takes from the time of the claim on, and be it before the task came."""

    def _pick(self, kinds, n, now, min_priority):
        with patch("dtq.policy.picking.counts_from", lambda run_at, now: now):
            return super()._pick(kinds, n, now, min_priority)


@caught_by("keys_are_served_in_turn")
class ServesTheLoudest(MemoryStore):
    """First come, first served, whoever it is."""

    def _pick(self, kinds, n, now, min_priority):
        picked = super()._pick(kinds, 1000, now, min_priority)
        return sorted(picked, key=lambda task: (-task.priority, task.run_at, self._seq[task.id]))[:n]


@caught_by("successors_of_a_refused_outcome_are_not_added")
class PlantsForZombies(MemoryStore):
    """Adds the successors of an outcome that it refuses."""

    def update(self, outcomes):
        for _, successors in outcomes:
            self.add([replace(task, after=()) for task in successors])
        return super().update(outcomes)


@caught_by("an_expired_task_is_claimed_only_to_be_ended")
class RunsExpiredTasks(MemoryStore):
    """Never looks at `expires`."""

    def _doom_expired(self, now):
        pass


@caught_by("delete_leaves_what_is_processing")
class DeletesRunningTasks(MemoryStore):
    """Pulls a task away under the worker that runs it."""

    def delete(self, ids):
        for id in ids:
            self._processing.pop(id, None)
            if id in self._tasks and self._tasks[id].status == Status.PROCESSING:
                self._put(replace(self._tasks[id], status=Status.CANCELLED))
        return super().delete(ids)


@caught_by("a_claim_of_a_deleted_task_cannot_reach_the_new_one")
class CountsVersionsAnew(MemoryStore):
    """Begins every new task at version 1, also one whose id was used before."""

    def _add(self, tasks):
        self._deleted = 0
        return super()._add(tasks)


@caught_by("a_claim_of_a_purged_task_cannot_reach_the_new_one")
class ForgetsPurgedVersions(MemoryStore):
    """Keeps the versions of tasks that are deleted, not of those that are purged."""

    def purge(self, before, statuses):
        highest = self._deleted
        removed = super().purge(before, statuses)
        self._deleted = highest
        return removed


@caught_by("a_successor_with_the_id_of_a_removed_task_is_fenced")
class PlantsAtVersionOne(MemoryStore):
    """Begins successors at version 1, whatever was removed."""

    def update(self, outcomes):
        highest, self._deleted = self._deleted, 0
        accepted = super().update(outcomes)
        self._deleted = highest
        return accepted


@caught_by("a_new_task_begins_above_every_removed_version")
class KeepsTheLastVersionOnly(MemoryStore):
    """Keeps the version of what was deleted last, not the highest."""

    def _remove(self, ids):
        self._deleted = 0
        return super()._remove(ids)


@caught_by("a_family_deleted_in_one_call_counts_as_it_was")
class CountsItsOwnChanges(MemoryStore):
    """Counts the version that a child got when its parent was deleted before it in the same call."""

    def _delete(self, task: Task):
        super()._delete(task)
        self._deleted = max(self._deleted, task.version)


@caught_by("purge_keeps_what_an_unfinished_task_needs")
class PurgesParents(MemoryStore):
    """Purges what has ended, whatever needs it."""

    def purge(self, before, statuses):
        children, self._children = self._children, defaultdict(set)
        removed = super().purge(before, statuses)
        self._children = children
        return removed


@caught_by("purge_keeps_what_a_later_child_needs")
class KeepsOnlyWhatWasWaitedFor(MemoryStore):
    """Does not note that a new task needs a parent that has ended already."""

    def _link_parents(self, task: Task):
        super()._link_parents(task)
        for parent in task.after:
            if parent not in self._parents.get(task.id, ()) and task.version == 1:
                self._children[parent].discard(task.id)


@caught_by("purge_goes_past_what_it_keeps")
class StopsAtWhatItKeeps(MemoryStore):
    """Looks at the oldest tasks only, and removes those of them that nothing needs."""

    def purge(self, before, statuses):
        ended = [t for t in self._tasks.values() if t.status in statuses and (t.finished_at or 0) < before]
        return self.delete([t.id for t in ended[:1000] if t.is_terminal and not self._children.get(t.id)])


@caught_by("what_was_kept_is_purged_however_its_child_ended")
class KeepsForTheCancelled(MemoryStore):
    """Lets the parents of a child go when it has completed, and never else."""

    def _unlink_parents(self, task: Task):
        if task.status == Status.COMPLETED:
            super()._unlink_parents(task)


@caught_by("a_revived_child_needs_its_parents_again")
class ForgetsTheParentsOfTheRevived(MemoryStore):
    """Does not record that a revived task needs its parents again."""

    def _block_again(self, task: Task):
        super()._block_again(task)
        for parent in task.after:
            self._children[parent].discard(task.id)


@caught_by("deleting_an_ended_parent_dooms_its_waiting_children")
class DoomsTheBlockedOnly(MemoryStore):
    """Deletes an ended parent without dooming the children that are ready."""

    def _detach_children(self, parent: Task):
        self._unblock_children(replace(parent, status=Status.CANCELLED))


@caught_by("deleting_the_parent_of_a_running_child_dooms_its_next_attempt")
class RunsAgainWithoutParents(MemoryStore):
    """Forgets, when an attempt is over, that a parent was deleted meanwhile."""

    def _advance(self, task: Task):
        self._set(replace(self._tasks[task.id], doom=None))
        return super()._advance(task)


@caught_by("a_parent_that_comes_again_is_kept_for_who_names_it")
class ForgetsChildrenWithTheirParent(MemoryStore):
    """Forgets which tasks name an id when the task of that id is deleted."""

    def _forget(self, task: Task):
        super()._forget(task)
        self._children.pop(task.id, None)


@caught_by("the_oldest_is_the_one_that_waits_longest")
class ForgetsTheOldest(MemoryStore):
    """Shows no waiting time."""

    def stats(self) -> Stats:
        stats = super().stats()
        return Stats(stats.counts, stats.queues, stats.types, None, stats.nodes, stats.limits)


@caught_by("wait_hears_of_an_add")
class Sleeps(MemoryStore):
    """Adds without waking the waiting nodes."""

    def add(self, tasks: Sequence[Task]):
        ids = super().add(tasks)
        self._wakeup.wait(0)
        return ids


@pytest.mark.parametrize(("store", "check"), BROKEN, ids=lambda value: getattr(value, "__name__", value))
def test_a_broken_store_is_caught(store: type[MemoryStore], check: str):
    failed = {result.name: result for result in conformance.run(store) if result.status == "failed"}
    assert check in failed
    assert "expected" in failed[check].detail
    assert "got" in failed[check].detail


class ForgetsWhatOthersDeleted(Replica):
    """Reads from the journal which tasks are gone, and passes over their versions."""

    def apply(self, change: Change, journal: int):
        super().apply(replace(change, deleted=0), journal)


class WritesNoDeletedVersion(Replica):
    """Knows the highest deleted version and does not write it down."""

    def drain(self, journal: int):
        if change := super().drain(journal):
            change.deleted = 0
        return change


class ForgetsTheChildrenOfOthers(Replica):
    """Does not note which tasks need which where another process has added them."""

    def apply(self, change: Change, journal: int):
        super().apply(change, journal)
        self._children.clear()


class ForgetsEndedParentsAtAStart(Replica):
    """Reads from the files which parents a task waits for, and no others."""

    def _restore(self, entry):
        super()._restore(entry)
        for parent in set(entry.task.after) - set(entry.waits_for):
            self._children[parent].discard(entry.task.id)


@pytest.mark.parametrize(
    ("replica", "check"),
    [
        (ForgetsTheChildrenOfOthers, "all_processes_keep_what_is_needed"),
        (ForgetsEndedParentsAtAStart, "what_is_needed_is_kept_after_a_crash"),
        (ForgetsWhatOthersDeleted, "a_claim_stays_fenced_when_another_process_deletes"),
        (WritesNoDeletedVersion, "versions_do_not_recur_after_a_restart"),
    ],
)
def test_a_file_store_with_a_broken_replica_is_caught(replica: type[Replica], check: str, tmp_path):
    numbers = count()

    def make() -> Subject:
        path = tmp_path / f"queue{next(numbers)}"
        return Subject(lambda: FileStore(path), FileStore.abandon)

    with patch("dtq.stores.file.directory.Replica", replica):
        results = conformance.run(make, conformance.group("removal", "durable"))
    assert check in {result.name for result in results if result.status == "failed"}


def test_the_first_failure_reads_well():
    failures = [result for result in conformance.run(IgnoresKeys) if result.status == "failed"]
    first = failures[0]
    assert first.promise == "Adding a key again stores nothing and returns the id of the task that has the key."
    assert first.detail == "ids: expected ['a', 'c'], got ['b', 'c']"


@pytest.mark.long
def test_of_a_task_a_failure_shows_only_what_is_not_as_expected():
    failures = {result.name: result.detail for result in conformance.run(ClaimsTwice) if result.status == "failed"}
    detail = failures["a_claimed_task_says_who_has_it_and_until_when"]
    assert detail.startswith("the stored task: expected a(status='processing', version=2, started_at=")
    assert ", got a(status='pending', version=1, started_at=None" in detail


def test_an_error_of_the_store_is_a_failed_check():
    class Unfinished(MemoryStore):
        def add(self, tasks: Sequence[Task]):
            raise NotImplementedError("add")

    results = conformance.run(Unfinished, conformance.group("add"))
    assert {result.status for result in results} == {"failed"}
    assert results[0].detail == "raised NotImplementedError: add"


def test_a_store_of_one_process_is_not_asked_to_survive():
    results = conformance.run(MemoryStore, conformance.group("durable"))
    assert {(result.status, result.detail) for result in results} == {
        ("skipped", "this store cannot crash"),
        ("skipped", "this store lives in one process only"),
    }


def test_every_store_is_closed_after_its_check():
    opened = []

    class Counted(MemoryStore):
        def __init__(self):
            super().__init__()
            opened.append(self)

        def close(self):
            super().close()
            if self in opened:
                opened.remove(self)

    conformance.run(Counted)
    assert opened == []
