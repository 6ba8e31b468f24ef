"""Cron: when a schedule ticks, and what each tick adds to the queue. Pure policy: the time is passed in.

A schedule is one task, its *tick*, which no worker ever runs: it waits to expire. When its time has come, `claim`
gives it out as it does all that has expired, whatever the limits, and its outcome plants the work and arms it anew:

    tick, expires 10:05  --claim-->  fire  --update-->  tick, expires 10:10
         ^     |                                  `---> task report@2026-11-25T10:05:00Z
         |     +--> edit, pause, resume, remove: updates of the same task
         +--------------------- all of them compare-and-set, so that each tick comes once, however many nodes there are

What it was made as stands in the payload of the tick, what it was edited to in its result.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import chain, islice, takewhile
from typing import Any, Literal, get_args

import msgspec
from msgspec.structs import replace

from dtq.errors import InvalidTask
from dtq.policy import timing
from dtq.task import names
from dtq.task.codec import to_json
from dtq.task.model import ErrorInfo, Status, Task
from dtq.task.transitions import fail

Misfire = Literal["skip", "once", "all"]

QUEUE, TYPE = "dtq.schedules", "dtq.tick"  # of all ticks
FIRST_ID, END_ID = "dtq.schedule:", "dtq.schedule;"  # the ids of all ticks, and of nothing else, lie between
DAY = 86400
GRACE = 60.0  # seconds: a tick that is so late is missed; more than it takes to replace a dead node
BATCH = 100  # works, at most, that one outcome plants
MAX_BYTES = 4 << 20  # of payloads in one outcome
LONG_MOMENT = 1e9 + 0.001  # UTC seconds: no work has a longer id than that of this tick
SHORTEST, LONGEST = 0.01, 366 * DAY  # of `every`
_OF_ONE = ("id", "key", "after", "on_parent_failure", "run_at", "delay", "expires")


class Schedule(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is added (`task`: its type, payload and options) and when: by a cron expression in a time zone, or `every`
    so many seconds, counted from `since` (UTC seconds).

    `misfire` is what becomes of ticks that came while nobody was there, and are GRACE late or more: "skip" them, run
    "once" for them, or run "all". `next_at` is the next tick (UTC seconds); None while it is paused. `problem` is what
    went wrong at its last tick, if anything did.
    """

    name: str
    task: dict[str, Any]
    cron: str | None = None
    every: float | None = None
    tz: str = "UTC"
    misfire: Misfire = "once"
    paused: bool = False
    since: float = 0.0
    next_at: float | None = None
    problem: str | None = None

    @property
    def timing(self) -> tuple[str | None, float | None, str]:
        return self.cron, self.every, self.tz


# --- what is allowed


def check(schedule: Schedule) -> None:
    """Raises InvalidTask, naming the argument, what it is and what is allowed."""
    name = schedule.name
    if not isinstance(name, str) or len(name) > 160:
        names.refuse("name of the schedule", name, "text of up to 160 characters")
    names.check_free("name of the schedule", name)
    if schedule.misfire not in get_args(Misfire):
        raise InvalidTask(f"misfire is {schedule.misfire!r}; allowed: {', '.join(map(repr, get_args(Misfire)))}")
    if (schedule.cron is None) == (schedule.every is None):
        raise InvalidTask("a schedule has a cron expression or `every`, one of them: as in '*/5 * * * *', or every=30")
    timing.zone(schedule.tz)
    if schedule.cron is not None:
        timing.check_expression(schedule.cron)
    else:
        _check_every(schedule.every)
    _check_work(schedule)


def _check_work(schedule: Schedule) -> None:
    """Each tick adds a task, so it must be one that a user may add; with the longest id that it can get."""
    try:
        work = _work(schedule, LONG_MOMENT, LONG_MOMENT)
    except (msgspec.ValidationError, TypeError) as error:
        raise InvalidTask(f"task of the schedule is not what a task can be: {error}") from None
    names.check_free("type", work.type)
    names.check_free("queue", work.queue)


def _check_every(every: Any) -> None:
    if isinstance(every, bool) or not isinstance(every, (int, float)) or not SHORTEST <= every <= LONGEST:
        raise InvalidTask(f"every is {every!r}; allowed: seconds, from {SHORTEST} to {LONGEST:,.0f}")


def refuse_unfit(options: Mapping[str, Any]) -> None:
    """Raises InvalidTask for options that only a single task can have."""
    if unfit := [name for name in _OF_ONE if options.get(name) is not None]:
        raise InvalidTask(f"{unfit[0]} is of one task, and a schedule adds many; expires_in counts from each tick")


def work_of(options: Mapping[str, Any], example: Task) -> dict[str, Any]:
    """The options as a schedule keeps them, in JSON data; `example` is a task that was made from them."""
    values = {name: getattr(example, name, value) for name, value in options.items()}
    return msgspec.to_builtins(values)  # type: ignore[no-any-return]


# --- when


def ticks(schedule: Schedule, after: float) -> Iterator[float]:
    """All ticks later than `after`, in order, in UTC seconds."""
    if schedule.every is not None:
        return timing.multiples(schedule.since, schedule.every, after)
    return timing.times_of(schedule.cron or "", schedule.tz, after)


def upcoming(schedule: Schedule, now: float, n: int) -> list[datetime]:
    """The next n ticks, in the schedule's own time zone; none while it is paused."""
    first = schedule.next_at
    times = chain([first], ticks(schedule, first)) if first is not None else iter(())
    return [datetime.fromtimestamp(time, timing.zone(schedule.tz)) for time in islice((t for t in times if t > now), n)]


def advance(schedule: Schedule, first: float, now: float, most: int = BATCH) -> tuple[list[float], float]:
    """The ticks, from `first` on, that are to be run now, and the one to wait for; it may be due already."""
    if first > now:
        return [], first
    is_missed = first <= now - GRACE
    start = next(ticks(schedule, now - GRACE)) if is_missed and schedule.misfire != "all" else first
    due = list(islice(takewhile(lambda time: time <= now, chain([start], ticks(schedule, start))), most))
    if not due:
        return [first] if schedule.misfire == "once" else [], start
    return due, next(ticks(schedule, due[-1]))


# --- the tick


def tick_id(name: str) -> str:
    return FIRST_ID + name


def first_tick(schedule: Schedule, now: float) -> Task:
    """The tick of a new schedule."""
    schedule = replace(schedule, since=round(now, 3), next_at=None, problem=None)
    at = next(ticks(schedule, now))
    return Task(
        type=TYPE, queue=QUEUE, id=tick_id(schedule.name), payload=msgspec.to_builtins(schedule), created_at=now,
        run_at=at, expires=at,
    )  # fmt: skip


def schedule_of(tick: Task) -> Schedule:
    schedule = msgspec.convert(tick.payload if tick.result is None else tick.result, Schedule)
    problem = None if tick.error is None else str(tick.error)
    return replace(schedule, next_at=None if tick.is_terminal else tick.expires, problem=problem)


def shown(tick: Task) -> Schedule:
    """The schedule of a tick; where it cannot be read, its name and why."""
    try:
        return schedule_of(tick)
    except Exception as error:
        return Schedule(tick.id.removeprefix(FIRST_ID), {}, problem=f"it cannot be read: {_short(error)}")


def is_genuine(tick: Task) -> bool:
    """Return whether `first_tick` made it. A task that was added as any other cannot pass for a tick: its payload would
    have to foretell when it is created."""
    try:
        made = msgspec.convert(tick.payload, Schedule)
    except Exception:  # whatever stands there
        return False
    names_agree = (tick.type, tick.queue, tick.id) == (TYPE, QUEUE, tick_id(made.name))
    return names_agree and made.since == round(tick.created_at, 3)


def fire(tick: Task, now: float) -> tuple[Task, list[Task]]:
    """The outcome of a tick that was claimed: armed for the time after, and the work that it plants. A tick that cannot
    be fired, for whatever reason, fails."""
    try:
        schedule = schedule_of(tick)
        if not is_genuine(tick):
            raise InvalidTask("this task was not made as the tick of a schedule")
        check(schedule)
        most = max(1, min(BATCH, MAX_BYTES // len(to_json(schedule.task))))
        due, following = advance(schedule, tick.expires or now, now, most)
        return _armed(tick, following), [_work(schedule, at, now) for at in due]
    except Exception as error:  # of another version of dtq, or not ours
        return fail(tick, ErrorInfo("ScheduleError", _short(error)), now, lambda: 0.0, final=True), []


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:500]


def blamed(tick: Task, works: Sequence[Task], stored: Mapping[str, Task]) -> Task:
    """The armed tick; with an error where another task in the store has the id of one of these works, which is then not
    added. The very same work is no loss: the tick came twice."""
    lost = [work for work in works if (other := stored.get(work.id)) is not None and not _is_same(work, other)]
    if not lost:
        return tick
    what = lost[0].id if len(lost) == 1 else f"{lost[0].id} and {len(lost) - 1} more"
    return replace(tick, error=ErrorInfo("NotAdded", f"{what}: another task has this id"))


def _is_same(work: Task, stored: Task) -> bool:
    return work.lane == stored.lane and work.payload == stored.payload


def _work(schedule: Schedule, at: float, now: float) -> Task:
    options = dict(schedule.task)
    if (expires_in := options.pop("expires_in", None)) is not None:
        options["expires"] = at + expires_in
    return msgspec.convert(options | {"id": work_id(schedule.name, at), "run_at": at, "created_at": now}, Task)


def work_id(name: str, at: float) -> str:
    """report@2026-11-25T10:05:00Z: a tick that came twice would add one task."""
    moment = datetime.fromtimestamp(round(at, 3), UTC)
    fraction = f".{moment.microsecond // 1000:03}" if moment.microsecond else ""
    return f"{name}@{moment:%Y-%m-%dT%H:%M:%S}{fraction}Z"


def _armed(tick: Task, at: float | None) -> Task:
    """The tick as it waits for this time, or, while it is paused, for none."""
    status = Status.BLOCKED if at is None else Status.PENDING
    return replace(
        tick, status=status, run_at=at or tick.run_at, expires=at, doom=None, attempts=0, interruptions=0, worker=None,
        lease_until=None, started_at=None, finished_at=None, error=None,
    )  # fmt: skip


# --- changes


def edited(tick: Task, new: Schedule, now: float) -> Task:
    """The tick with this definition. A schedule that is paused stays paused, and one whose timing is as it was keeps
    its next tick: who declares it anew at each start does not put it off."""
    if tick.is_terminal:
        return _defined(tick, replace(new, since=round(now, 3)), now)
    old = schedule_of(tick)
    if new.timing != old.timing:
        return _defined(tick, replace(new, since=round(now, 3), paused=old.paused), now)
    return _defined(tick, replace(new, since=old.since, paused=old.paused), now, tick.expires)


def paused(tick: Task, is_paused: bool, now: float) -> Task:
    """The tick of the schedule when it is paused, or goes on: ticks that come in between are not missed ones."""
    old = schedule_of(tick)
    return tick if old.paused == is_paused else _defined(tick, replace(old, paused=is_paused), now)


def _defined(tick: Task, schedule: Schedule, now: float, at: float | None = None) -> Task:
    definition = msgspec.to_builtins(replace(schedule, next_at=None, problem=None))
    if not schedule.paused and at is None:
        at = next(ticks(schedule, now))
    result = None if definition == tick.payload else definition
    return replace(_armed(tick, None if schedule.paused else at), result=result)
