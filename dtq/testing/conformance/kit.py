"""The parts of every check: what a check is, how checks run, and the helpers that checks are written with."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

from dtq.errors import DTQError
from dtq.stores.protocol import ClaimRequest, ExchangingStore, Outcome, Store
from dtq.task.model import ErrorInfo, Status, Task
from dtq.task.transitions import fail, succeed

NOW = 1000.0
LEASE = 30.0


class Broken(AssertionError):
    """A promise is broken. The message names the expected and the actual value."""


class Skipped(Exception):
    """The check needs something that this store cannot do."""


class Subject:
    """One set of data, and the ways to reach it.

    Args:
        opener: opens a store on the data.
        crasher: ends a store as kill -9 does; None if that is not possible.
        sees_deaths: True if other stores notice a crash at once, not only when the lease expires.
    """

    def __init__(
        self, opener: Callable[[], Store], crasher: Callable[[Any], None] | None = None, sees_deaths: bool = True
    ) -> None:
        self._opener = opener
        self._crasher = crasher
        self._sees_deaths = sees_deaths
        self._opened: list[Store] = []

    def open(self) -> Store:
        self._opened.append(self._opener())
        return self._opened[-1]

    def crash(self, store: Store) -> None:
        if self._crasher is None:
            raise Skipped("this store cannot crash")
        self._opened.remove(store)
        self._crasher(store)

    def crash_noticed(self, store: Store) -> None:
        """Crash the store, for a check of what happens when other stores notice that at once."""
        if not self._sees_deaths:
            raise Skipped("this store notices a crash only when the lease expires")
        self.crash(store)

    def close_noticed(self, store: Store) -> None:
        """Close the store, for a check of what happens when other stores notice that at once."""
        if not self._sees_deaths:
            raise Skipped("this store notices a crash only when the lease expires")
        store.close()

    def close(self) -> None:
        for store in self._opened:
            store.close()


class _Alone(Subject):
    """A store that cannot be opened a second time, and that ends with its process."""

    def open(self) -> Store:
        if self._opened:
            raise Skipped("this store lives in one process only")
        return super().open()


Make = Callable[[], Store | Subject]
Body = Callable[[Any], None]


@dataclass(frozen=True)
class Check:
    """One promise. `name` is that of its function without `check_`; with `twice`, the body takes the Subject itself."""

    name: str
    group: str
    promise: str
    body: Body
    twice: bool

    def perform(self, make: Make) -> None:
        """Run the check on a new store. Raises Broken, Skipped, or any exception of the store."""
        made = make()
        subject = made if isinstance(made, Subject) else _Alone(lambda: made)
        with contextlib.closing(subject):
            self.body(subject if self.twice else subject.open())


@dataclass(frozen=True)
class Result:
    """The result of one check. `detail` has the expected and the actual value, or why the check was skipped."""

    name: str
    group: str
    promise: str
    status: Literal["passed", "failed", "skipped"]
    detail: str = ""


CHECKS: list[Check] = []


def promise(group: str, *, twice: bool = False) -> Callable[[Body], Body]:
    """Register the function as one of the CHECKS."""

    def enter(body: Body) -> Body:
        CHECKS.append(Check(body.__name__.removeprefix("check_"), group, body.__doc__ or "", body, twice))
        return body

    return enter


def group(*names: str) -> list[Check]:
    """Return the checks of these groups."""
    return [check for check in CHECKS if check.group in names]


def run(make: Make, checks: Iterable[Check] = CHECKS) -> list[Result]:
    """Run these checks, each on what `make` returns for it: an empty store, or a Subject. Close them all."""
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


# --- helpers for the checks ---


def expect(got: object, wanted: object, what: str) -> None:
    if got != wanted:
        raise Broken(f"{what}: expected {_readable(wanted, got)}, got {_readable(got, wanted)}")


def _readable(value: object, other: object) -> str:
    """Return a short text of a value; of a task, only its id and the fields in which it differs from the other task."""
    if isinstance(value, list):
        others = other if isinstance(other, list) and len(other) == len(value) else [None] * len(value)
        return f"[{', '.join(map(_readable, value, others))}]"
    if not isinstance(value, Task):
        return repr(value)
    if not isinstance(other, Task):
        return value.id
    names = [name for name in Task.__struct_fields__ if getattr(value, name) != getattr(other, name)]
    fields = [f"{name}={_plain(getattr(value, name))!r}" for name in names]
    return f"{value.id}({', '.join(fields)})"


def _plain(value: object) -> object:
    return str(value) if isinstance(value, Status) else value


def refused(error: type[DTQError], what: str, call: Callable[[], object]) -> None:
    """Require that the call raises this error."""
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
    """Claim all that can be claimed. It must be these tasks in this order."""
    tasks = take(store, now=now, **options)
    expect(ids(tasks), wanted.split(), "claimed")
    return tasks


def reap(store: Store, wanted: str, now: float) -> list[Task]:
    """Take over all that can be taken over, for the worker w2. It must be this one task."""
    tasks = store.reap("w2", 10, LEASE, now)
    expect(ids(tasks), [wanted], "reaped")
    return tasks


def end(store: Store, *tasks: Task) -> set[str]:
    """Hand in these tasks, as a transition returned them, without successors."""
    return store.update([(task, ()) for task in tasks])


def exchanging(store: Store) -> ExchangingStore:
    """Return the store, or skip the check if the store has no `exchange`."""
    if not isinstance(store, ExchangingStore):
        raise Skipped("this store has no exchange")
    return store


def exchange(store: Store, *outcomes: Task | Outcome, n: int = 100) -> tuple[set[str], list[Task]]:
    """Hand in these tasks, with or without successors, and claim up to n in the same step."""
    pairs = [(outcome, ()) if isinstance(outcome, Task) else outcome for outcome in outcomes]
    return exchanging(store).exchange(pairs, ClaimRequest("w1", n, LEASE, NOW, {"job"}))


def done(task: Task, now: float = NOW) -> Task:
    return succeed(task, None, now)


def broken(task: Task, now: float = NOW) -> Task:
    return fail(task, ErrorInfo("ValueError"), now, lambda: 0.0, final=True)


def the(store: Store, id: str) -> Task:
    """Return the stored task with this id."""
    found = store.get([id])
    expect(ids(found), [id], f"get([{id!r}])")
    return found[0]


def ids(tasks: Iterable[Task]) -> list[str]:
    return [task.id for task in tasks]


def statuses(store: Store, ids: str) -> list[str]:
    return [str(task.status) for task in store.get(ids.split())]


def everything(store: Store) -> list[Task]:
    """Return all tasks, page by page."""
    tasks: list[Task] = []
    while page := store.find(after=(last := tasks[-1].id if tasks else "")):
        expect([id for id in ids(page) if id <= last], [], f"ids that are not behind {last!r} on its next page")
        tasks += page
    return tasks


def settle(store: Store) -> None:
    """Clear the hints that are still under way."""
    for _ in range(100):
        if not store.wait(0):
            return
    raise Broken("wait(0) when nothing happens: expected False, got True 100 times")


def filled(table: dict[str, int]) -> dict[str, int]:
    return {name: n for name, n in table.items() if n}
