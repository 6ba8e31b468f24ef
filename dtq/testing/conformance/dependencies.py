"""Dependencies: when a task that waits for parents starts, and what happens to it if a parent does not complete."""

from __future__ import annotations

from msgspec.structs import replace

from dtq.stores.protocol import Store
from dtq.task.model import ErrorInfo
from dtq.task.transitions import cancel, end_doomed, fail, revive
from dtq.testing.conformance.kit import (
    NOW,
    Subject,
    broken,
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


@promise("dependencies")
def check_a_child_waits_for_its_parent(store: Store) -> None:
    """A task is blocked until its parent has completed, and then pending."""
    store.add([job("p", retry_delay=1)])
    store.add([job("c", after=("p",))])
    expect(statuses(store, "p c"), ["pending", "blocked"], "statuses")
    (parent,) = start(store, "p")
    end(store, fail(parent, ErrorInfo("OSError"), NOW, lambda: 0.0))
    expect(statuses(store, "p c"), ["retrying", "blocked"], "statuses when the parent has to run again")
    end(store, *map(done, take(store, now=NOW + 1)))
    expect(statuses(store, "p c"), ["completed", "pending"], "statuses when it has completed")
    expect(ids(take(store, now=NOW + 1)), ["c"], "claimed")


@promise("dependencies")
def check_a_child_waits_for_the_last_of_its_parents(store: Store) -> None:
    """A task with several parents starts when all of them have ended, in any order."""
    store.add([*jobs("p q r"), job("c", after=("p", "q", "r", "p"))])
    p, q, r = start(store, "p q r")
    end(store, done(q))
    end(store, done(r))
    expect(statuses(store, "c"), ["blocked"], "status after two of three")
    end(store, done(p))
    expect(ids(take(store)), ["c"], "claimed after the last")


@promise("dependencies")
def check_parents_may_end_in_one_call(store: Store) -> None:
    """Parents that end in the same update unblock their child once."""
    store.add([*jobs("p q"), job("c", after=("p", "q"))])
    end(store, *map(done, take(store)))
    expect([(task.id, task.version) for task in take(store)], [("c", 3)], "id and version")


@promise("dependencies")
def check_parents_may_come_in_the_same_call_in_any_order(store: Store) -> None:
    """A call may add a child before its parent; the child still waits."""
    expect(store.add([job("c", after=("b",)), job("b", after=("a",)), job("a")]), ["c", "b", "a"], "ids")
    for id in "abc":
        tasks = take(store)
        expect(ids(tasks), [id], "claimed")
        end(store, *map(done, tasks))


@promise("dependencies")
def check_a_parent_whose_key_is_taken_is_waited_for_in_its_stand_in(store: Store) -> None:
    """If a parent is not stored because its key is taken, its child waits for the task that has the key."""
    store.add([job("a", key="k")])
    expect(store.add([job("c", after=("b",)), job("b", key="k")]), ["c", "a"], "ids")
    expect(statuses(store, "c"), ["blocked"], "status of the child")
    end(store, *map(done, take(store)))
    expect(ids(take(store)), ["c"], "claimed when the stand-in has completed")


@promise("dependencies")
def check_a_taken_key_is_known_though_its_parent_is_gone(store: Store) -> None:
    """Adding a taken key again returns the task that has it, even if a parent of that task was removed."""
    store.add([job("parent"), job("child", key="k", after=("parent",))])
    store.delete(["parent"])
    expect(store.add([job("again", key="k", after=("parent",))]), ["child"], "id for the key")


@promise("dependencies")
def check_a_finished_parent_does_not_block(store: Store) -> None:
    """A child added after its parent completed is pending at once."""
    store.add(jobs("p q"))
    p, _ = start(store, "p q")
    end(store, done(p))
    store.add([job("c", after=("p",)), job("d", after=("p", "q"))])
    expect(statuses(store, "c d"), ["pending", "blocked"], "statuses")


@promise("dependencies")
def check_a_failed_parent_dooms_its_children(store: Store) -> None:
    """When a parent fails or is cancelled, its children are claimed doomed, without an attempt and without delay."""
    store.add([*jobs("p q r"), job("c", after=("p", "r")), job("d", after=("q",))])
    p, q, _ = start(store, "p q r")
    end(store, broken(p), cancel(q, NOW))
    children = sorted(take(store), key=lambda task: task.id)
    expect(
        [(task.id, bool(task.doom), task.attempts) for task in children],
        [("c", True, 0), ("d", True, 0)],
        "id, doom, attempts",
    )
    expect(end(store, *(end_doomed(task, NOW) for task in children)), {"c", "d"}, "accepted")
    expect(statuses(store, "c d"), ["failed", "failed"], "statuses")


@promise("dependencies")
def check_a_parent_that_failed_before_dooms_at_once(store: Store) -> None:
    """A child added after its parent failed is doomed, and the next claim returns it."""
    store.add(jobs("p q"))
    p, _ = start(store, "p q")
    end(store, broken(p))
    store.add([job("c", after=("q", "p"))])
    expect([(task.id, bool(task.doom), task.attempts) for task in take(store)], [("c", True, 0)], "id, doom, attempts")


@promise("dependencies")
def check_doom_goes_down_the_line(store: Store) -> None:
    """When a doomed child ends, its own children are doomed in turn."""
    store.add([job("p"), job("c", after=("p",)), job("d", after=("c",))])
    end(store, *map(broken, take(store)))
    for id in "cd":
        (task,) = start(store, id)
        expect((task.id, bool(task.doom)), (id, True), "id and doom")
        end(store, end_doomed(task, NOW))
    expect(store.stats().counts["failed"], 3, "failed tasks")


@promise("dependencies")
def check_a_child_may_run_though_its_parent_failed(store: Store) -> None:
    """With on_parent_failure="run", a child starts when its parents have ended, whatever their outcome."""
    store.add([*jobs("p q"), job("c", after=("p", "q"), on_parent_failure="run")])
    p, q = start(store, "p q")
    end(store, broken(p))
    expect(statuses(store, "c"), ["blocked"], "status while the other parent runs")
    end(store, cancel(q, NOW))
    store.add([job("d", after=("p",), on_parent_failure="run")])
    expect(
        [(task.id, task.doom, task.attempts) for task in take(store)],
        [("c", None, 1), ("d", None, 1)],
        "id, doom, attempts",
    )


@promise("dependencies")
def check_unblocking_is_a_new_version(store: Store) -> None:
    """An outcome made from a blocked task is refused once the task is unblocked."""
    store.add([job("p"), job("c", after=("p",))])
    blocked = the(store, "c")
    end(store, *map(done, take(store)))
    expect(end(store, replace(blocked, priority=5)), set(), "accepted of the older version")
    expect(statuses(store, "c"), ["pending"], "status")


@promise("dependencies")
def check_a_blocked_task_may_be_changed(store: Store) -> None:
    """A new priority or time of a blocked task applies when it is unblocked."""
    store.add([job("p"), job("c", after=("p",)), job("d", after=("p",))])
    end(store, replace(the(store, "d"), priority=5))
    expect(statuses(store, "c d"), ["blocked", "blocked"], "statuses")
    end(store, *map(done, take(store)))
    expect(ids(take(store)), ["d", "c"], "order")


@promise("dependencies")
def check_a_revived_child_waits_for_its_parents_again(store: Store) -> None:
    """A child that is cancelled and revived before its parents have ended is blocked until they end."""
    store.add([*jobs("p q"), job("c", after=("p", "q"))])
    end(store, cancel(the(store, "c"), NOW))
    p, q = start(store, "p q")
    end(store, done(p))
    end(store, revive(the(store, "c"), NOW))
    expect(statuses(store, "c"), ["blocked"], "status after the revival")
    expect(ids(take(store)), [], "claimed while a parent runs")
    end(store, done(q))
    expect(ids(take(store)), ["c"], "claimed when both have completed")


@promise("dependencies")
def check_a_parent_and_its_child_may_be_revived_in_one_call(store: Store) -> None:
    """If parent and child are revived together, in any order, the child waits; revived alone, it is doomed again."""
    store.add([job("p"), job("c", after=("p",))])
    end(store, *map(broken, take(store)))
    end(store, *(end_doomed(task, NOW) for task in take(store)))
    end(store, revive(the(store, "c"), NOW))
    (child,) = start(store, "c")
    expect(bool(child.doom), True, "doom of the child that was revived alone")
    end(store, end_doomed(child, NOW))
    expect(end(store, *(revive(task, NOW) for task in store.get(["c", "p"]))), {"p", "c"}, "accepted")
    expect(statuses(store, "p c"), ["pending", "blocked"], "statuses")
    for id in "pc":
        end(store, *map(done, start(store, id)))
    expect(store.stats().counts["completed"], 2, "completed tasks")


@promise("dependencies")
def check_a_revived_child_does_not_wait_for_parents_that_are_gone(store: Store) -> None:
    """A child whose parents were removed after its end runs at once when it is revived."""
    store.add([job("p"), job("c", after=("p",))])
    end(store, *map(broken, take(store)))
    end(store, *(end_doomed(task, NOW) for task in take(store)))
    store.delete(["p"])
    end(store, revive(the(store, "c"), NOW))
    expect([(task.id, task.doom) for task in take(store)], [("c", None)], "id and doom")


@promise("dependencies", twice=True)
def check_a_revived_child_still_waits_after_a_crash(subject: Subject) -> None:
    """A revived child still waits for its parents after the process that revived it has died."""
    store = subject.open()
    store.add([job("p"), job("c", after=("p",))])
    end(store, cancel(the(store, "c"), NOW))
    end(store, revive(the(store, "c"), NOW))
    subject.crash(store)
    store = subject.open()
    expect(statuses(store, "p c"), ["pending", "blocked"], "statuses")
    end(store, *map(done, start(store, "p")))
    expect(ids(take(store)), ["c"], "claimed")


@promise("dependencies", twice=True)
def check_parents_that_end_in_two_processes_unblock_their_child(subject: Subject) -> None:
    """A child is unblocked when its last parent ends, even if its parents end in different processes."""
    one, two = subject.open(), subject.open()
    one.add([job("p", key="k"), *jobs("q r"), job("c", after=("p", "q", "r"))])
    p, q, r = start(one, "p q r")
    one.update([(done(p), [job("heir", type="mail", key="k")])])
    end(one, done(q))
    end(two, done(r))
    expect(ids(take(two)), ["c"], "claimed when the last has completed")
