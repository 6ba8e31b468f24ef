"""Invariants: what dtq promises, checked after a run with faults, as pure functions of what was recorded.

    history of handlers, clients, nodes ---- lines ----+
    the store, when all is quiet ----------- tasks ----+--> RunRecord --> broken() --> a sentence for each violation
    the plan of the faults ----------------- faults ---+

A simulation and a run of real processes are judged by the same invariants. Each is a function: its docstring states the
invariant, and it returns one sentence for each case that breaks it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple

import msgspec

from dtq.task.model import MAX_INTERRUPTIONS, Status, Task

LineKind = Literal[
    "acknowledged",
    "deleted",
    "cancelled",
    "claimed",
    "taken over",
    "dispatched",
    "accepted",
    "announced",
    "began",
    "ended",
]
ANY_NODE = "*"  # in `faults`: a fault that may cost any node its tasks, such as a clock that jumps


class Line(NamedTuple):
    """One event, recorded after it happened.

    - acknowledged, cancelled: the `add` or `cancel` of a client has returned for this task
    - deleted: the store removed this task
    - claimed, taken over: the store gave this task, in version `number`, to the node `actor`
    - dispatched: the node `actor` hands this task, claimed in version `number`, to its workers
    - accepted: the store accepted an outcome that was made from version `number`
    - announced: a node emitted the event of an outcome that made version `number`
    - began, ended: a handler runs attempt `number`; `actor` is the name of this run, which is also its result
    """

    what: LineKind
    task: str
    number: int = 0
    actor: str = ""


def name_of(task: Task) -> str:
    """Return the task's name in the history: the `life` in its payload if its id is used again, else the id."""
    return str(task.payload.get("life", task.id)) if isinstance(task.payload, dict) else task.id


class RunRecord(msgspec.Struct):
    """Everything that a run recorded.

    - `faults`: by node, how many faults may have cost it its tasks
    - `deaths`: workers that were killed or hung; each costs one attempt of one task
    - `violations`: sentences about what was found broken while the run went on
    - `limits`: by limit key, how many tasks may run at once
    """

    lines: list[Line]
    tasks: dict[str, Task]
    faults: Counter[str] = msgspec.field(default_factory=Counter)
    deaths: int = 0
    violations: list[str] = []
    limits: dict[str, int] = {}

    def of(self, what: LineKind) -> Iterable[Line]:
        return (line for line in self.lines if line.what == what)

    def runs(self) -> Counter[str]:
        """Return how often each task began."""
        return Counter(line.task for line in self.of("began"))

    def repeats(self) -> int:
        """Return how many runs there were beyond the first of each attempt."""
        return sum(n - 1 for n in Counter((line.task, line.number) for line in self.of("began")).values())


Invariant = Callable[[RunRecord], list[str]]


def nothing_acknowledged_is_lost(record: RunRecord) -> list[str]:
    """Every acknowledged task is in the store, unless it was deleted."""
    deleted = {line.task for line in record.of("deleted")}
    acknowledged = dict.fromkeys(line.task for line in record.of("acknowledged") if line.task not in deleted)
    return [f"{id} was acknowledged, and is gone" for id in acknowledged if id not in record.tasks]


def every_task_ends(record: RunRecord) -> list[str]:
    """Once the faults are over, every task ends."""
    return [f"{task.id} is still {task.status}" for task in record.tasks.values() if not task.is_terminal]


def completed_means_done(record: RunRecord) -> list[str]:
    """The result of a completed task is that of a run that reached its end."""
    ended = {(line.task, line.actor) for line in record.of("ended")}
    completed = ((name, task) for name, task in record.tasks.items() if task.status == Status.COMPLETED)
    return [
        f"{name} is completed by {t.result!r}, which never ended"
        for name, t in completed
        if (name, t.result) not in ended
    ]


def every_run_is_counted(record: RunRecord) -> list[str]:
    """A task runs at most once for each attempt, and once for each time it was taken from a node."""
    runs = record.runs()
    counted = {name: task.attempts + task.interruptions for name, task in record.tasks.items()}
    return [f"{id} ran {runs[id]} times, and {n} are counted" for id, n in counted.items() if runs[id] > n]


def no_stale_write_is_accepted(record: RunRecord) -> list[str]:
    """Each version of a task comes from one change: a writer that knows an older version changes nothing."""
    made = [(line.task, line.number) for line in record.lines if line.what in ("claimed", "taken over")]
    made += [(line.task, line.number + 1) for line in record.of("accepted")]
    return [f"{id} became version {v} {n} times" for (id, v), n in Counter(made).items() if n > 1]


def only_accepted_outcomes_are_announced(record: RunRecord) -> list[str]:
    """An event is emitted only for an outcome that the store accepted."""
    accepted = {(line.task, line.number + 1) for line in record.of("accepted")}
    announced = (line for line in record.of("announced") if (line.task, line.number) not in accepted)
    return [f"{line.actor} announced version {line.number} of {line.task}, which was refused" for line in announced]


def only_faulty_nodes_lose_tasks(record: RunRecord) -> list[str]:
    """A dispatched task is taken from a node only if the node had a fault, and at most once for each fault."""
    dispatched = {(line.task, line.number): line.actor for line in record.of("dispatched")}
    taken = Counter(
        (line.task, dispatched[line.task, line.number - 1])
        for line in record.of("taken over")
        if (line.task, line.number - 1) in dispatched
    )
    allowed = record.faults
    return [
        f"{id} was taken from {node} {n} times, which had {allowed[node]} faults"
        for (id, node), n in taken.items()
        if n > allowed[node] + allowed[ANY_NODE]
    ]


def a_dead_worker_costs_one_attempt(record: RunRecord) -> list[str]:
    """A worker that dies fails only the task that it was running."""
    errors = [attempt.error.type for task in record.tasks.values() for attempt in task.history]
    n = errors.count("WorkerDied") + errors.count("Timeout")
    return [f"{n} attempts died with {record.deaths} workers"] if n > record.deaths else []


def children_wait_for_their_parents(record: RunRecord) -> list[str]:
    """A task begins after its parents have ended."""
    ended, early = set[str](), []
    for line in record.lines:
        if line.what == "ended":
            ended |= {line.task, line.task.partition("#")[0]}  # children name the id, which may have had several tasks
        elif line.what == "began" and line.task in record.tasks:
            early += [f"{line.task} began before {p} ended" for p in record.tasks[line.task].after if p not in ended]
    return early


def no_limit_is_exceeded(record: RunRecord) -> list[str]:
    """No more tasks run under a limit at once than it allows.

    Only runs whose results were accepted count: a run whose task was taken over may still go on beside the next run.
    """
    limits = record.limits
    under = {(name, task.result): task.limit_key for name, task in record.tasks.items() if task.limit_key in limits}
    running, exceeded = Counter[str](), []
    for line in record.lines:
        key = under.get((line.task, line.actor))
        if key is not None and line.what in ("began", "ended"):
            running[key] += 1 if line.what == "began" else -1
            if running[key] > limits[key] and line.what == "began":
                exceeded.append(f"{line.task} ran as one of {running[key]} under a limit of {limits[key]}")
    return exceeded


def every_failure_has_a_reason(record: RunRecord) -> list[str]:
    """A task fails when its attempts are used up, a parent has failed, or too many nodes died while running it."""

    def is_due(task: Task) -> bool:
        reason = task.error.type if task.error else ""
        is_parked = reason == "Interrupted" and task.interruptions >= MAX_INTERRUPTIONS
        return task.attempts >= task.max_attempts or is_parked or reason == "ParentFailed"

    failed = (task for task in record.tasks.values() if task.status == Status.FAILED)
    return [f"{t.id} failed at attempt {t.attempts} of {t.max_attempts}: {t.error}" for t in failed if not is_due(t)]


def cancelled_tasks_stay_cancelled(record: RunRecord) -> list[str]:
    """No late outcome undoes a cancellation."""
    tasks = (record.tasks.get(line.task) for line in record.of("cancelled"))
    return [f"{t.id} was cancelled, and is {t.status}" for t in tasks if t and t.status != Status.CANCELLED]


def no_violation_was_seen(record: RunRecord) -> list[str]:
    """While the run went on, no limit was exceeded and every expired lease was taken over in time."""
    return record.violations


INVARIANTS: tuple[Invariant, ...] = (
    nothing_acknowledged_is_lost,
    every_task_ends,
    completed_means_done,
    every_run_is_counted,
    no_stale_write_is_accepted,
    only_accepted_outcomes_are_announced,
    only_faulty_nodes_lose_tasks,
    a_dead_worker_costs_one_attempt,
    children_wait_for_their_parents,
    no_limit_is_exceeded,
    every_failure_has_a_reason,
    cancelled_tasks_stay_cancelled,
    no_violation_was_seen,
)


def broken(record: RunRecord) -> dict[str, list[str]]:
    """Return the sentences about each broken invariant, by its name. Invariants that hold are left out."""
    found = defaultdict(list)
    for invariant in INVARIANTS:
        for sentence in invariant(record):
            found[invariant.__name__].append(sentence)
    return dict(found)
