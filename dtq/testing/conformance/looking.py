"""Reading and removing: get, find, the statistics, delete and purge."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

from msgspec.structs import replace

from dtq.stores.protocol import Store
from dtq.task.model import ErrorInfo, Task
from dtq.task.transitions import brief_of, cancel, end_doomed, fail, interrupt, release, revive, succeed
from dtq.testing.conformance.kit import (
    LEASE,
    NOW,
    broken,
    done,
    end,
    everything,
    expect,
    filled,
    ids,
    job,
    jobs,
    promise,
    start,
    take,
    the,
)


@promise("look")
def check_get_keeps_the_order_and_leaves_out_the_unknown(store: Store) -> None:
    """get returns tasks in the order of the given ids, and leaves out those that do not exist."""
    store.add(jobs("a b c"))
    expect(ids(store.get(["c", "missing", "a"])), ["c", "a"], "ids")
    expect(store.get([]), [], "get of nothing")


@promise("look")
def check_find_goes_by_id_and_filters(store: Store) -> None:
    """find returns tasks in the order of their ids; status, queue, type and time of end combine as filters."""
    store.add([job("d"), job("a", type="mail"), job("c", queue="q"), job("b", type="mail", queue="q")])
    d, a, c, b = start(store, "d a c b", types={"job", "mail"})
    end(store, release(d), done(c, NOW), done(b, NOW + 1), done(a, NOW + 2))

    def found(wanted: str, **options: Any) -> None:
        expect(ids(store.find(**options)), wanted.split(), f"find({options})")

    found("a b c d")
    found("c d", after="b")
    found("a b", limit=2)
    found("b c", after="a", limit=2)
    found("d", status="pending")
    found("a b c", status="completed")
    found("", status="failed")
    found("b c", queue="q")
    found("a b", type="mail")
    found("b", type="mail", queue="q")
    found("a b", finished_after=NOW)
    found("a", finished_after=NOW + 1, type="mail")
    found("", queue="missing")


@promise("look")
def check_pages_stay_stable_while_tasks_come_and_go(store: Store) -> None:
    """Page by page, a reader gets each task that was there throughout exactly once, while others come and go."""
    store.add([job(f"t{n:02}") for n in range(0, 20, 2)])
    seen: list[str] = []
    for turn in range(20):
        page = ids(store.find(after=seen[-1] if seen else "", limit=2))
        seen += page
        store.add([job(f"t{turn:02}x")])
        store.delete(page[:1] + [f"t{turn:02}x" for turn in range(turn)])
    original = [id for id in seen if not id.endswith("x")]
    expect(original, [f"t{n:02}" for n in range(0, 20, 2)], "ids seen")
    expect(len(set(seen)), len(seen), "how many of the ids seen are different")


@promise("look")
def check_a_brief_look_leaves_out_what_may_be_large(store: Store) -> None:
    """With brief, get and find return the same tasks without payload, result, history, log and traceback."""
    tricky = '"},"result":{},"history":[],"log":"'
    error = ErrorInfo("OSError", tricky, tricky, signal=9)
    store.add([job(id, payload={"x": tricky, "payload": ["}"], "created_at": 1}, max_attempts=2) for id in "abcd"])
    a, b, c = start(store, "a b c", n=3)
    logged = replace(fail(c, error, NOW, lambda: 0.0), log=tricky, note="n")
    end(store, succeed(replace(a, log="printed"), {"error": {"type": tricky}}, NOW), broken(b), logged)
    full = store.get("dcba")
    expect(store.get("dcbax", brief=True), list(map(brief_of, full)), "get with brief")
    expect(store.find(brief=True), list(map(brief_of, reversed(full))), "find with brief")
    expect(store.find(status="retrying", brief=True), [brief_of(full[1])], "find of one status with brief")
    expect(full[1].error, error, "the whole error, without brief")
    expect((full[1].log, full[3].result), (tricky, {"error": {"type": tricky}}), "log and result, without brief")


@promise("look")
def check_the_counters_equal_a_recount(store: Store) -> None:
    """After any sequence of calls, the counters by status, queue and type equal a count of all tasks."""
    chance = random.Random(7)
    for step in range(60):
        _random_step(store, step, chance)
        if step % 10 == 9:
            tasks = everything(store)
            stats = store.stats()
            expect(filled(stats.counts), Counter(str(task.status) for task in tasks), "counts")
            expect(_flat(stats.queues), Counter((task.queue, str(task.status)) for task in tasks), "counts by queue")
            expect(_flat(stats.types), Counter((task.type, str(task.status)) for task in tasks), "counts by type")


def _random_step(store: Store, step: int, chance: random.Random) -> None:
    now = NOW + step
    known = ids(everything(store))
    store.add([_random_task(f"t{step:03}{n}", now, known, chance) for n in range(chance.randrange(4))])
    for task in take(store, chance.randrange(4), now, types={"job", "mail"}):
        end(store, end_doomed(task, now) if task.doom else chance.choice([done, broken, release, _kept])(task))
    for task in store.reap("w2", 2, LEASE, now):
        end(store, interrupt(task, now))
    for task in store.find(after=chance.choice(["", *known]), limit=1):
        end(store, revive(task, now) if task.status in ("failed", "cancelled") else _kept(task))
    if step % 4 == 0:
        store.delete(chance.sample(known, len(known) // 4))
    store.purge(now - 20, ["completed"])


def _random_task(id: str, now: float, known: list[str], chance: random.Random) -> Task:
    return job(
        id,
        queue=chance.choice("qr"),
        type=chance.choice(["job", "mail"]),
        after=tuple(chance.sample(known, min(len(known), chance.randrange(3)))),
        on_parent_failure=chance.choice(["fail", "run"]),
        expires=now + chance.randrange(20),
    )


def _kept(task: Task) -> Task:
    """An outcome that changes nothing but the version."""
    return task


def _flat(tables: dict[str, dict[str, int]]) -> dict[tuple[str, str], int]:
    return {(name, status): n for name, table in tables.items() for status, n in table.items() if n}


@promise("look")
def check_the_statistics_name_every_status(store: Store) -> None:
    """Every status has a count, 0 if no task has it; running, unfinished and total are sums of counts."""
    empty = ["blocked", "cancelled", "completed", "failed", "pending", "processing", "retrying"]
    expect(
        {str(name): n for name, n in store.stats().counts.items()}, dict.fromkeys(empty, 0), "counts of an empty store"
    )
    store.add([*jobs("a b c d"), job("e", after=("d",))])
    a, b, c, _ = start(store, "a b c d")
    end(store, done(a), fail(b, ErrorInfo("OSError"), NOW, lambda: 0.0), broken(c))
    stats = store.stats()
    expect((stats.total, stats.running, stats.unfinished), (5, 1, 3), "total, running, unfinished")


@promise("look")
def check_the_oldest_is_the_one_that_waits_longest(store: Store) -> None:
    """`oldest` is the earliest due time of all tasks that wait for a worker; None if there are none."""
    expect(store.stats().oldest, None, "oldest of an empty store")
    store.add([job("a", run_at=900), job("b", run_at=950, priority=5), job("c", after=("a",), run_at=1)])
    expect(store.stats().oldest, 900, "oldest")
    expect(ids(take(store, 1)), ["b"], "claimed")
    expect(store.stats().oldest, 900, "oldest when another was claimed")
    take(store, 1)
    expect(store.stats().oldest, None, "oldest when all are claimed")


@promise("look")
def check_next_due_says_when_to_look_again(store: Store) -> None:
    """next_due returns when the next task becomes due or expires; None if no such time is known."""
    expect(store.next_due(NOW), None, "next_due of an empty store")
    store.add([job("a", run_at=NOW + 50), job("b", run_at=NOW + 90), job("c", run_at=NOW + 99, expires=NOW + 20)])
    take(store)
    expect(store.next_due(NOW), NOW + 20, "next_due with a task that expires")
    end(store, *(end_doomed(task, NOW + 20) for task in take(store, now=NOW + 20)))
    expect(store.next_due(NOW + 20), NOW + 50, "next_due")
    store.delete(["a", "b"])
    expect(store.next_due(NOW + 20), None, "next_due when all is done")


@promise("removal")
def check_delete_removes_and_counts(store: Store) -> None:
    """Deleted tasks are gone and never claimed; delete returns how many there were."""
    store.add([job("a"), job("b"), job("c", run_at=NOW + 5), job("d", after=("a",))])
    expect(store.delete(["a", "c", "missing", "a"]), 2, "number deleted")
    expect(store.get(["a", "c"]), [], "deleted tasks")
    store.delete(["d"])
    expect(ids(take(store, now=NOW + 10)), ["b"], "claimed")
    expect(store.stats().total, 1, "tasks in the statistics")


@promise("removal")
def check_delete_leaves_what_is_processing(store: Store) -> None:
    """A task that is processing is not deleted."""
    store.add(jobs("a b"))
    (task,) = start(store, "a", n=1)
    expect(store.delete(["a", "b"]), 1, "number deleted")
    expect(end(store, done(task)), {"a"}, "accepted")


@promise("removal")
def check_delete_frees_id_and_key(store: Store) -> None:
    """Id and key of a deleted task can be used again, and the old task's outcome does not change the new task."""
    store.add([job("a", key="k")])
    old = the(store, "a")
    store.delete(["a"])
    expect(store.add([job("a", payload="new"), job("b", key="k")]), ["a", "b"], "ids")
    expect(ids(take(store)), ["a", "b"], "claimed")
    expect(end(store, cancel(old, NOW)), set(), "accepted for the old task")


@promise("removal")
def check_the_children_of_a_deleted_parent_are_doomed(store: Store) -> None:
    """For its waiting children, a deleted parent counts as cancelled."""
    store.add([job("p", run_at=NOW + 99), job("c", after=("p",)), job("d", after=("p",), on_parent_failure="run")])
    store.delete(["p"])
    got = sorted((task.id, bool(task.doom), task.attempts) for task in take(store))
    expect(got, [("c", True, 0), ("d", False, 1)], "id, doom, attempts")


@promise("removal")
def check_a_family_may_be_deleted_together(store: Store) -> None:
    """Parents and children deleted in one call leave nothing behind, not even in the counters."""
    store.add(
        [job("p"), job("c", after=("p",)), job("d", after=("p",), on_parent_failure="run"), job("e", after=("d",))]
    )
    expect(store.delete(["p", "c", "d", "e"]), 4, "number deleted")
    expect(filled(store.stats().counts), {}, "counts")
    expect(ids(take(store)), [], "claimed")


@promise("removal")
def check_purge_removes_what_ended_long_ago(store: Store) -> None:
    """purge removes tasks of the given terminal statuses that ended before the given time, and no others."""
    store.add([*jobs("a b c d"), job("e", key="k")])
    a, b, c, d, e = start(store, "a b c d e")
    end(store, done(a, NOW), done(b, NOW + 10), broken(c, NOW), cancel(d, NOW), done(e, NOW))
    expect(store.purge(NOW + 5, ["completed", "cancelled"]), 3, "number purged")
    expect(ids(everything(store)), ["b", "c"], "tasks that are left")
    expect(store.purge(NOW + 5, ["completed"]), 0, "number purged again")
    expect(store.add([job("f", key="k")]), ["f"], "ids for the key that has become free")


@promise("removal")
def check_purge_never_touches_unfinished_tasks(store: Store) -> None:
    """Only terminal tasks are purged, whatever statuses a call names."""
    store.add([job("a"), job("b", run_at=NOW + 9), job("c", after=("b",)), job("d", retry_delay=5)])
    a, d = start(store, "a d")
    end(store, fail(d, ErrorInfo("OSError"), NOW, lambda: 0.0))
    every = ["blocked", "pending", "processing", "retrying", "completed", "failed", "cancelled"]
    expect(store.purge(1e11, every), 0, "number purged")
    expect(end(store, done(a)), {"a"}, "accepted")
