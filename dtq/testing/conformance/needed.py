"""Parents that an unfinished child needs: clean-up keeps them, and deleting one dooms the child."""

from __future__ import annotations

from dtq.stores.protocol import Store
from dtq.task.model import TERMINAL, ErrorInfo
from dtq.task.transitions import cancel, end_doomed, fail, interrupt, release, revive
from dtq.testing.conformance.kit import (
    LEASE,
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
    start,
    statuses,
    take,
    the,
)

LATER = NOW + 1000.0


def _purge(store: Store) -> int:
    """Purge all tasks that ended before LATER. Return how many."""
    return store.purge(LATER, TERMINAL)


def _with_parent(store: Store, *children: str, **options: object) -> None:
    """Add the parent p and these children, and complete the parent."""
    store.add([job("p"), *(job(id, after=("p",), **options) for id in children)])
    end(store, *map(done, start(store, "p")))


@promise("removal")
def check_purge_keeps_what_an_unfinished_task_needs(store: Store) -> None:
    """A parent is kept until its child has ended: while the child waits, runs, and waits for another attempt."""
    _with_parent(store, "c", retry_delay=5)
    expect(_purge(store), 0, "number purged while the child waits")
    (child,) = start(store, "c")
    expect(_purge(store), 0, "number purged while the child runs")
    end(store, fail(child, ErrorInfo("OSError"), NOW, lambda: 0.0))
    expect(_purge(store), 0, "number purged while the child waits for its next attempt")
    end(store, *map(done, start(store, "c", now=NOW + 5)))
    expect((_purge(store), ids(everything(store))), (2, []), "number purged when the child has ended, and what is left")


@promise("removal")
def check_purge_keeps_what_a_later_child_needs(store: Store) -> None:
    """A parent that ended before its child was added is kept too, and so is each of several parents."""
    store.add(jobs("p q r"))
    p, q, _ = start(store, "p q r")
    end(store, done(p), broken(q))
    store.add([job("c", after=("p",)), job("d", after=("p", "q", "r"), on_parent_failure="run")])
    expect(_purge(store), 0, "number purged")
    end(store, *map(done, start(store, "c")))
    expect(_purge(store), 1, "number purged when the first child has ended")
    expect(ids(everything(store)), ["d", "p", "q", "r"], "tasks that are left")


@promise("removal")
def check_purge_goes_past_what_it_keeps(store: Store) -> None:
    """However many parents are kept, tasks that ended after them are purged; the parents follow once they are free."""
    parents = [job(f"p{n:04}") for n in range(1200)]
    store.add(parents)
    for at in range(0, 1200, 400):
        end(store, *(done(task, NOW + at) for task in take(store, 400)))
    store.add([job("c", after=tuple(task.id for task in parents[:200]), type="mail")])
    store.add([job(f"c{n}", after=(f"p{n:04}",), type="mail", run_at=NOW + 9) for n in range(200, 1100)])
    removed = [_purge(store) for _ in range(20)]
    expect(sum(removed), 100, "number purged")
    expect(removed[0] > 0, True, "the first call purged something")
    end(store, *map(done, start(store, "c", types={"mail"})))
    expect(sum(_purge(store) for _ in range(20)), 201, "number purged when one child has ended")
    store.delete([f"c{n}" for n in range(200, 1100)])
    expect(sum(_purge(store) for _ in range(20)), 900, "number purged when the others are deleted")


@promise("removal")
def check_what_was_kept_is_purged_however_its_child_ended(store: Store) -> None:
    """A parent can be purged once its child was cancelled, failed permanently, or was deleted."""
    _with_parent(store, "b", "c", "d")
    expect(_purge(store), 0, "number purged while three children need it")
    end(store, cancel(the(store, "b"), NOW))
    expect(_purge(store), 1, "number purged with one child cancelled")
    (task,) = take(store, 1)
    end(store, broken(task))
    expect(_purge(store), 1, "number purged with another failed")
    store.delete(["c", "d"])
    expect((_purge(store), ids(everything(store))), (1, []), "number purged with none left, and what is left")


@promise("removal")
def check_a_revived_child_needs_its_parents_again(store: Store) -> None:
    """The parents of a task are kept again once the task is revived."""
    _with_parent(store, "c")
    end(store, *map(broken, start(store, "c")))
    end(store, revive(the(store, "c"), NOW))
    expect(_purge(store), 0, "number purged")
    expect([(task.id, task.doom) for task in take(store)], [("c", None)], "id and doom")


@promise("removal")
def check_deleting_an_ended_parent_dooms_its_waiting_children(store: Store) -> None:
    """Deleting an ended parent dooms its waiting children, except those that run whatever happens to a parent."""
    _with_parent(store, "b", "c", retry_delay=5)
    store.add([job("d", after=("p",), on_parent_failure="run")])
    b, *_ = start(store, "b", n=1)
    end(store, fail(b, ErrorInfo("OSError"), NOW, lambda: 0.0))
    before = the(store, "c")
    expect(store.delete(["p"]), 1, "number deleted")
    expect(end(store, cancel(before, NOW)), set(), "accepted of the version before")
    tasks = take(store, now=NOW + 1)
    dooms = sorted((task.id, task.doom, task.attempts) for task in tasks)
    expect(dooms, [("b", doom := "its parent p is cancelled", 1), ("c", doom, 0), ("d", None, 1)], "id, doom, attempts")
    end(store, *(end_doomed(task, NOW) for task in tasks if task.doom))
    expect(statuses(store, "b c d"), ["failed", "failed", "processing"], "statuses")


@promise("removal")
def check_deleting_the_parent_of_a_running_child_dooms_its_next_attempt(store: Store) -> None:
    """A running child keeps its parents' results, and its outcome is accepted; it does not run again without them."""
    _with_parent(store, "b", "c", "d", "e", retry_delay=1)
    b, c, d, e = start(store, "b c d e")
    store.delete(["p"])
    (reaped,) = store.reap("w2", 1, LEASE, NOW + LEASE)
    failing, back, well = (task for task in (b, c, d, e) if task.id != reaped.id)
    failed = fail(failing, ErrorInfo("OSError"), NOW, lambda: 0.0)
    outcomes = (failed, release(back), done(well), interrupt(reaped, NOW))
    expect(end(store, *outcomes), set("bcde"), "accepted")
    expect(statuses(store, well.id), ["completed"], "status of the one that came to its end")
    doomed = sorted(task.id for task in take(store, now=NOW + 1) if task.doom)
    expect(doomed, sorted(set("bcde") - {well.id}), "doomed")


@promise("removal")
def check_a_parent_that_comes_again_is_kept_for_who_names_it(store: Store) -> None:
    """A new task with the id of a deleted parent is kept while an unfinished task names that id."""
    store.add([job("p"), job("c", after=("p",), on_parent_failure="run", run_at=NOW + 9)])
    store.delete(["p"])
    store.add([job("p")])
    end(store, *map(done, start(store, "p")))
    expect(_purge(store), 0, "number purged")
    end(store, *map(done, start(store, "c", now=NOW + 9)))
    expect(_purge(store), 2, "number purged when the child has ended")


@promise("removal", twice=True)
def check_all_processes_keep_what_is_needed(subject: Subject) -> None:
    """A process keeps the parent of a child that another process added, claimed or ended."""
    one, two = subject.open(), subject.open()
    _with_parent(one, "c")
    expect(_purge(two), 0, "number purged by the other")
    (child,) = start(two, "c")
    expect([_purge(store) for store in (one, two)], [0, 0], "number purged while it runs")
    end(two, done(child))
    expect(_purge(one), 2, "number purged")


@promise("durable", twice=True)
def check_what_is_needed_is_kept_after_a_crash(subject: Subject) -> None:
    """After a kill -9, the parents of unfinished children are kept, and deleting one dooms its waiting child."""
    store = subject.open()
    store.add(jobs("p q"))
    end(store, *map(done, start(store, "p q")))
    store.add([job("c", after=("p",)), job("d", after=("q",), run_at=NOW + 9)])
    start(store, "c")
    expect(_purge(store), 0, "number purged")
    subject.crash(store)
    store = subject.open()
    expect(_purge(store), 0, "number purged after the crash")
    store.delete(["q"])
    expect([(task.id, bool(task.doom)) for task in take(store)], [("d", True)], "id and doom")
