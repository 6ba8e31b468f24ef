"""Exchanging: an update and a claim in one step, in stores that can do that."""

from __future__ import annotations

from dtq.errors import InvalidTask
from dtq.stores.protocol import Store
from dtq.task.model import Task
from dtq.task.transitions import cancel, release
from dtq.testing.conformance.kit import (
    NOW,
    Subject,
    broken,
    done,
    end,
    everything,
    exchange,
    exchanging,
    expect,
    ids,
    job,
    jobs,
    promise,
    refused,
    start,
    statuses,
    the,
)


def _named(exchanged: tuple[set[str], list[Task]]) -> tuple[set[str], list[str]]:
    accepted, tasks = exchanged
    return accepted, ids(tasks)


@promise("exchange")
def check_an_exchange_claims_what_its_update_lets_run(store: Store) -> None:
    """The claim of an exchange finds the children that its update unblocks, and the tasks that it puts back."""
    exchanging(store).add([job("a"), job("b"), job("c", after=("a",)), job("d", after=("b",)), job("e", type="mail")])
    a, b = start(store, "a b")
    expect(_named(exchange(store, done(a), release(b))), ({"a", "b"}, ["b", "c"]), "accepted and claimed")
    expect([the(store, id).attempts for id in "bc"], [1, 1], "attempts")
    expect(statuses(store, "a b c d e"), ["completed", "processing", "processing", "blocked", "pending"], "statuses")


@promise("exchange")
def check_an_exchange_claims_successors(store: Store) -> None:
    """The claim of an exchange finds the successors that its update adds, also those that wait for a task that ends."""
    exchanging(store).add([job("a")])
    (task,) = start(store, "a")
    accepted, tasks = exchange(store, (done(task), [job("b", payload="x"), job("c", after=("a",))]))
    expect((accepted, [(task.id, task.payload) for task in tasks]), ({"a"}, [("b", "x"), ("c", None)]), "exchanged")
    expect(end(store, *map(done, tasks)), {"b", "c"}, "accepted of what was claimed")


@promise("exchange")
def check_an_exchange_ends_what_it_has_doomed(store: Store) -> None:
    """The children of a parent that fails in an exchange are claimed by it, marked, and without an attempt."""
    exchanging(store).add([job("a"), job("b", after=("a",))])
    (task,) = start(store, "a")
    expect(_named(exchange(store, broken(task))), ({"a"}, ["b"]), "accepted and claimed")
    child = the(store, "b")
    expect((bool(child.doom), child.attempts), (True, 0), "whether it is doomed, attempts")


@promise("exchange")
def check_an_exchange_frees_the_place_of_what_has_ended(store: Store) -> None:
    """A task that ends in an exchange leaves its place under a limit to the next one."""
    exchanging(store).set_lane(type="job", max_running=1)
    store.add(jobs("a b c"))
    (task,) = start(store, "a")
    expect(_named(exchange(store)), (set(), []), "accepted and claimed while the limit is reached")
    expect(_named(exchange(store, done(task))), ({"a"}, ["b"]), "accepted and claimed")


@promise("exchange")
def check_an_exchange_judges_and_limits_as_its_parts_do(store: Store) -> None:
    """An exchange refuses late outcomes, and claims even if it accepts none, up to n tasks."""
    exchanging(store).add(jobs("a b c d"))
    a, b = start(store, "a b", n=2)
    end(store, cancel(a, NOW))
    expect(_named(exchange(store, done(a), done(b), n=1)), ({"b"}, ["c"]), "accepted and claimed")
    expect(_named(exchange(store, done(a), done(b), n=0)), (set(), []), "accepted the second time, and claimed")
    expect(_named(exchange(store)), (set(), ["d"]), "accepted of nothing, and claimed")


@promise("exchange")
def check_an_exchange_that_raises_has_done_nothing(store: Store) -> None:
    """If a successor is refused with an error, nothing is stored and nothing is claimed."""
    exchanging(store).add(jobs("a b"))
    (a,) = start(store, "a", n=1)
    bad = (done(a), [job("c", after=("missing",))])
    refused(InvalidTask, "exchange with an unknown parent", lambda: exchange(store, bad))
    expect([task.id for task in everything(store)], ["a", "b"], "tasks in the store")
    expect(_named(exchange(store, done(a))), ({"a"}, ["b"]), "accepted and claimed")


@promise("exchange", twice=True)
def check_an_exchange_survives_a_crash(subject: Subject) -> None:
    """After a crash, an exchange has happened as a whole."""
    store = subject.open()
    exchanging(store).add(jobs("a b"))
    (a,) = start(store, "a", n=1)
    expect(_named(exchange(store, done(a), n=1)), ({"a"}, ["b"]), "accepted and claimed")
    subject.crash(store)
    store = subject.open()
    expect(statuses(store, "a b"), ["completed", "processing"], "statuses")
    expect(end(store, done(the(store, "b"))), {"b"}, "accepted after the crash")


@promise("exchange")
def check_an_exchange_may_be_about_hundreds_of_tasks(store: Store) -> None:
    """An exchange may end and claim more tasks than a store handles in one step."""
    names = [f"t{n:03}" for n in range(600)]
    exchanging(store).add([job(name) for name in names])
    claimed = start(store, " ".join(names[:300]), n=300)
    expect(_named(exchange(store, *map(done, claimed), n=300)), (set(names[:300]), names[300:]), "accepted and claimed")
