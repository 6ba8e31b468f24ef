"""Conformance: the behaviour that every Store must show, as small checks that need no test framework.

    from dtq import conformance
    conformance.run(MemoryStore)                              every check, each on a store of its own
    conformance.run(MemoryStore, conformance.group("leases"))

Each `check_*` function states its promise in its docstring and breaks it down into calls of `expect`. Time is made up:
it starts at NOW and moves when a check says so. A check that looks at the same data twice (another process, the time
after a crash) takes a Subject instead of a store; where a store cannot be looked at twice, it is skipped.
"""

from __future__ import annotations

import contextlib
import random
import select
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Literal

from msgspec.structs import replace

from dtq.errors import DTQError, InvalidTask
from dtq.limits import Limit
from dtq.stores import Node, Store
from dtq.task import Attempt, ErrorInfo, Task, Webhook, cancel, end_doomed, fail, interrupt, release, revive, succeed

NOW = 1000.0
LEASE = 30.0


# --- running checks ---------------------------------------------------------------------------------------------------


class Broken(AssertionError):
    """A promise was not kept; the message says what was expected, and what came."""


class Skipped(Exception):
    """The check asks for something that this store cannot do at all."""


class Subject:
    """One body of data and the ways to look at it: `opener` opens a store on it, `crasher` ends one as kill -9 does."""

    def __init__(self, opener: Callable[[], Store], crasher: Callable[[Any], None] | None = None) -> None:
        self._opener = opener
        self._crasher = crasher
        self._opened: list[Store] = []

    def open(self) -> Store:
        self._opened.append(self._opener())
        return self._opened[-1]

    def crash(self, store: Store) -> None:
        if self._crasher is None:
            raise Skipped("this store cannot be crashed")
        self._opened.remove(store)
        self._crasher(store)

    def close(self) -> None:
        for store in self._opened:
            store.close()


class _Alone(Subject):
    """A store that nobody else can open, and that dies with its process."""

    def open(self) -> Store:
        if self._opened:
            raise Skipped("this store lives in one process only")
        return super().open()


Make = Callable[[], Store | Subject]
Body = Callable[[Any], None]


@dataclass(frozen=True)
class Check:
    """One promise. `name` is that of its function without `check_`; with `twice`, the body takes the subject itself."""

    name: str
    group: str
    promise: str
    body: Body
    twice: bool

    def perform(self, make: Make) -> None:
        """Raises Broken where the promise is not kept, Skipped where it cannot be asked, and what the store raises."""
        made = make()
        subject = made if isinstance(made, Subject) else _Alone(lambda: made)
        with contextlib.closing(subject):
            self.body(subject if self.twice else subject.open())


@dataclass(frozen=True)
class Result:
    """What became of one check. `detail` says what was expected and what came, or why it was skipped."""

    name: str
    group: str
    promise: str
    status: Literal["passed", "failed", "skipped"]
    detail: str = ""


CHECKS: list[Check] = []


def promise(group: str, *, twice: bool = False) -> Callable[[Body], Body]:
    """Enters the function that follows among the CHECKS."""

    def enter(body: Body) -> Body:
        CHECKS.append(Check(body.__name__.removeprefix("check_"), group, body.__doc__ or "", body, twice))
        return body

    return enter


def group(*names: str) -> list[Check]:
    """The checks of these groups."""
    return [check for check in CHECKS if check.group in names]


def run(make: Make, checks: Iterable[Check] = CHECKS) -> list[Result]:
    """The result of each check, on what `make` gives for it: an empty store, or the Subject of one. All are closed."""
    return [_result(check, make) for check in checks]


def _result(check: Check, make: Make) -> Result:
    status, detail = _outcome(check, make)
    return Result(check.name, check.group, check.promise, status, detail)


def _outcome(check: Check, make: Make) -> tuple[Literal["passed", "failed", "skipped"], str]:
    try:
        check.perform(make)
    except Skipped as reason:
        return "skipped", str(reason)
    except Broken as difference:
        return "failed", str(difference)
    except Exception as error:
        return "failed", f"raised {type(error).__name__}: {error}"
    return "passed", ""


# --- words for the checks ---------------------------------------------------------------------------------------------


def expect(got: object, wanted: object, what: str) -> None:
    if got != wanted:
        raise Broken(f"{what}: expected {wanted!r}, got {got!r}")


def refused(error: type[DTQError], what: str, call: Callable[[], object]) -> None:
    """The call must raise the error."""
    try:
        got = call()
    except error:
        return
    raise Broken(f"{what}: expected {error.__name__}, got {got!r}")


def job(id: str, **options: Any) -> Task:
    return Task(**{"id": id, "type": "job", **options})


def jobs(ids: str, **options: Any) -> list[Task]:
    return [job(id, **options) for id in ids.split()]


def take(store: Store, n: int = 100, now: float = NOW, worker: str = "w1", **options: Any) -> list[Task]:
    return store.claim(worker, n, LEASE, now, options.pop("types", {"job"}), **options)


def start(store: Store, wanted: str, now: float = NOW, **options: Any) -> list[Task]:
    """Claims what can be had, which must be these tasks in this order."""
    tasks = take(store, now=now, **options)
    expect(ids(tasks), wanted.split(), "claimed")
    return tasks


def reap(store: Store, wanted: str, now: float) -> list[Task]:
    """Takes over, for the worker w2, what can be had, which must be this task."""
    tasks = store.reap("w2", 10, LEASE, now)
    expect(ids(tasks), [wanted], "reaped")
    return tasks


def end(store: Store, *tasks: Task) -> set[str]:
    """Hands in these tasks, as a transition made them, without successors."""
    return store.update([(task, ()) for task in tasks])


def done(task: Task, now: float = NOW) -> Task:
    return succeed(task, None, now)


def broken(task: Task, now: float = NOW) -> Task:
    return fail(task, ErrorInfo("ValueError"), now, lambda: 0.0, final=True)


def the(store: Store, id: str) -> Task:
    """The stored task of this id."""
    found = store.get([id])
    expect(ids(found), [id], f"get([{id!r}])")
    return found[0]


def ids(tasks: Iterable[Task]) -> list[str]:
    return [task.id for task in tasks]


def statuses(store: Store, ids: str) -> list[str]:
    return [str(task.status) for task in store.get(ids.split())]


def everything(store: Store) -> list[Task]:
    """All tasks, page by page."""
    tasks: list[Task] = []
    while page := store.find(after=(last := tasks[-1].id if tasks else "")):
        expect([id for id in ids(page) if id <= last], [], f"ids that are not behind {last!r} on its next page")
        tasks += page
    return tasks


def settle(store: Store) -> None:
    """Takes away the hints that are still under way."""
    for _ in range(100):
        if not store.wait(0):
            return
    raise Broken("wait(0) when nothing happens: expected False, got True 100 times")


# --- add --------------------------------------------------------------------------------------------------------------


@promise("add")
def check_ids_come_back_in_order(store: Store) -> None:
    """add gives the ids of the tasks, in the order in which they were given."""
    expect(store.add(jobs("c a b")), ["c", "a", "b"], "ids")
    expect(store.add([]), [], "ids of no tasks")


@promise("add")
def check_a_new_task_is_pending_at_version_1(store: Store) -> None:
    """A task that waits for nothing is stored as pending, at version 1."""
    store.add([job("a")])
    expect((str(the(store, "a").status), the(store, "a").version), ("pending", 1), "status and version")


@promise("add")
def check_a_taken_id_gives_the_task_that_has_it(store: Store) -> None:
    """Adding an id again changes nothing and gives the same id."""
    store.add([job("a", payload="first")])
    expect(store.add([job("a", payload="second"), job("b")]), ["a", "b"], "ids")
    expect(the(store, "a").payload, "first", "payload of the task that was there")
    expect(store.stats().counts["pending"], 2, "pending tasks")


@promise("add")
def check_a_taken_key_gives_the_task_that_has_it(store: Store) -> None:
    """Adding a key again stores nothing and gives the id of the task that has the key."""
    store.add([job("a", key="order-1")])
    expect(store.add([job("b", key="order-1"), job("c", key="order-2")]), ["a", "c"], "ids")
    expect(store.get(["b"]), [], "the task that was not stored")


@promise("add")
def check_a_key_is_held_beyond_the_end_of_its_task(store: Store) -> None:
    """A finished task still holds its key: what was done once is not done again."""
    store.add([job("a", key="order-1")])
    end(store, *map(done, take(store)))
    expect(store.add([job("b", key="order-1")]), ["a"], "ids")
    expect(ids(take(store)), [], "claimed")


@promise("add")
def check_ids_and_keys_are_taken_within_one_call_too(store: Store) -> None:
    """Of several tasks with the same id or key in one call, the first is stored and stands for all."""
    expect(store.add([job("a", key="k"), job("b", key="k"), job("a"), job("c")]), ["a", "a", "a", "c"], "ids")
    expect(ids(take(store)), ["a", "c"], "claimed")


@promise("add")
def check_an_unknown_parent_is_refused_and_nothing_stored(store: Store) -> None:
    """A task that names an unknown parent is InvalidTask, and the call stores none of its tasks."""
    refused(
        InvalidTask, "add with an unknown parent", lambda: store.add([job("a", key="k"), job("b", after=("nobody",))])
    )
    expect(everything(store), [], "tasks in the store")
    expect(store.add([job("c", key="k")]), ["c"], "ids of a later call with the same key")


@promise("add")
def check_a_payload_comes_back_as_it_was(store: Store) -> None:
    """Text in all scripts, nesting, large and small numbers, true, false and null survive the store."""
    payload = {
        "text": "naïve 漢字 🎉 \"quoted\" 'single' \\ \x00 \u2028 \n", "": [],
        "no": None, "yes": True, "list": [[1, [2, {}]], "x"],
        "whole": [2**53 + 1, 2**63 - 1, -(2**63), 0, -1], "real": [0.1, 1e308, 5e-324, -0.5],
    }  # fmt: skip
    store.add([job("a", payload=payload)])
    expect(the(store, "a").payload, payload, "payload from get")
    expect(take(store)[0].payload, payload, "payload from claim")


@promise("add")
def check_an_empty_payload_is_not_a_missing_one(store: Store) -> None:
    """None, False, 0, empty text, list and object come back as themselves."""
    payloads: dict[str, Any] = {"a": None, "b": False, "c": 0, "d": "", "e": [], "f": {}}
    store.add([job(id, payload=payload) for id, payload in payloads.items()])
    expect(repr({task.id: task.payload for task in store.get(payloads)}), repr(payloads), "payloads")


@promise("add")
def check_all_options_come_back(store: Store) -> None:
    """Every option of a task is kept."""
    webhook = Webhook("https://example.org/hook", ("failed",), "main")
    task = job(
        "a", type="mail.send", queue="q:1", priority=-7, max_attempts=9, timeout=1.5, retry_delay=0.25,
        retry_backoff="linear", retry_jitter=0.5, retry_cap=77.0, key="k €", limit_key="tenant ü", after=("p",), on_parent_failure="run",
        expires=NOW + 9, webhook=webhook, run_at=NOW + 0.125, created_at=NOW - 0.5,
    )  # fmt: skip
    store.add([job("p"), task])
    expect(the(store, "a"), replace(task, status="blocked", version=1), "task from get")


# --- claim ------------------------------------------------------------------------------------------------------------


@promise("claim")
def check_a_claimed_task_says_who_has_it_and_until_when(store: Store) -> None:
    """A claim makes a task processing, counts version and attempt, and writes down worker, start and lease."""
    store.add([job("a")])
    (task,) = start(store, "a", now=NOW + 5, worker="w7")
    wanted = ("processing", 2, 1, "w7", NOW + 5, NOW + 5 + LEASE)
    got = (str(task.status), task.version, task.attempts, task.worker, task.started_at, task.lease_until)
    expect(got, wanted, "status, version, attempts, worker, started_at, lease_until")
    expect(the(store, "a"), task, "the stored task")


@promise("claim")
def check_no_task_is_given_twice(store: Store) -> None:
    """What one worker has claimed, nobody else gets."""
    store.add(jobs("a b c"))
    expect(ids(take(store, 2)), ["a", "b"], "first claim")
    expect(ids(take(store, 2, worker="w2")), ["c"], "second claim")
    expect(ids(take(store, 2)), [], "third claim")


@promise("claim")
def check_a_claim_takes_at_most_n(store: Store) -> None:
    """A claim takes no more tasks than it was asked for; of 0, none."""
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
    """A worker that names queues gets only tasks of those; one that names none, of all."""
    store.add([job("a"), job("b", queue="fast"), job("c", queue="slow"), job("d", queue="night")])
    expect(ids(take(store, queues=["fast", "slow"])), ["b", "c"], "claimed of two queues")
    expect(ids(take(store)), ["a", "d"], "claimed of all")


@promise("claim")
def check_only_the_priority_asked_for(store: Store) -> None:
    """A worker that names a lowest priority gets nothing below it."""
    store.add([job("a"), job("b", priority=5), job("c", priority=-5)])
    expect(ids(take(store, min_priority=1)), ["b"], "claimed from 1 up")
    expect(ids(take(store, min_priority=-5)), ["a", "c"], "claimed from -5 up")


@promise("claim")
def check_nothing_before_it_is_due(store: Store) -> None:
    """A task is claimed from its `run_at` on, and not before."""
    store.add([job("a", run_at=NOW + 10), job("b", run_at=NOW - 10)])
    expect(ids(take(store)), ["b"], "claimed now")
    expect(ids(take(store, now=NOW + 9.99)), [], "claimed just before")
    expect(ids(take(store, now=NOW + 10)), ["a"], "claimed when due")


@promise("claim")
def check_the_order_is_priority_then_due_time_then_insertion(store: Store) -> None:
    """Higher priority first, then what was due earlier, then what was added earlier."""
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
    """What comes due while others wait already goes behind those that were due earlier."""
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
    """Blocked, scheduled and retrying tasks expire as well; one that is running does not."""
    store.add([job("run"), job("retry", expires=NOW + 5, retry_delay=100)])
    running, retrying = start(store, "run retry")
    end(store, replace(running, expires=NOW + 5), fail(retrying, ErrorInfo("OSError"), NOW, lambda: 0.0))
    store.add([job("blocked", after=("run",), expires=NOW + 5), job("later", run_at=NOW + 99, expires=NOW + 5)])
    expect(sorted(ids(take(store, now=NOW + 4))), [], "claimed before")
    expect(sorted(ids(take(store, now=NOW + 5))), ["blocked", "later", "retry"], "claimed as expired")


@promise("claim")
def check_the_doomed_come_first_and_pass_every_limit(store: Store) -> None:
    """Doomed tasks come before all others, even from a paused lane, and count for no rate."""
    store.set_lane(type="job", paused=True)
    store.set_lane(queue="default", rate=0.001)
    store.add([job("high", type="mail", priority=9), job("old", expires=NOW), job("older", expires=NOW - 1)])
    claimed = take(store, types={"job", "mail"})
    expect([sorted(ids(claimed[:2])), ids(claimed[2:])], [["old", "older"], ["high"]], "the doomed, and who comes next")


@promise("claim")
def check_the_doomed_go_only_where_their_type_runs(store: Store) -> None:
    """Types, queues and n hold for doomed tasks too."""
    store.add(
        [job("a", expires=NOW), job("b", expires=NOW, type="mail"), job("c", expires=NOW, queue="q"), *jobs("d e")]
    )
    expect(ids(take(store, types={"mail"})), ["b"], "claimed for another type")
    expect(ids(take(store, queues=["q"])), ["c"], "claimed for another queue")
    expect(ids(take(store, 2)), ["a", "d"], "claim of 2")


# --- update -----------------------------------------------------------------------------------------------------------


@promise("update")
def check_an_outcome_is_accepted_once(store: Store) -> None:
    """An outcome of the claimed version is stored one version later; the same one again is refused."""
    store.add([job("a")])
    (task,) = start(store, "a")
    expect(end(store, succeed(task, 42, NOW)), {"a"}, "accepted")
    expect(end(store, succeed(task, 43, NOW)), set(), "accepted the second time")
    expect(end(store), set(), "accepted of nothing")
    stored = the(store, "a")
    expect((str(stored.status), stored.result, stored.version), ("completed", 42, 3), "status, result, version")


@promise("update")
def check_a_late_result_cannot_overwrite_a_newer_one(store: Store) -> None:
    """An outcome of any other version than the stored one leaves everything as it is."""
    store.add([job("a")])
    (task,) = start(store, "a")
    end(store, cancel(task, NOW))
    before = the(store, "a")
    ahead = [replace(done(task), version=version) for version in (0, 1, 2, 4, 99)]
    expect([end(store, outcome) for outcome in ahead], [set()] * 5, "accepted for versions 0, 1, 2, 4 and 99 of 3")
    expect(the(store, "a"), before, "the stored task")


@promise("update")
def check_an_outcome_of_an_unknown_task_is_refused(store: Store) -> None:
    """An outcome whose task is not in the store is refused and stores nothing."""
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
    """Status, times, attempts, error, history, result, progress, note and log come back as the transition made them."""
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
    """An outcome changes how far a task is, never its type, queue, payload, key or options."""
    store.add([job("a", payload=1, key="k", limit_key="t")])
    (task,) = start(store, "a")
    changed = replace(
        done(task), type="other", queue="q", payload=2, key=None, limit_key="x", timeout=1.0, max_attempts=1
    )
    expect(end(store, changed), {"a"}, "accepted")
    expect(the(store, "a"), replace(done(task), version=3), "the stored task")


@promise("update")
def check_successors_are_added_with_an_accepted_outcome(store: Store) -> None:
    """The successors of an accepted outcome are stored in the same step, even such as wait for the task itself."""
    store.add([job("a")])
    (task,) = start(store, "a")
    store.update([(done(task), [job("b", after=("a",)), job("c", payload="x", after=("b",))])])
    expect(statuses(store, "a b c"), ["completed", "pending", "blocked"], "statuses")
    expect((the(store, "c").payload, the(store, "c").version), ("x", 1), "payload and version of the second successor")


@promise("update")
def check_successors_of_a_refused_outcome_are_not_added(store: Store) -> None:
    """A stale outcome plants nothing, not even an error."""
    store.add([job("a")])
    (task,) = start(store, "a")
    end(store, cancel(task, NOW))
    expect(store.update([(done(task), [job("b"), job("c", after=("nobody",))])]), set(), "accepted")
    expect(ids(everything(store)), ["a"], "tasks in the store")


@promise("update")
def check_a_successor_whose_id_is_taken_is_not_doubled(store: Store) -> None:
    """A successor that is in the store already, by id or by key, stays the task that it was."""
    store.add([job("a"), job("b", type="mail", payload="old"), job("c", type="mail", key="k")])
    (task,) = start(store, "a")
    expect(store.update([(done(task), [job("b", payload="new"), job("d", key="k")])]), {"a"}, "accepted")
    expect(ids(everything(store)), ["a", "b", "c"], "tasks in the store")
    expect(the(store, "b").payload, "old", "payload")


@promise("update")
def check_an_update_that_raises_has_done_nothing(store: Store) -> None:
    """Where a successor cannot be accepted, no part of the call has happened, and it can be made again."""
    store.add(jobs("a b"))
    a, b = start(store, "a b")
    bad = [(done(a), [job("c")]), (done(b), [job("d", after=("nobody",))])]
    refused(InvalidTask, "update with an unknown parent", lambda: store.update(bad))
    expect(everything(store), [a, b], "tasks in the store")
    expect(end(store, done(a), done(b)), {"a", "b"}, "accepted without the bad successor")


@promise("update")
def check_a_new_priority_changes_the_order(store: Store) -> None:
    """A waiting task may be given another priority or time; its place follows, and it is claimed once."""
    store.add(jobs("a b c d"))
    take(store, 1)
    b, d = store.get(["b", "d"])
    expect(end(store, replace(d, priority=5), replace(b, run_at=NOW + 50)), {"b", "d"}, "accepted")
    expect(ids(take(store)), ["d", "c"], "order")
    expect(ids(take(store, now=NOW + 50)), ["b"], "claimed later")


@promise("update")
def check_a_cancelled_task_is_not_claimed(store: Store) -> None:
    """A task that is cancelled while it waits, is scheduled or is blocked never starts."""
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
    """A task that was claimed and not started goes back, with its attempt, to where it stood in the order."""
    store.add(jobs("a b c"))
    a, _ = start(store, "a b", n=2)
    end(store, release(a))
    expect([(task.id, task.attempts) for task in take(store)], [("a", 1), ("c", 1)], "ids and attempts")


# --- dependencies -----------------------------------------------------------------------------------------------------


@promise("dependencies")
def check_a_child_waits_for_its_parent(store: Store) -> None:
    """A task is blocked while its parent is not terminal, and pending as soon as it has completed."""
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
    """A task with several parents starts when all of them have ended, whatever the order."""
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
    """A call may add a child before its parent; the child waits all the same."""
    expect(store.add([job("c", after=("b",)), job("b", after=("a",)), job("a")]), ["c", "b", "a"], "ids")
    for id in "abc":
        tasks = take(store)
        expect(ids(tasks), [id], "claimed")
        end(store, *map(done, tasks))


@promise("dependencies")
def check_a_parent_whose_key_is_taken_is_waited_for_in_its_stand_in(store: Store) -> None:
    """Where a parent is not stored because its key is taken, a child of the same call waits for the one that has it."""
    store.add([job("a", key="k")])
    expect(store.add([job("c", after=("b",)), job("b", key="k")]), ["c", "a"], "ids")
    expect(statuses(store, "c"), ["blocked"], "status of the child")
    end(store, *map(done, take(store)))
    expect(ids(take(store)), ["c"], "claimed when the stand-in has completed")


@promise("dependencies")
def check_a_finished_parent_does_not_block(store: Store) -> None:
    """A child that is added after its parent has completed is pending at once."""
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
    """A child that is added after its parent has failed comes out of the next claim, doomed."""
    store.add(jobs("p q"))
    p, _ = start(store, "p q")
    end(store, broken(p))
    store.add([job("c", after=("q", "p"))])
    expect([(task.id, bool(task.doom), task.attempts) for task in take(store)], [("c", True, 0)], "id, doom, attempts")


@promise("dependencies")
def check_doom_goes_down_the_line(store: Store) -> None:
    """When a doomed child is ended, its own children are doomed in turn."""
    store.add([job("p"), job("c", after=("p",)), job("d", after=("c",))])
    end(store, *map(broken, take(store)))
    for id in "cd":
        (task,) = start(store, id)
        expect((task.id, bool(task.doom)), (id, True), "id and doom")
        end(store, end_doomed(task, NOW))
    expect(store.stats().counts["failed"], 3, "failed tasks")


@promise("dependencies")
def check_a_child_may_run_though_its_parent_failed(store: Store) -> None:
    """With on_parent_failure="run", a child starts when its parents have ended, however they did."""
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
    """What was decided about a blocked task is refused once it has been unblocked."""
    store.add([job("p"), job("c", after=("p",))])
    blocked = the(store, "c")
    end(store, *map(done, take(store)))
    expect(end(store, replace(blocked, priority=5)), set(), "accepted of the older version")
    expect(statuses(store, "c"), ["pending"], "status")


@promise("dependencies")
def check_a_blocked_task_may_be_changed(store: Store) -> None:
    """A new priority or time of a blocked task counts when it is unblocked."""
    store.add([job("p"), job("c", after=("p",)), job("d", after=("p",))])
    end(store, replace(the(store, "d"), priority=5))
    expect(statuses(store, "c d"), ["blocked", "blocked"], "statuses")
    end(store, *map(done, take(store)))
    expect(ids(take(store)), ["d", "c"], "order")


# --- leases -----------------------------------------------------------------------------------------------------------


@promise("leases")
def check_a_heartbeat_extends_the_lease(store: Store) -> None:
    """A task whose worker sends heartbeats is not taken over."""
    store.add([job("a")])
    held = take(store)
    expect(store.heartbeat(Node("w1"), held, LEASE, NOW + 20), set(), "lost")
    expect(the(store, "a").lease_until, NOW + 20 + LEASE, "lease_until")
    expect(ids(store.reap("w2", 10, LEASE, NOW + LEASE + 1)), [], "reaped after the first lease")
    expect(ids(store.reap("w2", 10, LEASE, NOW + 20 + LEASE)), ["a"], "reaped after the second")


@promise("leases")
def check_a_heartbeat_publishes_progress(store: Store) -> None:
    """Progress and note of a heartbeat can be seen at once, and the version stays: the outcome is still accepted."""
    store.add([job("a")])
    (task,) = start(store, "a")
    store.heartbeat(Node("w1"), [replace(task, progress=40.5, note="page 3: ü")], LEASE, NOW + 1)
    stored = the(store, "a")
    expect((stored.progress, stored.note, stored.version), (40.5, "page 3: ü", 2), "progress, note, version")
    expect(end(store, done(task)), {"a"}, "accepted")


@promise("leases")
def check_a_heartbeat_tells_what_is_lost(store: Store) -> None:
    """Tasks that were cancelled, finished, deleted or taken over come back from the heartbeat, and are left alone."""
    store.add(jobs("cancelled deleted finished kept reaped"))
    held = take(store)
    first, second, third, _, fifth = held
    end(store, cancel(first, NOW), cancel(second, NOW), done(third), release(fifth))
    store.delete(["deleted"])
    (reaped,) = start(store, "reaped", worker="w2")
    lost = store.heartbeat(Node("w1"), held, LEASE, NOW + 10)
    expect(sorted(lost), ["cancelled", "deleted", "finished", "reaped"], "lost")
    expect(the(store, "reaped"), reaped, "the task that somebody else has now")
    expect(
        store.heartbeat(Node("w2"), [replace(reaped, worker="w1")], LEASE, NOW), {"reaped"}, "lost by the wrong worker"
    )


@promise("leases")
def check_a_node_shows_itself_and_leaves(store: Store) -> None:
    """A node is in the statistics from its first heartbeat on, as it describes itself, until one with a lease of 0."""
    node = Node("w1", host="h", pid=7, started_at=NOW, workers=4, busy=1, types=("job", "mail"), metrics={"rss": 1.5})
    store.heartbeat(node, [], LEASE, NOW + 1)
    store.heartbeat(Node("w2", workers=2, busy=2), [], LEASE, NOW + 1)
    expect(sorted(node.id for node in store.stats().nodes), ["w1", "w2"], "nodes")
    expect([n for n in store.stats().nodes if n.id == "w1"], [replace(node, seen_at=NOW + 1)], "the first node")
    workers = store.stats().workers
    expect((workers.total, workers.active, workers.idle), (6, 3, 3), "workers: total, active, idle")
    store.heartbeat(replace(node, busy=3), [], LEASE, NOW + 2)
    expect(store.stats().workers.active, 5, "active workers after the next heartbeat")
    store.heartbeat(node, [], 0, NOW + 3)
    expect([node.id for node in store.stats().nodes], ["w2"], "nodes when one has left")


@promise("leases")
def check_only_an_expired_lease_is_reaped(store: Store) -> None:
    """A task is taken over when its lease has run out, not before, and only while it is processing."""
    store.add(jobs("a b c"))
    a, _ = start(store, "a b", n=2)
    end(store, done(a))
    expect(ids(store.reap("w2", 10, LEASE, NOW + LEASE - 0.01)), [], "reaped before the end of the lease")
    expect(ids(store.reap("w2", 10, LEASE, NOW + LEASE)), ["b"], "reaped at its end")
    expect(ids(store.reap("w3", 10, LEASE, NOW + LEASE + 1)), [], "reaped again")


@promise("leases")
def check_a_reaped_task_is_claimed_anew_without_an_attempt(store: Store) -> None:
    """Who takes over gets a new version and a lease of his own; the attempt is the one that was begun."""
    store.add([job("a")])
    (task,) = start(store, "a")
    reaped = store.reap("w2", 10, LEASE, NOW + 40)
    expect(reaped, [replace(task, version=3, worker="w2", lease_until=NOW + 40 + LEASE)], "reaped")
    expect(store.get(["a"]), reaped, "the stored task")
    expect(end(store, interrupt(reaped[0], NOW + 40)), {"a"}, "accepted from the new owner")
    expect(
        [(t.attempts, t.interruptions) for t in take(store, now=NOW + 41)],
        [(1, 1)],
        "attempts and interruptions, claimed again",
    )


@promise("leases")
def check_a_reap_takes_at_most_n(store: Store) -> None:
    """A reap takes no more than it was asked for; the others are left to the next."""
    store.add(jobs("a b c"))
    take(store)
    first = store.reap("w2", 2, LEASE, NOW + 50)
    second = store.reap("w3", 2, LEASE, NOW + 50)
    expect((len(first), len(second)), (2, 1), "tasks reaped by the first and by the second")
    expect(sorted(ids(first + second)), ["a", "b", "c"], "reaped")


@promise("leases")
def check_a_zombie_is_fenced(store: Store) -> None:
    """The outcome of a worker whose task was taken over is refused, and the new owner's is accepted."""
    store.add([job("a")])
    (task,) = start(store, "a")
    (reaped,) = reap(store, "a", NOW + 50)
    expect(end(store, succeed(task, "late", NOW + 51)), set(), "accepted from the old owner")
    expect(store.heartbeat(Node("w1"), [task], LEASE, NOW + 51), {"a"}, "lost by the old owner")
    expect(end(store, succeed(reaped, "new", NOW + 52)), {"a"}, "accepted from the new owner")
    expect(the(store, "a").result, "new", "result")


@promise("leases")
def check_nobody_reaps_himself_before_his_lease_ends(store: Store) -> None:
    """A worker's own tasks are safe from its own reap while the lease runs."""
    store.heartbeat(Node("w1"), [], LEASE, NOW)
    store.add([job("a")])
    take(store)
    expect(ids(store.reap("w1", 10, LEASE, NOW + 1)), [], "reaped")


@promise("leases", twice=True)
def check_the_tasks_of_a_live_node_are_left_alone(subject: Subject) -> None:
    """Another process does not take over what a live node holds, before its lease has run out."""
    one, two = subject.open(), subject.open()
    one.heartbeat(Node("w1"), [], LEASE, NOW)
    one.add([job("a")])
    (task,) = start(one, "a")
    expect(ids(two.reap("w2", 10, LEASE, NOW + 1)), [], "reaped")
    expect(end(one, done(task)), {"a"}, "accepted")


@promise("leases", twice=True)
def check_the_tasks_of_a_dead_node_are_taken_over_at_once(subject: Subject) -> None:
    """When a node is killed, others take over its tasks without waiting for the lease."""
    one, two = subject.open(), subject.open()
    for store, worker in ((one, "w1"), (two, "w2")):
        store.heartbeat(Node(worker), [], LEASE, NOW)
    one.add(jobs("a b c"))
    take(one, 2)
    take(two, 1, worker="w2")
    subject.crash(one)
    reaped = two.reap("w2", 10, LEASE, NOW + 1)
    expect(
        sorted((t.id, t.worker, t.attempts) for t in reaped), [("a", "w2", 1), ("b", "w2", 1)], "id, worker, attempts"
    )


@promise("leases", twice=True)
def check_a_dead_node_is_forgotten(subject: Subject) -> None:
    """A node that was killed is out of the statistics when nothing is left of it."""
    one, two = subject.open(), subject.open()
    one.heartbeat(Node("w1"), [], LEASE, NOW)
    two.heartbeat(Node("w2"), [], LEASE, NOW)
    one.add([job("a")])
    take(one)
    subject.crash(one)
    end(two, *(interrupt(task, NOW) for task in two.reap("w2", 10, LEASE, NOW + 1)))
    two.reap("w2", 10, LEASE, NOW + 2)
    expect([node.id for node in two.stats().nodes], ["w2"], "nodes")


@promise("leases", twice=True)
def check_closing_a_store_ends_its_nodes(subject: Subject) -> None:
    """The nodes that spoke through a store are gone when it is closed."""
    one, two = subject.open(), subject.open()
    one.heartbeat(Node("w1"), [], LEASE, NOW)
    two.heartbeat(Node("w2"), [], LEASE, NOW)
    one.close()
    expect([node.id for node in two.stats().nodes], ["w2"], "nodes")


# --- lanes ------------------------------------------------------------------------------------------------------------


@promise("lanes")
def check_a_paused_lane_is_not_served(store: Store) -> None:
    """A paused queue, type or key gives nothing out, all others go on; what runs already may end."""
    store.add([job("run", queue="q")])
    (running,) = start(store, "run")
    store.add([job("a", queue="q"), job("b", type="mail"), job("c", limit_key="t"), job("d")])
    for selector in ({"queue": "q"}, {"type": "mail"}, {"key": "t"}):
        store.set_lane(**selector, paused=True)  # type: ignore[arg-type]
    expect(ids(take(store, types={"job", "mail"})), ["d"], "claimed")
    expect(end(store, done(running)), {"run"}, "accepted from the paused queue")


@promise("lanes")
def check_a_resumed_lane_is_served_again(store: Store) -> None:
    """What waited in a paused lane comes when it is resumed, and waiting has cost no attempt."""
    store.set_lane(queue="default", paused=True)
    store.add([job("a"), job("b", priority=1)])
    expect(ids(take(store)), [], "claimed while paused")
    store.set_lane(queue="default", paused=False)
    expect([(task.id, task.attempts) for task in take(store)], [("b", 1), ("a", 1)], "ids and attempts")


@promise("lanes")
def check_a_pause_may_name_queue_and_type_together(store: Store) -> None:
    """A limit holds only for the lanes that fit all that it names."""
    store.set_lane(queue="q", type="mail", paused=True)
    store.add([job("a", queue="q"), job("b", type="mail"), job("c", queue="q", type="mail")])
    expect(sorted(ids(take(store, types={"job", "mail"}))), ["a", "b"], "claimed")


@promise("lanes")
def check_a_rate_spaces_the_starts(store: Store) -> None:
    """With a rate of 2 a second, a task starts every half second, however many are asked for."""
    store.set_lane(type="job", rate=2)
    store.add(jobs("a b c d"))
    got = [ids(take(store, now=NOW + t)) for t in (0, 0.3, 0.5, 0.9, 1.0)]
    expect(got, [["a"], [], ["b"], [], ["c"]], "claimed after 0, 0.3, 0.5, 0.9 and 1 s")


@promise("lanes")
def check_a_burst_is_exact_and_refills(store: Store) -> None:
    """After a pause, `burst` tasks may start at once, and no more, however long the pause; then the rate holds."""
    store.set_lane(type="job", rate=3, burst=5)
    store.add([job(f"{n:02}") for n in range(20)])
    got = [len(take(store, now=NOW + t)) for t in (0, 0, 1, 1, 100, 100 + 1 / 3)]
    expect(got, [5, 0, 3, 0, 5, 1], "tasks claimed after 0, 0, 1, 1, 100 and 100.33 s")


@promise("lanes")
def check_a_new_rate_counts_at_once(store: Store) -> None:
    """What was owed to an old rate does not delay the tasks of the new one."""
    store.set_lane(type="job", rate=0.001)
    store.add(jobs("a b c"))
    take(store)
    store.set_lane(type="job", rate=1)
    expect(ids(take(store, now=NOW + 1)), ["b"], "claimed a second later")
    store.set_lane(type="job", rate=0)
    expect(ids(take(store, now=NOW + 1)), ["c"], "claimed without a limit")


@promise("lanes")
def check_max_running_counts_over_all_its_lanes(store: Store) -> None:
    """A concurrency limit bounds what runs in all the lanes that it names, and opens when one has ended."""
    store.add([job("a", type="mail")])
    take(store, types={"mail"})
    store.set_lane(queue="default", max_running=3)
    store.add([*jobs("b c"), job("d", type="mail"), job("e", limit_key="t"), job("f", queue="q")])
    claimed = take(store, types={"job", "mail"})
    expect([len(claimed), "f" in ids(claimed)], [3, True], "number claimed, and whether the other queue was among them")
    end(store, done(the(store, "a")))
    expect(len(take(store, types={"job", "mail"})), 1, "number claimed when one has ended")


@promise("lanes")
def check_a_reaped_task_still_counts_as_running(store: Store) -> None:
    """A task that is taken over keeps its place under a concurrency limit, until it ends."""
    store.set_lane(type="job", max_running=1)
    store.add(jobs("a b"))
    take(store)
    (reaped,) = reap(store, "a", NOW + 50)
    expect(ids(take(store, now=NOW + 50)), [], "claimed")
    end(store, done(reaped))
    expect(ids(take(store, now=NOW + 50)), ["b"], "claimed when it has ended")


@promise("lanes")
def check_a_limit_for_each_key(store: Store) -> None:
    """A limit with the key "*" holds for each key on its own, and not for tasks without one."""
    store.set_lane(key="*", max_running=1)
    store.add([job(f"{key or 'none'}{n}", limit_key=key) for key in ("x", "y", "") for n in (1, 2)])
    expect(sorted(ids(take(store))), ["none1", "none2", "x1", "y1"], "claimed")
    end(store, done(the(store, "y1")))
    expect(ids(take(store)), ["y2"], "claimed when the one of y has ended")


@promise("lanes")
def check_a_rate_for_each_key(store: Store) -> None:
    """A rate with the key "*" is kept for each key on its own."""
    store.set_lane(key="*", rate=1)
    store.add([job(f"{key}{n}", limit_key=key) for key in "xy" for n in (1, 2)])
    got = [sorted(ids(take(store, now=NOW + t))) for t in (0, 0.5, 1)]
    expect(got, [["x1", "y1"], [], ["x2", "y2"]], "claimed after 0, 0.5 and 1 s")


@promise("lanes")
def check_all_limits_of_a_lane_must_be_open(store: Store) -> None:
    """A lane that is under several limits is served only when each of them allows it."""
    store.set_lane(type="job", max_running=2)
    store.set_lane(queue="default", rate=1)
    store.set_lane(key="t", paused=True)
    store.add([*jobs("a b c"), job("t", limit_key="t", priority=9)])
    got = [ids(take(store, now=NOW + t)) for t in (0, 1, 2)]
    expect(got, [["a"], ["b"], []], "claimed after 0, 1 and 2 s")


@promise("lanes")
def check_waiting_for_a_limit_costs_nothing(store: Store) -> None:
    """A task that waits for a limit is as it was: no attempt, no new version."""
    store.set_lane(type="job", max_running=1)
    store.add(jobs("a b"))
    before = the(store, "b")
    for t in range(3):
        take(store, now=NOW + t)
    expect(the(store, "b"), before, "the task that waits")


@promise("lanes")
def check_next_due_says_when_a_rate_opens(store: Store) -> None:
    """When a rate holds tasks back, next_due gives the time at which the next one may start."""
    store.set_lane(type="job", rate=0.5)
    store.add(jobs("a b"))
    take(store)
    due = store.next_due(NOW)
    expect(due, NOW + 2, "next_due")
    expect(ids(take(store, now=NOW + 2)), ["b"], "claimed at that time")


@promise("lanes")
def check_limits_can_be_seen_and_taken_away(store: Store) -> None:
    """The statistics show every limit; what is not named stays as it is, and 0 takes a limit away."""
    store.set_lane(queue="q", rate=5, burst=2)
    store.set_lane(key="*", max_running=3)
    store.set_lane(queue="q", paused=True, max_running=1)
    shown = {limit.selector: limit for limit in store.stats().limits}
    wanted = [Limit("q", None, None, True, 5, 2, 1), Limit(None, None, "*", False, 0, 1, 3)]
    expect(shown, {limit.selector: limit for limit in wanted}, "limits")
    store.set_lane(queue="q", paused=False, rate=0, max_running=0)
    expect([limit.selector for limit in store.stats().limits], [(None, None, "*")], "limits that are left")


@promise("lanes")
def check_keys_are_served_in_turn(store: Store) -> None:
    """However much one key has waiting, another key gets every second place."""
    store.add([job(f"big{n:02}", limit_key="big") for n in range(20)])
    store.add([job(f"small{n}", limit_key="small") for n in range(3)])
    order = [task.limit_key for _ in range(3) for task in take(store, 2)]
    expect(
        [order[:2].count("small"), order[2:4].count("small"), order[4:].count("small")],
        [1, 1, 1],
        "small ones in each turn of 2",
    )
    expect(len(take(store)), 17, "claimed of the rest")


@promise("lanes")
def check_keys_are_served_in_turn_one_by_one(store: Store) -> None:
    """Fairness is remembered from claim to claim, not only within one."""
    store.add(
        [job(f"{key}{n}", limit_key=key, run_at=at) for key, at in (("x", 1), ("y", 2), ("z", 3)) for n in range(4)]
    )
    order = [task.limit_key for _ in range(9) for task in take(store, 1)]
    expect([sorted(order[i : i + 3]) for i in (0, 3, 6)], [["x", "y", "z"]] * 3, "keys served, by three")


@promise("lanes")
def check_an_idle_key_saves_nothing_up(store: Store) -> None:
    """A key that had nothing to do for long gets its turn when it comes back, not all that it has missed."""
    store.add([job(f"{key}{n:02}", limit_key=key) for key in "xy" for n in range(20)])
    for _ in range(10):
        take(store, 2)
    store.add([job(f"z{n:02}", limit_key="z") for n in range(20)])
    turns = Counter(task.limit_key for _ in range(12) for task in take(store, 1))
    expect(turns["z"] <= 5, True, f"whether z got no more than its turn, of {dict(turns)}")


@promise("lanes")
def check_priority_goes_before_fairness(store: Store) -> None:
    """A higher priority goes first, even of a key that was served a lot."""
    store.add([job(f"x{n}", limit_key="x", priority=1) for n in range(4)] + [job("y", limit_key="y")])
    expect([take(store, 1)[0].limit_key for _ in range(5)], ["x"] * 4 + ["y"], "keys served")


# --- look -------------------------------------------------------------------------------------------------------------


@promise("look")
def check_get_keeps_the_order_and_leaves_out_the_unknown(store: Store) -> None:
    """get gives the tasks in the order of the ids asked for, without those that do not exist."""
    store.add(jobs("a b c"))
    expect(ids(store.get(["c", "nobody", "a"])), ["c", "a"], "ids")
    expect(store.get([]), [], "get of nothing")


@promise("look")
def check_find_goes_by_id_and_filters(store: Store) -> None:
    """find gives tasks in the order of their ids; status, queue, type and time of end narrow it down together."""
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
    found("", queue="nobody's")


@promise("look")
def check_pages_stay_stable_while_tasks_come_and_go(store: Store) -> None:
    """Who reads page by page sees each task that was there all the time once, whatever comes and goes meanwhile."""
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
def check_the_counters_equal_a_recount(store: Store) -> None:
    """After any course of events, the counters by status, queue and type are what counting all tasks gives."""
    chance = random.Random(7)
    for step in range(60):
        _random_step(store, step, chance)
        if step % 10 == 9:
            tasks = everything(store)
            stats = store.stats()
            expect(_filled(stats.counts), Counter(str(task.status) for task in tasks), "counts")
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


def _filled(table: dict[str, int]) -> dict[str, int]:
    return {name: n for name, n in table.items() if n}


def _flat(tables: dict[str, dict[str, int]]) -> dict[tuple[str, str], int]:
    return {(name, status): n for name, table in tables.items() for status, n in table.items() if n}


@promise("look")
def check_the_statistics_name_every_status(store: Store) -> None:
    """Every status is in the counts, 0 where no task has it; running, unfinished and total are made of them."""
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
    """`oldest` is the earliest due time of all that wait for a worker; None when nothing does."""
    expect(store.stats().oldest, None, "oldest of an empty store")
    store.add([job("a", run_at=900), job("b", run_at=950, priority=5), job("c", after=("a",), run_at=1)])
    expect(store.stats().oldest, 900, "oldest")
    expect(ids(take(store, 1)), ["b"], "claimed")
    expect(store.stats().oldest, 900, "oldest when another was claimed")
    take(store, 1)
    expect(store.stats().oldest, None, "oldest when all are claimed")


@promise("look")
def check_next_due_says_when_to_look_again(store: Store) -> None:
    """next_due gives when the next task comes due or expires, and None when nothing is foreseen."""
    expect(store.next_due(NOW), None, "next_due of an empty store")
    store.add([job("a", run_at=NOW + 50), job("b", run_at=NOW + 90), job("c", run_at=NOW + 99, expires=NOW + 20)])
    take(store)
    expect(store.next_due(NOW), NOW + 20, "next_due with a task that expires")
    end(store, *(end_doomed(task, NOW + 20) for task in take(store, now=NOW + 20)))
    expect(store.next_due(NOW + 20), NOW + 50, "next_due")
    store.delete(["a", "b"])
    expect(store.next_due(NOW + 20), None, "next_due when all is done")


# --- removal ----------------------------------------------------------------------------------------------------------


@promise("removal")
def check_delete_removes_and_counts(store: Store) -> None:
    """Deleted tasks are gone and never claimed; the number of those that were there comes back."""
    store.add([job("a"), job("b"), job("c", run_at=NOW + 5), job("d", after=("a",))])
    expect(store.delete(["a", "c", "nobody", "a"]), 2, "number deleted")
    expect(store.get(["a", "c"]), [], "deleted tasks")
    store.delete(["d"])
    expect(ids(take(store, now=NOW + 10)), ["b"], "claimed")
    expect(store.stats().total, 1, "tasks in the statistics")


@promise("removal")
def check_delete_leaves_what_is_processing(store: Store) -> None:
    """A task that somebody works on is not deleted."""
    store.add(jobs("a b"))
    (task,) = start(store, "a", n=1)
    expect(store.delete(["a", "b"]), 1, "number deleted")
    expect(end(store, done(task)), {"a"}, "accepted")


@promise("removal")
def check_delete_frees_id_and_key(store: Store) -> None:
    """Id and key of a deleted task can be used again, and the old task's outcome does not reach the new one."""
    store.add([job("a", key="k")])
    old = the(store, "a")
    store.delete(["a"])
    expect(store.add([job("a", payload="new"), job("b", key="k")]), ["a", "b"], "ids")
    expect(ids(take(store)), ["a", "b"], "claimed")
    expect(end(store, cancel(old, NOW)), set(), "accepted for the old task")


@promise("removal")
def check_the_children_of_a_deleted_parent_are_doomed(store: Store) -> None:
    """For waiting children, deleting a parent is as if it had been cancelled."""
    store.add([job("p", run_at=NOW + 99), job("c", after=("p",)), job("d", after=("p",), on_parent_failure="run")])
    store.delete(["p"])
    got = sorted((task.id, bool(task.doom), task.attempts) for task in take(store))
    expect(got, [("c", True, 0), ("d", False, 1)], "id, doom, attempts")


@promise("removal")
def check_a_family_may_be_deleted_together(store: Store) -> None:
    """Parents and children deleted in one call leave nothing behind, in the counters neither."""
    store.add(
        [job("p"), job("c", after=("p",)), job("d", after=("p",), on_parent_failure="run"), job("e", after=("d",))]
    )
    expect(store.delete(["p", "c", "d", "e"]), 4, "number deleted")
    expect(_filled(store.stats().counts), {}, "counts")
    expect(ids(take(store)), [], "claimed")


@promise("removal")
def check_purge_removes_what_ended_long_ago(store: Store) -> None:
    """purge removes tasks of the given terminal statuses that ended before the given time, and nothing else."""
    store.add([*jobs("a b c d"), job("e", key="k")])
    a, b, c, d, e = start(store, "a b c d e")
    end(store, done(a, NOW), done(b, NOW + 10), broken(c, NOW), cancel(d, NOW), done(e, NOW))
    expect(store.purge(NOW + 5, ["completed", "cancelled"]), 3, "number purged")
    expect(ids(everything(store)), ["b", "c"], "tasks that are left")
    expect(store.purge(NOW + 5, ["completed"]), 0, "number purged again")
    expect(store.add([job("f", key="k")]), ["f"], "ids for the key that has become free")


@promise("removal")
def check_purge_never_touches_unfinished_tasks(store: Store) -> None:
    """Whatever statuses are named, only terminal tasks are purged."""
    store.add([job("a"), job("b", run_at=NOW + 9), job("c", after=("b",)), job("d", retry_delay=5)])
    a, d = start(store, "a d")
    end(store, fail(d, ErrorInfo("OSError"), NOW, lambda: 0.0))
    every = ["blocked", "pending", "processing", "retrying", "completed", "failed", "cancelled"]
    expect(store.purge(1e11, every), 0, "number purged")
    expect(end(store, done(a)), {"a"}, "accepted")


# --- waiting ----------------------------------------------------------------------------------------------------------


@promise("waiting")
def check_wait_hears_of_an_add(store: Store) -> None:
    """After an add, wait says that something changed; when nothing more happens, it soon says so too."""
    settle(store)
    store.add([job("a")])
    expect(store.wait(0), True, "wait(0) after an add")
    settle(store)


@promise("waiting")
def check_the_descriptor_can_be_selected(store: Store) -> None:
    """fileno gives a descriptor that a selector accepts."""
    settle(store)
    expect(len(select.select([store.fileno()], [], [], 0)), 3, "lists from select")


@promise("waiting", twice=True)
def check_another_process_is_woken(subject: Subject) -> None:
    """Who waits on the same data hears of an add elsewhere within a second, by wait and by the descriptor."""
    one, two = subject.open(), subject.open()
    settle(two)
    one.add([job("a")])
    readable, _, _ = select.select([two.fileno()], [], [], 1.0)
    expect(len(readable), 1, "descriptors that are readable")
    expect(two.wait(1.0), True, "wait")
    expect(ids(take(two)), ["a"], "claimed there")


@promise("waiting")
def check_closing_twice_is_harmless(store: Store) -> None:
    """A closed store may be closed again."""
    store.add([job("a")])
    store.close()
    store.close()


# --- threads ----------------------------------------------------------------------------------------------------------


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
    """When many threads claim at the same time, every task is given to exactly one of them."""
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
    """When many threads hand in an outcome of the same version, one of them is accepted, with its successor."""
    store.add(jobs("a b c"))
    tasks = start(store, "a b c")

    def work(number: int) -> list[str]:
        outcomes = [(succeed(task, number, NOW), [job(f"next-{task.id}-{number}")]) for task in tasks]
        return sorted(id for outcome in outcomes for id in store.update([outcome]))

    expect(sorted(_in_threads(8, work)), ["a", "b", "c"], "accepted by all threads together")
    expect(store.stats().counts["pending"], 3, "successors")


# --- durable ----------------------------------------------------------------------------------------------------------


@promise("durable", twice=True)
def check_what_was_added_survives_a_crash(subject: Subject) -> None:
    """A task that add has acknowledged is there after a kill -9, with its key, its place and its count."""
    store = subject.open()
    store.add([job("a", payload={"n": 1}), job("b", key="k", priority=5), job("c", after=("a",))])
    before = everything(store)
    subject.crash(store)
    store = subject.open()
    expect(everything(store), before, "tasks")
    expect(_filled(store.stats().counts), {"pending": 2, "blocked": 1}, "counts")
    expect(store.add([job("d", key="k")]), ["b"], "id for the key")
    expect(ids(take(store)), ["b", "a"], "order")


@promise("durable", twice=True)
def check_what_was_claimed_survives_a_crash(subject: Subject) -> None:
    """After a kill -9, a claimed task is not claimed as if nothing had been: it is taken over, in a new version."""
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
    """An accepted outcome, its successors and what it unblocked are there after a kill -9, and accepted only once."""
    store = subject.open()
    store.add([job("a"), job("b", after=("a",))])
    (task,) = start(store, "a")
    store.update([(succeed(task, {"x": 1}, NOW), [job("c", payload=2)])])
    before = everything(store)
    subject.crash(store)
    store = subject.open()
    expect(everything(store), before, "tasks")
    expect(end(store, done(task)), set(), "accepted again")
    expect(_filled(store.stats().counts), {"completed": 1, "pending": 2}, "counts")
    expect(sorted(ids(take(store))), ["b", "c"], "claimed")


@promise("durable", twice=True)
def check_dependencies_survive_a_crash(subject: Subject) -> None:
    """A child that waits for several parents still knows, after a kill -9, which of them it waits for."""
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
    """Pauses and rates, and when a rate opens next, are remembered after a kill -9."""
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
def check_two_processes_see_the_same(subject: Subject) -> None:
    """What one process has stored, another sees at once, and no task is given to both."""
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
