"""Promises: what must hold after a run with faults, as pure functions of what was seen.

    witnesses: handlers, clients, nodes ---- lines ----+
    the store, when all is quiet ----------- tasks ----+--> RunRecord --> broken() --> sentences; none is good
    whoever made the faults ---------------- faults ---+

A simulation and real processes are judged alike. Each promise is a function whose docstring says it, and which gives a
sentence for each case in which it is broken.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple

import msgspec

from dtq.task.model import MAX_INTERRUPTIONS, Status, Task

What = Literal[
    "acknowledged", "deleted", "cancelled", "claimed", "taken over", "given", "accepted", "told", "began", "ended"
]
EVERYBODY = "*"  # in `faults`: one that may cost any node its tasks, such as a clock that leaps


class Line(NamedTuple):
    """What a witness wrote, when it had happened.

    - acknowledged, cancelled: a client's `add`, or `cancel`, of this task has returned
    - deleted: the store has removed this task
    - claimed, taken over: the store has given `who`, a node, this task in version `number`
    - given: `who`, a node, hands this task, as it was claimed in version `number`, to its workers
    - accepted: the store has taken an outcome that was made from version `number`
    - told: a node tells its listeners of an ending, or a retry, which has made version `number`
    - began, ended: a handler runs attempt `number`, as the run `who`; what it returns is that name
    """

    what: What
    task: str
    number: int = 0
    who: str = ""


def name_of(task: Task) -> str:
    """Return what the task is called in the evidence: its id or, where an id is used again, what its payload says."""
    return str(task.payload.get("life", task.id)) if isinstance(task.payload, dict) else task.id


class RunRecord(msgspec.Struct):
    """All that was seen. `faults` counts by node what may cost it its tasks; `deaths` are workers that were killed, or
    hung: each costs one attempt of one task. `seen` are sentences of what was found broken while it ran; `limits` says
    by limit key how many tasks may run at once."""

    lines: list[Line]
    tasks: dict[str, Task]
    faults: Counter[str] = msgspec.field(default_factory=Counter)
    deaths: int = 0
    seen: list[str] = []
    limits: dict[str, int] = {}

    def of(self, what: What) -> Iterable[Line]:
        return (line for line in self.lines if line.what == what)

    def runs(self) -> Counter[str]:
        """How often each task has begun."""
        return Counter(line.task for line in self.of("began"))

    def repeats(self) -> int:
        """Runs beyond the first of an attempt."""
        return sum(n - 1 for n in Counter((line.task, line.number) for line in self.of("began")).values())


Promise = Callable[[RunRecord], list[str]]


def nothing_acknowledged_is_lost(evidence: RunRecord) -> list[str]:
    """A task that was acknowledged is in the store."""
    deleted = {line.task for line in evidence.of("deleted")}
    acknowledged = dict.fromkeys(line.task for line in evidence.of("acknowledged") if line.task not in deleted)
    return [f"{id} was acknowledged, and is gone" for id in acknowledged if id not in evidence.tasks]


def everything_ends(evidence: RunRecord) -> list[str]:
    """When the faults are over, every task comes to its end."""
    return [f"{task.id} is still {task.status}" for task in evidence.tasks.values() if not task.is_terminal]


def completed_means_done(evidence: RunRecord) -> list[str]:
    """A completed task has the result of a run that reached its end."""
    ended = {(line.task, line.who) for line in evidence.of("ended")}
    completed = ((name, task) for name, task in evidence.tasks.items() if task.status == Status.COMPLETED)
    return [
        f"{name} is completed by {t.result!r}, which never ended"
        for name, t in completed
        if (name, t.result) not in ended
    ]


def runs_are_paid_for(evidence: RunRecord) -> list[str]:
    """A task runs once for each of its attempts, and once more at most for each node that it was taken from."""
    runs = evidence.runs()
    paid = {name: task.attempts + task.interruptions for name, task in evidence.tasks.items()}
    return [f"{id} ran {runs[id]} times, and {n} are paid for" for id, n in paid.items() if runs[id] > n]


def no_stale_write_is_accepted(evidence: RunRecord) -> list[str]:
    """Each version of a task comes from one change alone: who knows an older one changes nothing."""
    made = [(line.task, line.number) for line in evidence.lines if line.what in ("claimed", "taken over")]
    made += [(line.task, line.number + 1) for line in evidence.of("accepted")]
    return [f"{id} became version {v} {n} times" for (id, v), n in Counter(made).items() if n > 1]


def only_what_was_accepted_is_told(evidence: RunRecord) -> list[str]:
    """An event tells of what the store has taken, never of an outcome that was refused."""
    accepted = {(line.task, line.number + 1) for line in evidence.of("accepted")}
    told = (line for line in evidence.of("told") if (line.task, line.number) not in accepted)
    return [f"{line.who} told of version {line.number} of {line.task}, which was refused" for line in told]


def only_the_faulty_lose_their_tasks(evidence: RunRecord) -> list[str]:
    """A task is taken from a node whose workers have it only when the node had a fault, and at most once for each."""
    given = {(line.task, line.number): line.who for line in evidence.of("given")}
    taken = Counter(
        (line.task, given[line.task, line.number - 1])
        for line in evidence.of("taken over")
        if (line.task, line.number - 1) in given
    )
    allowed = evidence.faults
    return [
        f"{id} was taken from {node} {n} times, which had {allowed[node]} faults"
        for (id, node), n in taken.items()
        if n > allowed[node] + allowed[EVERYBODY]
    ]


def a_dead_worker_costs_one_attempt(evidence: RunRecord) -> list[str]:
    """A worker that dies fails the one task that it was running."""
    errors = [attempt.error.type for task in evidence.tasks.values() for attempt in task.history]
    n = errors.count("WorkerDied") + errors.count("Timeout")
    return [f"{n} attempts died with {evidence.deaths} workers"] if n > evidence.deaths else []


def children_wait_for_their_parents(evidence: RunRecord) -> list[str]:
    """A task begins when its parents have ended, not before."""
    ended, early = set[str](), []
    for line in evidence.lines:
        if line.what == "ended":
            ended |= {line.task, line.task.partition("#")[0]}  # children name the id, whatever life it is in
        elif line.what == "began" and line.task in evidence.tasks:
            early += [f"{line.task} began before {p} ended" for p in evidence.tasks[line.task].after if p not in ended]
    return early


def no_limit_is_exceeded(evidence: RunRecord) -> list[str]:
    """Of the tasks under one limit, no more run at a time than it allows. (Only the runs whose results were accepted
    count: one whose task was taken away may go on beside the next.)"""
    limits = evidence.limits
    under = {(name, task.result): task.limit_key for name, task in evidence.tasks.items() if task.limit_key in limits}
    running, exceeded = Counter[str](), []
    for line in evidence.lines:
        key = under.get((line.task, line.who))
        if key is not None and line.what in ("began", "ended"):
            running[key] += 1 if line.what == "began" else -1
            if running[key] > limits[key] and line.what == "began":
                exceeded.append(f"{line.task} ran as one of {running[key]} under a limit of {limits[key]}")
    return exceeded


def a_failure_has_its_reason(evidence: RunRecord) -> list[str]:
    """A task fails when its attempts are used up, a parent has failed, or too many nodes have died under it."""

    def is_due(task: Task) -> bool:
        reason = task.error.type if task.error else ""
        is_parked = reason == "Interrupted" and task.interruptions >= MAX_INTERRUPTIONS
        return task.attempts >= task.max_attempts or is_parked or reason == "ParentFailed"

    failed = (task for task in evidence.tasks.values() if task.status == Status.FAILED)
    return [f"{t.id} failed at attempt {t.attempts} of {t.max_attempts}: {t.error}" for t in failed if not is_due(t)]


def what_was_cancelled_stays_so(evidence: RunRecord) -> list[str]:
    """Nothing that comes late undoes a cancellation."""
    tasks = (evidence.tasks.get(line.task) for line in evidence.of("cancelled"))
    return [f"{t.id} was cancelled, and is {t.status}" for t in tasks if t and t.status != Status.CANCELLED]


def nothing_was_seen_broken(evidence: RunRecord) -> list[str]:
    """While it ran, no limit was exceeded, and nothing was processing past its lease and one sweep."""
    return evidence.seen


PROMISES: tuple[Promise, ...] = (
    nothing_acknowledged_is_lost,
    everything_ends,
    completed_means_done,
    runs_are_paid_for,
    no_stale_write_is_accepted,
    only_what_was_accepted_is_told,
    only_the_faulty_lose_their_tasks,
    a_dead_worker_costs_one_attempt,
    children_wait_for_their_parents,
    no_limit_is_exceeded,
    a_failure_has_its_reason,
    what_was_cancelled_stays_so,
    nothing_was_seen_broken,
)


def broken(evidence: RunRecord) -> dict[str, list[str]]:
    """By the name of the promise, how it was broken; nothing for those that were kept."""
    found = defaultdict(list)
    for promise in PROMISES:
        for sentence in promise(evidence):
            found[promise.__name__].append(sentence)
    return dict(found)
