"""Simulated schedules: every promise is kept in all of them, and each of these planted bugs is found by them."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from msgspec.structs import replace
from sizes import small_and_large

from dtq.queue.loop import Loop
from dtq.stores.memory.store import MemoryStore
from dtq.task.transitions import succeed
from dtq.testing.chaos.simulation import hunt, simulate

in_schedules = small_and_large("schedules", 150, 20_000)
ENOUGH = 400  # schedules in which a planted bug has to show

PLANTED: list[tuple[dict[str, type], str]] = []


def breaks(promise: str):
    """Register a broken store or loop, and the promise that the first schedule to find it must see broken."""

    def enter(part: type) -> type:
        overrides_what_exists(part)
        PLANTED.append(({"make_store" if issubclass(part, MemoryStore) else "make_loop": part}, promise))
        return part

    return enter


def overrides_what_exists(part: type) -> None:
    """Fail where a broken part defines a method that its base does not have: dtq would never call it."""
    for name, value in vars(part).items():
        if callable(value):
            assert hasattr(part.__base__, name), (
                f"{part.__base__.__name__}.{name}, which {part.__name__} breaks, is gone"
            )


@breaks("no_stale_write_is_accepted")
class FencingOff(MemoryStore):
    """Accepts an outcome of whatever version."""

    def _current(self, outcomes):
        return {task.id: (task, planted) for task, planted in outcomes if task.id in self._tasks}


@breaks("only_faulty_nodes_lose_tasks")
class LeaseNeverRenewed(MemoryStore):
    def _renew(self, task, lease, now):
        return super()._renew(task, task.lease_until - now, now)


@breaks("only_faulty_nodes_lose_tasks")
class ReapIgnoresLiveNodes(MemoryStore):
    """Takes over from everybody, dead or alive."""

    def reap(self, worker, n, lease, now, dead=()):
        return super().reap(worker, n, lease, now, {task.worker for task in self._tasks.values()} - {worker})


@breaks("every_task_ends")
class NothingIsReaped(MemoryStore):
    def reap(self, *_):
        return []


@breaks("completed_means_done")
class AcknowledgesBeforeItRuns(Loop):
    """At most once instead of at least once: what is given to a worker counts as done."""

    def _take(self, pool, tasks, now):
        super()._take(pool, tasks, now)
        self._store.update([(succeed(task, "early", now), ()) for task in tasks if not task.doom])


@breaks("no_stale_write_is_accepted")
class GivesTwice(MemoryStore):
    """Gives a task out and leaves it where it was."""

    def _take(self, task, *claim):
        taken = super()._take(task, *claim)
        self._put(task)
        return taken


@breaks("nothing_acknowledged_is_lost")
class AddsLater(MemoryStore):
    """Says that all is stored, and keeps the last one back until the next call."""

    _kept: tuple | list = ()

    def add(self, tasks):
        now, self._kept = [*self._kept, *tasks[:-1]], [tasks[-1]]
        super().add([task for task in now if all(parent in self._tasks for parent in task.after)])
        return [task.id for task in tasks]


@breaks("children_wait_for_their_parents")
class ForgetsDependencies(MemoryStore):
    def _with_first_status(self, task):
        return replace(super()._with_first_status(replace(task, after=())), after=task.after)


@breaks("no_violation_was_seen")
class ForgetsLimits(MemoryStore):
    def _gates(self):
        return []


@breaks("only_faulty_nodes_lose_tasks")
class DropsOutcomes(Loop):
    """When the store refuses outcomes, they are gone."""

    def _back_off(self, error):
        self._outcomes.clear()
        return super()._back_off(error)


@breaks("only_accepted_outcomes_are_announced")
class SweepsBeforeItCommits(Loop):
    """Takes over its own tasks while their results still wait to be stored, and keeps those results."""

    def _heartbeat(self, now):
        beats = super()._heartbeat(now)
        if beats:
            waiting, self._outcomes = self._outcomes, []
            self._reap(now)
            self._outcomes = [*waiting, *self._outcomes]
        return beats


@breaks("every_run_is_counted")
class InterruptsForNothing(Loop):
    """Gives back what a dead node had as if it had never been touched."""

    def _reap(self, now):
        super()._reap(now)
        self._outcomes = [(replace(task, interruptions=0), planted) for task, planted in self._outcomes]


@pytest.mark.parametrize(("parts", "promise"), PLANTED, ids=lambda value: getattr(value, "__name__", ""))
def test_a_planted_bug_is_found(parts, promise):
    found = hunt(range(ENOUGH), **parts)
    assert found is not None, f"not in {ENOUGH} schedules"
    assert promise in found.broken


class LooksAtTheClockOnce(Loop):
    """Was frozen in its turn, and goes on with its claim as if it were still the time before."""

    def _by_now(self, now):
        return now


def test_a_freeze_between_the_clock_and_the_claim_costs_one_repeat_and_not_two():
    """It takes a rare schedule, which a long run has found."""
    seed = 6734
    assert "only_faulty_nodes_lose_tasks" in simulate(seed, make_loop=LooksAtTheClockOnce).broken
    assert simulate(seed).broken == {}


@pytest.mark.parametrize("seed", [554, 5131, 10024, 15005])
def test_of_a_task_that_was_lost_and_has_come_back_only_the_last_outcome_counts(seed):
    """While a claim is under way it is heard how a lost attempt has ended, and the claim gives the task anew."""
    assert simulate(seed).broken == {}


@in_schedules
def test_every_promise_is_kept_in_every_schedule(schedules):
    found = hunt(range(schedules))
    assert found is None, f"dtq chaos memory: --seed {found.seed} --schedules 1\n{found}"


@in_schedules
def test_a_machine_that_sleeps_costs_no_node_its_tasks(schedules):
    found = hunt(range(schedules), sleeps=True)
    assert found is None, f"simulate({found.seed}, sleeps=True)\n{found}"


class SleepsOver(Loop):
    """Does not notice that the machine has slept."""

    def _notice_leap(self, now):
        self._now, self._began = now, self._monotonic()


def test_a_loop_that_does_not_notice_a_sleep_is_found():
    found = hunt(range(ENOUGH), make_loop=SleepsOver, sleeps=True)
    assert found is not None
    assert "only_faulty_nodes_lose_tasks" in found.broken


def test_the_schedules_are_rich():
    """A check that finds nothing proves nothing, unless there was something to find."""
    violations = [simulate(seed).record for seed in range(40)]
    assert sum(len(list(record.of("taken over"))) for record in violations) > 30
    assert sum(record.repeats() for record in violations) > 20
    assert sum(record.deaths for record in violations) > 10
    assert any(not record.faults and not record.deaths for record in violations)
    ends = {task.status for record in violations for task in record.tasks.values()}
    assert ends == {"completed", "failed", "cancelled"}


def test_without_faults_each_attempt_runs_once():
    calm = [e for e in (simulate(seed).record for seed in range(60)) if not e.faults and not e.deaths]
    assert calm
    for record in calm:
        assert record.repeats() == 0


def test_a_seed_gives_the_same_story_in_every_process():
    code = "from dtq.testing.chaos.simulation import simulate; print(simulate(3))"
    told = {
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in "123"
    }
    assert len(told) == 1
    assert b"every promise was kept" in told.pop()


@in_schedules
def test_no_attempt_reaches_a_later_task_of_its_id(schedules):
    found = hunt(range(schedules), reuse_ids=True)
    assert found is None, f"simulate({found.seed}, reuse_ids=True)\n{found}"


class CountsVersionsAnew(MemoryStore):
    """Begins every task at version 1, also one whose id was used before."""

    def _add(self, tasks):
        self._deleted = 0
        return super()._add(tasks)


def test_a_store_whose_versions_recur_is_found():
    found = hunt(range(ENOUGH), make_store=CountsVersionsAnew, reuse_ids=True)
    assert found is not None
    assert {"no_stale_write_is_accepted", "completed_means_done"} & found.broken.keys()
