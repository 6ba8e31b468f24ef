"""Updating: which outcomes a store accepts, and what they change."""

from __future__ import annotations

from msgspec.structs import replace

from dtq.errors import InvalidTask
from dtq.stores.protocol import Store
from dtq.task.model import Attempt, ErrorInfo
from dtq.task.transitions import cancel, fail, release, revive, succeed
from dtq.testing.conformance.kit import (
    NOW,
    Subject,
    broken,
    done,
    end,
    everything,
    expect,
    ids,
    job,
    jobs,
    promise,
    refused,
    start,
    statuses,
    take,
    the,
)


@promise("update")
def check_an_outcome_is_accepted_once(store: Store) -> None:
    """An outcome of the claimed version is stored as the next version. The same outcome again is refused."""
    store.add([job("a")])
    (task,) = start(store, "a")
    expect(end(store, succeed(task, 42, NOW)), {"a"}, "accepted")
    expect(end(store, succeed(task, 43, NOW)), set(), "accepted the second time")
    expect(end(store), set(), "accepted of nothing")
    stored = the(store, "a")
    expect((str(stored.status), stored.result, stored.version), ("completed", 42, 3), "status, result, version")


@promise("update")
def check_a_late_result_cannot_overwrite_a_newer_one(store: Store) -> None:
    """An outcome of any version but the stored one changes nothing."""
    store.add([job("a")])
    (task,) = start(store, "a")
    end(store, cancel(task, NOW))
    before = the(store, "a")
    ahead = [replace(done(task), version=version) for version in (0, 1, 2, 4, 99)]
    expect([end(store, outcome) for outcome in ahead], [set()] * 5, "accepted for versions 0, 1, 2, 4 and 99 of 3")
    expect(the(store, "a"), before, "the stored task")


@promise("update")
def check_an_outcome_of_an_unknown_task_is_refused(store: Store) -> None:
    """An outcome of a task that is not in the store is refused and stores nothing."""
    expect(store.update([(replace(job("ghost"), version=1), [job("b")])]), set(), "accepted")
    expect(everything(store), [], "tasks in the store")


@promise("update")
def check_each_outcome_of_a_batch_is_judged_alone(store: Store) -> None:
    """Of a batch, valid outcomes are accepted and stale ones refused; of two for one version, the first counts."""
    store.add(jobs("a b c"))
    a, b, c = start(store, "a b c")
    end(store, cancel(b, NOW))
    expect(end(store, done(a), done(b), succeed(c, "first", NOW), succeed(c, "second", NOW)), {"a", "c"}, "accepted")
    expect(statuses(store, "a b c"), ["completed", "cancelled", "completed"], "statuses")
    expect(the(store, "c").result, "first", "result of the one that was given twice")


@promise("update")
def check_the_state_is_stored_whole(store: Store) -> None:
    """Status, times, attempts, error, history, result, progress, note and log are stored as the transition set them."""
    store.add([job("a", retry_delay=2.5)])
    (task,) = start(store, "a")
    error = ErrorInfo("SegfaultError", "naïve\n'x'", "Traceback ...", signal=11, exit_code=-11)
    failed = replace(fail(task, error, NOW + 0.1, lambda: 0.0), log="line\n" * 3, note="was at 7 %", progress=7.25)
    end(store, failed)
    expect(the(store, "a"), replace(failed, version=3), "the task after fail")
    expect(the(store, "a").history, (Attempt(1, NOW, NOW + 0.1, "w1", error),), "history")
    (again,) = start(store, "a", now=NOW + 10)
    end(store, result := succeed(again, {"päyload": [1, None, 2**60], "nested": {"x": [0.1]}}, NOW + 11))
    expect(the(store, "a"), replace(result, version=5), "the task after succeed")


@promise("update")
def check_what_the_task_is_stays_as_it_was_added(store: Store) -> None:
    """An outcome changes the state of a task, never its type, queue, payload, key or options."""
    store.add([job("a", payload=1, key="k", limit_key="t")])
    (task,) = start(store, "a")
    changed = replace(
        done(task), type="other", queue="q", payload=2, key=None, limit_key="x", timeout=1.0, max_attempts=1
    )
    expect(end(store, changed), {"a"}, "accepted")
    expect(the(store, "a"), replace(done(task), version=3), "the stored task")


@promise("update")
def check_successors_are_added_with_an_accepted_outcome(store: Store) -> None:
    """The successors of an accepted outcome are stored in the same step, even those that wait for the task itself."""
    store.add([job("a")])
    (task,) = start(store, "a")
    store.update([(done(task), [job("b", after=("a",)), job("c", payload="x", after=("b",))])])
    expect(statuses(store, "a b c"), ["completed", "pending", "blocked"], "statuses")
    expect((the(store, "c").payload, the(store, "c").version), ("x", 1), "payload and version of the second successor")


@promise("update")
def check_successors_of_a_refused_outcome_are_not_added(store: Store) -> None:
    """A stale outcome adds no successor and raises no error."""
    store.add([job("a")])
    (task,) = start(store, "a")
    end(store, cancel(task, NOW))
    expect(store.update([(done(task), [job("b"), job("c", after=("missing",))])]), set(), "accepted")
    expect(ids(everything(store)), ["a"], "tasks in the store")


@promise("update")
def check_a_successor_whose_id_is_taken_is_not_doubled(store: Store) -> None:
    """A successor whose id or key is in the store already changes nothing."""
    store.add([job("a"), job("b", type="mail", payload="old"), job("c", type="mail", key="k")])
    (task,) = start(store, "a")
    expect(store.update([(done(task), [job("b", payload="new"), job("d", key="k")])]), {"a"}, "accepted")
    expect(ids(everything(store)), ["a", "b", "c"], "tasks in the store")
    expect(the(store, "b").payload, "old", "payload")


@promise("update")
def check_a_successor_takes_over_the_key_of_its_parent(store: Store) -> None:
    """A successor with the key of its task takes the key over; the task then has none."""
    store.add([job("a", key="k"), job("b", key="other")])
    a, b = store.get(["a", "b"])
    expect(store.update([(cancel(a, NOW), [job("c", key="k")]), (cancel(b, NOW), ())]), {"a", "b"}, "accepted")
    expect([task.key for task in store.get(["a", "b", "c"])], [None, "other", "k"], "keys")
    expect(store.add([job("d", key="k"), job("e", key="other")]), ["c", "b"], "ids for the keys")
    expect(store.update([(replace(a, version=1), [job("f", key="k")])]), set(), "accepted of an older version")
    expect(the(store, "c").key, "k", "key of the successor")
    expect(store.delete(["a", "c"]), 2, "deleted")
    expect(store.add([job("g", key="k")]), ["g"], "id for the key when its task is gone")


@promise("update")
def check_a_task_whose_key_was_taken_over_is_claimed_without_it(store: Store) -> None:
    """A waiting task that lost its key to a successor does not get it back, whether it is claimed or ended."""
    store.add([job("p"), job("a", key="k"), job("b", key="l", after=("p",))])
    end(store, cancel(the(store, "p"), NOW))
    heirs = [job("c", type="mail", key="k")], [job("d", type="mail", key="l")]
    expect(store.update(list(zip(store.get(["a", "b"]), heirs, strict=True))), {"a", "b"}, "accepted")
    claimed = sorted(take(store), key=lambda task: task.id)
    expect([(task.id, task.key) for task in claimed], [("a", None), ("b", None)], "ids and keys of those claimed")
    store.update([(done(task), [job("e", key="k"), job("f", key="l")]) for task in claimed])
    expect([task.key for task in everything(store)], [None, None, "k", "l", None], "keys of a, b, c, d and p")


@promise("update", twice=True)
def check_a_key_that_was_taken_over_stays_so_after_a_crash(subject: Subject) -> None:
    """After a crash, the key still belongs to the successor that took it over."""
    store = subject.open()
    store.add([job("a", key="k")])
    store.update([(cancel(the(store, "a"), NOW), [job("c", key="k")])])
    subject.crash(store)
    store = subject.open()
    expect([task.key for task in store.get(["a", "c"])], [None, "k"], "keys")
    expect(store.add([job("d", key="k")]), ["c"], "id for the key")


@promise("update")
def check_an_update_that_raises_has_done_nothing(store: Store) -> None:
    """If a successor is refused with an error, no part of the call has happened, and it can be repeated."""
    store.add([job("a"), job("b", key="k")])
    a, b = start(store, "a b")
    bad = [(done(a), [job("c")]), (done(b), [job("d", after=("missing",))])]
    refused(InvalidTask, "update with an unknown parent", lambda: store.update(bad))
    heir = [(done(b), [job("d", key="k", after=("missing",))])]
    refused(InvalidTask, "update with an unknown parent of the heir of a key", lambda: store.update(heir))
    mistaken = [(replace(outcome, key=None), successors) for outcome, successors in heir]
    refused(InvalidTask, "the same from a caller without the key", lambda: store.update(mistaken))
    expect(everything(store), [a, b], "tasks in the store")
    expect(end(store, done(a), done(b)), {"a", "b"}, "accepted without the bad successor")


@promise("update")
def check_a_new_priority_changes_the_order(store: Store) -> None:
    """A waiting task may get another priority or time. It moves to its new place and is claimed once."""
    store.add(jobs("a b c d"))
    take(store, 1)
    b, d = store.get(["b", "d"])
    expect(end(store, replace(d, priority=5), replace(b, run_at=NOW + 50)), {"b", "d"}, "accepted")
    expect(ids(take(store)), ["d", "c"], "order")
    expect(ids(take(store, now=NOW + 50)), ["b"], "claimed later")


@promise("update")
def check_a_cancelled_task_is_not_claimed(store: Store) -> None:
    """A task that is cancelled while it is pending, scheduled or blocked never starts."""
    store.add([job("a"), job("b", run_at=NOW + 5), job("c", after=("d",)), job("d", type="mail")])
    expect(end(store, *(cancel(task, NOW) for task in store.get(["a", "b", "c"]))), {"a", "b", "c"}, "accepted")
    end(store, *map(done, take(store, types={"mail"})))
    expect(ids(take(store, now=NOW + 10)), [], "claimed")


@promise("update")
def check_a_revived_task_runs_again(store: Store) -> None:
    """A failed task that is revived is claimed again, with its attempts counted from 1."""
    store.add([job("a")])
    end(store, *map(broken, take(store)))
    end(store, revive(the(store, "a"), NOW + 5))
    (task,) = start(store, "a", now=NOW + 5)
    expect((task.id, task.attempts, task.version, len(task.history)), ("a", 1, 5, 1), "id, attempts, version, history")
    expect(end(store, done(task)), {"a"}, "accepted")


@promise("update")
def check_a_released_task_goes_back_to_its_place(store: Store) -> None:
    """A claimed task that did not start returns to its place in the order, and its attempt does not count."""
    store.add(jobs("a b c"))
    a, _ = start(store, "a b", n=2)
    end(store, release(a))
    expect([(task.id, task.attempts) for task in take(store)], [("a", 1), ("c", 1)], "ids and attempts")
