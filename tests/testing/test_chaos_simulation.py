"""Simulated schedules: every promise is kept in all of them, and they find each of these planted bugs."""

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
    """Accepts an outcome of any version."""

    def _current(self, outcomes):
        return {task.id: (task, planted) for task, planted in outcomes if task.id in self._tasks}


@breaks("only_faulty_nodes_lose_tasks")
class LeaseNeverRenewed(MemoryStore):
    def _renew(self, task, lease, now):
        return super()._renew(task, task.lease_until - now, now)


@breaks("only_faulty_nodes_lose_tasks")
class ReapIgnoresLiveNodes(MemoryStore):
    """Takes over the tasks of all nodes, dead or alive."""

    def reap(self, worker, n, lease, now, dead=()):
        return super().reap(worker, n, lease, now, {task.worker for task in self._tasks.values()} - {worker})


@breaks("every_task_ends")
class NothingIsReaped(MemoryStore):
    def reap(self, *_):
        return []


@breaks("completed_means_done")
class AcknowledgesBeforeItRuns(Loop):
    """Completes a task when a worker gets it: at most once instead of at least once."""

    def _take(self, pool, tasks, now):
        super()._take(pool, tasks, now)
        self._store.update([(succeed(task, "early", now), ()) for task in tasks if not task.doom])


@breaks("no_stale_write_is_accepted")
class ClaimsTwice(MemoryStore):
    """Claims a task and leaves it in the ready queue."""

    def _take(self, task, *claim):
        taken = super()._take(task, *claim)
        self._put(task)
        return taken


@breaks("nothing_acknowledged_is_lost")
class AddsLater(MemoryStore):
    """Returns the ids of all tasks, but stores the last one with the next call."""

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
    """Loses its outcomes when the store fails."""

    def _back_off(self, error):
        self._outcomes.clear()
        return super()._back_off(error)


@breaks("only_accepted_outcomes_are_announced")
class SweepsBeforeItCommits(Loop):
    """Takes over its own tasks while their outcomes still wait to be stored, and keeps those outcomes."""

    def _heartbeat(self, now):
        beats = super()._heartbeat(now)
        if beats:
            waiting, self._outcomes = self._outcomes, []
            self._reap(now)
            self._outcomes = [*waiting, *self._outcomes]
        return beats


@breaks("every_run_is_counted")
class InterruptsForNothing(Loop):
    """Returns the tasks of a dead node to the queue without counting the interruption."""

    def _reap(self, now):
        super()._reap(now)
        self._outcomes = [(replace(task, interruptions=0), planted) for task, planted in self._outcomes]


@pytest.mark.parametrize(("parts", "promise"), PLANTED, ids=lambda value: getattr(value, "__name__", ""))
def test_a_planted_bug_is_found(parts, promise):
    found = hunt(range(ENOUGH), **parts)
    assert found is not None, f"not in {ENOUGH} schedules"
    assert promise in found.broken


class LooksAtTheClockOnce(Loop):
    """After a freeze in the middle of a turn, it claims by the time at which the turn began."""

    def _by_now(self, now):
        return now


def test_a_freeze_between_the_clock_and_the_claim_costs_one_repeat_and_not_two():
    """A long run found this rare schedule."""
    seed = 6734
    assert "only_faulty_nodes_lose_tasks" in simulate(seed, make_loop=LooksAtTheClockOnce).broken
    assert simulate(seed).broken == {}


@pytest.mark.parametrize("seed", [554, 5131, 10024, 15005])
def test_only_the_last_outcome_of_a_task_that_was_lost_and_claimed_again_counts(seed):
    """During a claim that returns the task again, the report of its lost attempt arrives."""
    assert simulate(seed).broken == {}


@in_schedules
def test_every_promise_is_kept_in_every_schedule(schedules):
    found = hunt(range(schedules))
    assert found is None, f"dtq chaos memory: --seed {found.seed} --schedules 1\n{found}"


@in_schedules
def test_a_machine_that_sleeps_costs_no_node_its_tasks(schedules):
    found = hunt(range(schedules), sleeps=True)
    assert found is None, f"simulate({found.seed}, sleeps=True)\n{found}"


@in_schedules
def test_pauses_and_exchanges_break_no_promise(schedules):
    found = hunt(range(schedules), pauses=True)
    assert found is None, f"simulate({found.seed}, pauses=True)\n{found}"


def test_schedules_with_pauses_claim_in_exchanges():
    claimed = []

    class Counts(Loop):
        def _exchange(self, outcomes, now):
            accepted = super()._exchange(outcomes, now)
            claimed.extend(self._exchanged.tasks if self._exchanged else ())
            return accepted

    for seed in range(5):
        simulate(seed, make_loop=Counts, pauses=True)
    assert claimed


class SleepsOver(Loop):
    """Does not notice that the machine slept."""

    def _notice_leap(self, now):
        self._now, self._began = now, self._monotonic()


def test_a_loop_that_does_not_notice_a_sleep_is_found():
    found = hunt(range(ENOUGH), make_loop=SleepsOver, sleeps=True)
    assert found is not None
    assert "only_faulty_nodes_lose_tasks" in found.broken


def test_the_schedules_are_rich():
    """The schedules prove something only if they contain faults, repeats, deaths and every terminal status."""
    records = [simulate(seed).record for seed in range(40)]
    assert sum(len(list(record.of("taken over"))) for record in records) > 30
    assert sum(record.repeats() for record in records) > 20
    assert sum(record.deaths for record in records) > 10
    assert any(not record.faults and not record.deaths for record in records)
    ends = {task.status for record in records for task in record.tasks.values()}
    assert ends == {"completed", "failed", "cancelled"}


def test_without_faults_each_attempt_runs_once():
    calm = [e for e in (simulate(seed).record for seed in range(60)) if not e.faults and not e.deaths]
    assert calm
    for record in calm:
        assert record.repeats() == 0


def test_a_seed_makes_the_same_story_in_every_process():
    code = "from dtq.testing.chaos.simulation import simulate; print(simulate(3))"
    stories = {
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in "123"
    }
    assert len(stories) == 1
    assert b"every promise was kept" in stories.pop()


@in_schedules
def test_no_attempt_reaches_a_later_task_of_its_id(schedules):
    found = hunt(range(schedules), reuse_ids=True)
    assert found is None, f"simulate({found.seed}, reuse_ids=True)\n{found}"


class CountsVersionsAnew(MemoryStore):
    """Begins every task at version 1, even if its id was used before."""

    def _add(self, tasks):
        self._deleted = 0
        return super()._add(tasks)


def test_a_store_that_repeats_versions_is_found():
    found = hunt(range(ENOUGH), make_store=CountsVersionsAnew, reuse_ids=True)
    assert found is not None
    assert {"no_stale_write_is_accepted", "completed_means_done"} & found.broken.keys()
