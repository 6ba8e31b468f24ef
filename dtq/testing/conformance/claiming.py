"""Claiming: which tasks a claim returns, to which worker, and in which order."""

from __future__ import annotations

from msgspec.structs import replace

from dtq.stores.protocol import Store
from dtq.task.model import ErrorInfo
from dtq.task.transitions import end_doomed, fail
from dtq.testing.conformance.kit import (
    LEASE,
    NOW,
    done,
    end,
    expect,
    ids,
    job,
    jobs,
    promise,
    start,
    statuses,
    take,
    the,
)


@promise("claim")
def check_a_claimed_task_says_who_has_it_and_until_when(store: Store) -> None:
    """A claim makes a task processing, counts version and attempt, and records worker, start and lease."""
    store.add([job("a")])
    (task,) = start(store, "a", now=NOW + 5, worker="w7")
    wanted = ("processing", 2, 1, "w7", NOW + 5, NOW + 5 + LEASE)
    got = (str(task.status), task.version, task.attempts, task.worker, task.started_at, task.lease_until)
    expect(got, wanted, "status, version, attempts, worker, started_at, lease_until")
    expect(the(store, "a"), task, "the stored task")


@promise("claim")
def check_no_task_is_given_twice(store: Store) -> None:
    """A claimed task is not claimed again by any other worker."""
    store.add(jobs("a b c"))
    expect(ids(take(store, 2)), ["a", "b"], "first claim")
    expect(ids(take(store, 2, worker="w2")), ["c"], "second claim")
    expect(ids(take(store, 2)), [], "third claim")


@promise("claim")
def check_a_call_may_be_about_hundreds_of_tasks(store: Store) -> None:
    """A call with hundreds of tasks adds, finds, claims and ends each of them once, in order."""
    names = [f"t{n:03}" for n in range(400)]
    expect(store.add([job(name) for name in names]), names, "ids of those added")
    expect(ids(store.get(names)), names, "ids of those that are there")
    claimed = take(store, 390)
    expect(ids(claimed), names[:390], "ids of those claimed")
    expect(store.update([(done(task), ()) for task in claimed]), set(names[:390]), "accepted")
    expect(statuses(store, " ".join(names)), ["completed"] * 390 + ["pending"] * 10, "statuses")
    expect(ids(take(store, 390)), names[390:], "ids of the last, claimed")


@promise("claim")
def check_a_claim_takes_at_most_n(store: Store) -> None:
    """A claim returns at most n tasks; none for n = 0."""
    store.add(jobs("a b c d"))
    expect(ids(take(store, 0)), [], "claim of 0")
    expect(ids(take(store, 3)), ["a", "b", "c"], "claim of 3")
    expect(statuses(store, "a d"), ["processing", "pending"], "statuses of a and d")


@promise("claim")
def check_only_the_types_asked_for(store: Store) -> None:
    """A worker gets only tasks of the types that it names."""
    store.add([job("a"), job("b", type="mail"), job("c", type="pay")])
    expect(ids(take(store, types={"mail"})), ["b"], "claimed")
    expect(ids(take(store, types={"job", "pay"})), ["a", "c"], "claimed for two types")


@promise("claim")
def check_only_the_queues_asked_for(store: Store) -> None:
    """A worker that names queues gets only their tasks; one that names none gets tasks of all queues."""
    store.add([job("a"), job("b", queue="fast"), job("c", queue="slow"), job("d", queue="night")])
    expect(ids(take(store, queues=["fast", "slow"])), ["b", "c"], "claimed of two queues")
    expect(ids(take(store)), ["a", "d"], "claimed of all")


@promise("claim")
def check_only_the_priority_asked_for(store: Store) -> None:
    """A worker that names a lowest priority gets no task below it."""
    store.add([job("a"), job("b", priority=5), job("c", priority=-5)])
    expect(ids(take(store, min_priority=1)), ["b"], "claimed from 1 up")
    expect(ids(take(store, min_priority=-5)), ["a", "c"], "claimed from -5 up")


@promise("claim")
def check_nothing_before_it_is_due(store: Store) -> None:
    """A task can be claimed from its `run_at` on, and not before."""
    store.add([job("a", run_at=NOW + 10), job("b", run_at=NOW - 10)])
    expect(ids(take(store)), ["b"], "claimed now")
    expect(ids(take(store, now=NOW + 9.99)), [], "claimed just before")
    expect(ids(take(store, now=NOW + 10)), ["a"], "claimed when due")


@promise("claim")
def check_the_order_is_priority_then_due_time_then_insertion(store: Store) -> None:
    """Higher priority goes first, then the earlier due time, then the earlier insertion."""
    store.add([job("late"), job("z"), job("high", priority=1), job("a"), job("early"), job("low", priority=-1)])
    store.add(
        [job("due1", run_at=10), job("due2", run_at=10), job("due3", run_at=5), job("top", priority=1000, run_at=20)]
    )
    wanted = ["top", "high", "late", "z", "a", "early", "due3", "due1", "due2", "low"]
    expect(ids(take(store, 4)) + ids(take(store)), wanted, "order")


@promise("claim")
def check_the_order_holds_across_queues_and_types(store: Store) -> None:
    """Tasks of different queues and types are claimed in one common order."""
    store.add(
        [
            job("a", run_at=3),
            job("b", queue="q", run_at=1),
            job("c", type="mail", run_at=2),
            job("d", queue="r", priority=1),
        ]
    )
    expect(ids(take(store, types={"job", "mail"})), ["d", "b", "c", "a"], "order")


@promise("claim")
def check_a_task_of_the_past_goes_before_one_that_is_due_now(store: Store) -> None:
    """A task that becomes due goes behind those that were due earlier."""
    store.add([job("soon", run_at=NOW + 2), job("sooner", run_at=NOW + 1), job("now", run_at=NOW)])
    expect(ids(take(store, 1)), ["now"], "claimed at once")
    expect(ids(take(store, now=NOW + 5)), ["sooner", "soon"], "claimed later")


@promise("claim")
def check_a_task_that_failed_comes_again_when_due(store: Store) -> None:
    """A retrying task is claimed again at its `run_at`, as the next attempt, with its progress reset."""
    store.add([job("a", retry_delay=10)])
    (first,) = start(store, "a")
    end(store, replace(fail(first, ErrorInfo("OSError"), NOW, lambda: 0.0), progress=50.0, note="half"))
    expect(ids(take(store, now=NOW + 9)), [], "claimed before its delay is over")
    (again,) = start(store, "a", now=NOW + 10)
    got = again.attempts, again.version, again.started_at, again.progress, again.note
    expect(got, (2, 4, NOW + 10, 0.0, ""), "attempts, version, started_at, progress, note")


@promise("claim")
def check_an_expired_task_is_claimed_only_to_be_ended(store: Store) -> None:
    """A waiting task whose `expires` has come is claimed with doom "expired" and without an attempt."""
    store.add([job("a", expires=NOW + 1), job("b", expires=NOW + 5)])
    task, healthy = start(store, "a b", now=NOW + 1)
    expect((task.id, task.doom, task.attempts), ("a", "expired", 0), "id, doom, attempts")
    expect((str(task.status), task.version, task.worker), ("processing", 2, "w1"), "status, version, worker")
    expect((healthy.id, healthy.doom, healthy.attempts), ("b", None, 1), "id, doom, attempts of the other")
    expect(end(store, end_doomed(task, NOW + 1)), {"a"}, "accepted")


@promise("claim")
def check_expiry_reaches_whatever_waits(store: Store) -> None:
    """Blocked, scheduled and retrying tasks expire as well; a running task does not."""
    store.add([job("run"), job("retry", expires=NOW + 5, retry_delay=100)])
    running, retrying = start(store, "run retry")
    end(store, replace(running, expires=NOW + 5), fail(retrying, ErrorInfo("OSError"), NOW, lambda: 0.0))
    store.add([job("blocked", after=("run",), expires=NOW + 5), job("later", run_at=NOW + 99, expires=NOW + 5)])
    expect(sorted(ids(take(store, now=NOW + 4))), [], "claimed before")
    expect(sorted(ids(take(store, now=NOW + 5))), ["blocked", "later", "retry"], "claimed as expired")


@promise("claim")
def check_the_doomed_come_first_and_pass_every_limit(store: Store) -> None:
    """Doomed tasks come before all others, even from a paused lane, and do not count for a rate."""
    store.set_lane(type="job", paused=True)
    store.set_lane(queue="default", rate=0.001)
    store.add([job("high", type="mail", priority=9), job("old", expires=NOW), job("older", expires=NOW - 1)])
    claimed = take(store, types={"job", "mail"})
    expect(
        [sorted(ids(claimed[:2])), ids(claimed[2:])], [["old", "older"], ["high"]], "the doomed tasks, and the next one"
    )


@promise("claim")
def check_the_doomed_go_only_where_their_type_runs(store: Store) -> None:
    """Types, queues and n apply to doomed tasks too."""
    store.add(
        [job("a", expires=NOW), job("b", expires=NOW, type="mail"), job("c", expires=NOW, queue="q"), *jobs("d e")]
    )
    expect(ids(take(store, types={"mail"})), ["b"], "claimed for another type")
    expect(ids(take(store, queues=["q"])), ["c"], "claimed for another queue")
    expect(ids(take(store, 2)), ["a", "d"], "claim of 2")
