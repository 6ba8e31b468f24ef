"""Waits, threads and crashes: what holds beside other threads and processes, and after a crash."""

from __future__ import annotations

import select
import threading
from collections import Counter
from collections.abc import Callable
from itertools import takewhile

from dtq.stores.protocol import Node, Store
from dtq.task.transitions import cancel, succeed
from dtq.testing.conformance.kit import (
    LEASE,
    NOW,
    Subject,
    done,
    end,
    everything,
    expect,
    filled,
    ids,
    job,
    jobs,
    promise,
    reap,
    settle,
    start,
    statuses,
    take,
)


@promise("waiting")
def check_wait_hears_of_an_add(store: Store) -> None:
    """After an add, wait returns True; once nothing more happens, it soon returns False."""
    settle(store)
    store.add([job("a")])
    expect(store.wait(0), True, "wait(0) after an add")
    settle(store)


@promise("waiting")
def check_the_descriptor_can_be_selected(store: Store) -> None:
    """fileno returns a descriptor that a selector accepts."""
    settle(store)
    expect(len(select.select([store.fileno()], [], [], 0)), 3, "lists from select")


@promise("waiting", twice=True)
def check_another_process_is_woken(subject: Subject) -> None:
    """An add in another process ends a wait within a second, and makes the descriptor readable."""
    one, two = subject.open(), subject.open()
    settle(two)
    one.add([job("a")])
    readable, _, _ = select.select([two.fileno()], [], [], 1.0)
    expect(len(readable), 1, "descriptors that are readable")
    expect(two.wait(1.0), True, "wait")
    expect(ids(take(two)), ["a"], "claimed there")


@promise("waiting")
def check_closing_twice_is_harmless(store: Store) -> None:
    """Closing a closed store does nothing."""
    store.add([job("a")])
    store.close()
    store.close()


def _in_threads(n: int, work: Callable[[int], list[str]]) -> list[str]:
    """What n threads give together that all start at the same moment."""
    results: list[str] = []
    errors: list[Exception] = []
    start = threading.Barrier(n)

    def body(number: int) -> None:
        start.wait()
        try:
            results.extend(work(number))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=body, args=(number,)) for number in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results


@promise("threads")
def check_eight_threads_claim_each_task_once(store: Store) -> None:
    """When many threads claim at the same time, exactly one of them gets each task."""
    added = store.add([job(f"t{n:03}") for n in range(500)])

    def work(number: int) -> list[str]:
        claims = (take(store, 7, worker=f"w{number}") for _ in range(100))
        return [task.id for tasks in takewhile(bool, claims) for task in tasks]

    claimed = _in_threads(8, work)
    twice = [id for id, n in Counter(claimed).items() if n > 1]
    expect((twice, sorted(set(added) - set(claimed))), ([], []), "tasks that were given twice, and never")


@promise("threads")
def check_eight_threads_add_at_once(store: Store) -> None:
    """When many threads add at the same time, nothing is lost, and each key is stored once."""

    def work(number: int) -> list[str]:
        return [id for n in range(5) for id in store.add([job(f"t{number}{n}"), job(f"k{number}{n}", key=f"key{n}")])]

    given = _in_threads(8, work)
    expect(len({id for id in given if id.startswith("t")}), 40, "different ids for tasks without a key")
    expect(len({id for id in given if id.startswith("k")}), 5, "different ids for 5 keys")
    expect((len(everything(store)), store.stats().counts["pending"]), (45, 45), "tasks stored, and counted")


@promise("threads")
def check_of_eight_outcomes_at_once_one_is_accepted(store: Store) -> None:
    """When many threads submit outcomes of the same version, one is accepted, with its successor."""
    store.add(jobs("a b c"))
    tasks = start(store, "a b c")

    def work(number: int) -> list[str]:
        outcomes = [(succeed(task, number, NOW), [job(f"next-{task.id}-{number}")]) for task in tasks]
        return sorted(id for outcome in outcomes for id in store.update([outcome]))

    expect(sorted(_in_threads(8, work)), ["a", "b", "c"], "accepted by all threads together")
    expect(store.stats().counts["pending"], 3, "successors")


@promise("durable", twice=True)
def check_what_was_added_survives_a_crash(subject: Subject) -> None:
    """After a kill -9, every acknowledged task is there, with its key, its place and its count."""
    store = subject.open()
    store.add([job("a", payload={"n": 1}), job("b", key="k", priority=5), job("c", after=("a",))])
    before = everything(store)
    subject.crash(store)
    store = subject.open()
    expect(everything(store), before, "tasks")
    expect(filled(store.stats().counts), {"pending": 2, "blocked": 1}, "counts")
    expect(store.add([job("d", key="k")]), ["b"], "id for the key")
    expect(ids(take(store)), ["b", "a"], "order")


@promise("durable", twice=True)
def check_what_was_claimed_survives_a_crash(subject: Subject) -> None:
    """After a kill -9, a claimed task is taken over in a new version, not claimed as if it were new."""
    store = subject.open()
    store.heartbeat(Node("w1"), [], LEASE, NOW)
    store.add(jobs("a b"))
    (task,) = start(store, "a", n=1)
    subject.crash(store)
    store = subject.open()
    expect(ids(take(store, worker="w2", now=NOW + 9)), ["b"], "claimed")
    (reaped,) = reap(store, "a", NOW + LEASE)
    expect((reaped.id, reaped.version, reaped.attempts), ("a", 3, 1), "id, version, attempts of the one taken over")
    expect(end(store, done(task)), set(), "accepted from before the crash")


@promise("durable", twice=True)
def check_what_was_accepted_survives_a_crash(subject: Subject) -> None:
    """An accepted outcome, its successors and unblocked children survive a kill -9, and it is not accepted again."""
    store = subject.open()
    store.add([job("a"), job("b", after=("a",))])
    (task,) = start(store, "a")
    store.update([(succeed(task, {"x": 1}, NOW), [job("c", payload=2)])])
    before = everything(store)
    subject.crash(store)
    store = subject.open()
    expect(everything(store), before, "tasks")
    expect(end(store, done(task)), set(), "accepted again")
    expect(filled(store.stats().counts), {"completed": 1, "pending": 2}, "counts")
    expect(sorted(ids(take(store))), ["b", "c"], "claimed")


@promise("durable", twice=True)
def check_dependencies_survive_a_crash(subject: Subject) -> None:
    """After a kill -9, a child with several parents still waits for the same ones."""
    store = subject.open()
    store.add([*jobs("p q"), job("c", after=("p", "q"))])
    p, q = start(store, "p q")
    end(store, done(p))
    subject.crash(store)
    store = subject.open()
    expect(statuses(store, "c"), ["blocked"], "status")
    expect(end(store, done(q)), {"q"}, "accepted")
    expect(ids(take(store)), ["c"], "claimed")


@promise("durable", twice=True)
def check_limits_survive_a_crash(subject: Subject) -> None:
    """After a kill -9, pauses, rates and the next opening of a rate are the same."""
    store = subject.open()
    store.set_lane(type="mail", paused=True)
    store.set_lane(type="job", rate=0.1)
    store.add([job("m", type="mail"), *jobs("a b")])
    take(store, types={"job", "mail"})
    subject.crash(store)
    store = subject.open()
    got = [ids(take(store, now=NOW + t, types={"job", "mail"})) for t in (1, 10)]
    expect(got, [[], ["b"]], "claimed after 1 and 10 s")


@promise("durable", twice=True)
def check_whose_turn_it_is_survives_a_crash(subject: Subject) -> None:
    """The order in which limit keys take turns is shared by all processes, and survives a kill -9."""
    store, other = subject.open(), subject.open()
    store.add([job(f"{key}{n}", limit_key=key) for key in "xy" for n in range(3)])
    start(store, "x0", n=1)
    start(other, "y0", n=1)
    start(store, "x1", n=1)
    subject.crash(store)
    start(subject.open(), "y1", n=1)


@promise("durable", twice=True)
def check_two_processes_see_the_same(subject: Subject) -> None:
    """A process sees at once what another has stored, and no task is claimed by both."""
    one, two = subject.open(), subject.open()
    one.add(jobs("a b c d"))
    expect(ids(everything(two)), ["a", "b", "c", "d"], "tasks seen by the other")
    first, second = take(one, 2), take(two, 4, worker="w2")
    expect((ids(first), ids(second)), (["a", "b"], ["c", "d"]), "claimed by the one, and by the other")
    expect(end(two, *(cancel(task, NOW) for task in first)), {"a", "b"}, "cancelled by the other")
    expect(end(one, *map(done, first)), set(), "accepted from the one")
    two.set_lane(type="job", paused=True)
    one.add([job("e")])
    expect(ids(take(one)), [], "claimed when the other has paused the lane")
