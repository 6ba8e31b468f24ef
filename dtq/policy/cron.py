"""Cron: when a schedule ticks, and what each tick adds to the queue. Pure functions; the time is a parameter.

A schedule is one task, its *tick*. No worker runs it: it waits until it expires. A node claims it then, like every
expired task and whatever the limits, and its outcome adds the work and sets the tick to its next time:

    tick, expires 10:05  --claim-->  fire  --update-->  tick, expires 10:10
         ^     |                                  `---> task report@2026-11-25T10:05:00Z
         |     +--> edit, pause, resume, remove: updates of the same task
         +--------------------- all by compare-and-set, so that each tick fires once, whatever the number of nodes

The payload of the tick holds the schedule as it was made; the result, as it was edited.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import chain, islice, takewhile
from typing import Any, Literal, get_args

import msgspec
from msgspec.structs import replace

from dtq.errors import InvalidTask
from dtq.policy import cron_times
from dtq.task import names
from dtq.task.codec import to_json
from dtq.task.model import ErrorInfo, Status, Task
from dtq.task.transitions import fail

Misfire = Literal["skip", "once", "all"]

QUEUE, TYPE = "dtq.schedules", "dtq.tick"  # of all ticks
FIRST_ID, END_ID = "dtq.schedule:", "dtq.schedule;"  # the ids of all ticks, and of nothing else, lie between
DAY = 86400
MISFIRE_GRACE = 60.0  # seconds: a later tick counts as missed; it takes less to replace a dead node
TICKS_PER_OUTCOME = 100  # tasks that one outcome adds, at most
MAX_BYTES = 4 << 20  # of payloads in one outcome
LONGEST_ID_AT = 1e9 + 0.001  # UTC seconds: the work of this tick has the longest possible id
MIN_EVERY, MAX_EVERY = 0.01, 366 * DAY  # seconds
_SINGLE_TASK_OPTIONS = ("id", "key", "after", "on_parent_failure", "run_at", "delay", "expires")


class Schedule(msgspec.Struct, frozen=True, omit_defaults=True):
    """A task that is added again and again, by a cron expression or at a fixed interval.

    `misfire` sets what happens to ticks that are MISFIRE_GRACE seconds late or more, as no node was running: "skip"
    them, run "once" for all of them, or run "all".
    """

    name: str  # unique in its queue
    task: dict[str, Any]  # type, payload and options of the tasks to add
    cron: str | None = None  # five fields, or a nickname such as "@daily"
    every: float | None = None  # seconds, instead of a cron expression
    tz: str = "UTC"  # time zone of the cron expression, such as "Europe/Berlin"
    misfire: Misfire = "once"
    paused: bool = False  # whether no tick comes
    since: float = 0.0  # UTC seconds from which `every` counts
    next_at: float | None = None  # the next tick in UTC seconds; None while paused
    problem: str | None = None  # what went wrong at the last tick

    @property
    def timing(self) -> tuple[str | None, float | None, str]:
        """What decides when it ticks: `cron`, `every` and `tz`."""
        return self.cron, self.every, self.tz


# --- what is allowed


def check(schedule: Schedule) -> None:
    """Raise InvalidTask, which names the argument, its value and what is allowed."""
    name = schedule.name
    if not isinstance(name, str) or len(name) > 160:
        names.refuse("name of the schedule", name, "text of up to 160 characters")
    names.check_free("name of the schedule", name)
    if schedule.misfire not in get_args(Misfire):
        raise InvalidTask(f"misfire is {schedule.misfire!r}; allowed: {', '.join(map(repr, get_args(Misfire)))}")
    if (schedule.cron is None) == (schedule.every is None):
        raise InvalidTask("a schedule needs either a cron expression, as in '*/5 * * * *', or every=30")
    cron_times.zone(schedule.tz)
    if schedule.cron is not None:
        cron_times.check_expression(schedule.cron)
    else:
        _check_every(schedule.every)
    _check_work(schedule)


def _check_work(schedule: Schedule) -> None:
    """Raise InvalidTask unless a user may add the task of each tick, also with the longest id that it can get."""
    try:
        work = _work(schedule, LONGEST_ID_AT, LONGEST_ID_AT)
    except (msgspec.ValidationError, TypeError) as error:
        raise InvalidTask(f"task of the schedule is not a valid task: {error}") from None
    names.check_free("type", work.type)
    names.check_free("queue", work.queue)


def _check_every(every: Any) -> None:
    if isinstance(every, bool) or not isinstance(every, (int, float)) or not MIN_EVERY <= every <= MAX_EVERY:
        raise InvalidTask(f"every is {every!r}; allowed: seconds, from {MIN_EVERY} to {MAX_EVERY:,.0f}")


def refuse_unfit(options: Mapping[str, Any]) -> None:
    """Raise InvalidTask for options that only a single task can have."""
    if unfit := [name for name in _SINGLE_TASK_OPTIONS if options.get(name) is not None]:
        raise InvalidTask(
            f"{unfit[0]} is for one task, but a schedule adds many; expires_in is allowed and counts from each tick"
        )


def work_of(options: Mapping[str, Any], example: Task) -> dict[str, Any]:
    """Return the options as a schedule keeps them, as JSON data. `example` is a task that was made from them."""
    values = {name: getattr(example, name, value) for name, value in options.items()}
    return msgspec.to_builtins(values)  # type: ignore[no-any-return]


# --- when


def ticks(schedule: Schedule, after: float) -> Iterator[float]:
    """Return all ticks later than `after`, in order, in UTC seconds."""
    if schedule.every is not None:
        return cron_times.multiples(schedule.since, schedule.every, after)
    return cron_times.times_of(schedule.cron or "", schedule.tz, after)


def upcoming(schedule: Schedule, now: float, n: int) -> list[datetime]:
    """Return the next n ticks in the schedule's time zone; none while it is paused."""
    first = schedule.next_at
    times = chain([first], ticks(schedule, first)) if first is not None else iter(())
    return [
        datetime.fromtimestamp(time, cron_times.zone(schedule.tz)) for time in islice((t for t in times if t > now), n)
    ]


def advance(schedule: Schedule, first: float, now: float, most: int = TICKS_PER_OUTCOME) -> tuple[list[float], float]:
    """Return up to `most` ticks from `first` on to run now, and the next tick, which may be due too."""
    if first > now:
        return [], first
    is_missed = first <= now - MISFIRE_GRACE
    start = next(ticks(schedule, now - MISFIRE_GRACE)) if is_missed and schedule.misfire != "all" else first
    due = list(islice(takewhile(lambda time: time <= now, chain([start], ticks(schedule, start))), most))
    if not due:
        return [first] if schedule.misfire == "once" else [], start
    return due, next(ticks(schedule, due[-1]))


# --- the tick


def tick_id(name: str) -> str:
    """Return the id of a schedule's tick."""
    return FIRST_ID + name


def first_tick(schedule: Schedule, now: float) -> Task:
    """Return the tick of a new schedule."""
    schedule = replace(schedule, since=round(now, 3), next_at=None, problem=None)
    at = next(ticks(schedule, now))
    return Task(
        type=TYPE, queue=QUEUE, id=tick_id(schedule.name), payload=msgspec.to_builtins(schedule), created_at=now,
        run_at=at, expires=at,
    )  # fmt: skip


def schedule_of(tick: Task) -> Schedule:
    """Return the schedule of a tick. Raises msgspec.ValidationError where it cannot be read."""
    schedule = msgspec.convert(tick.payload if tick.result is None else tick.result, Schedule)
    problem = None if tick.error is None else str(tick.error)
    return replace(schedule, next_at=None if tick.is_terminal else tick.expires, problem=problem)


def shown(tick: Task) -> Schedule:
    """Return the schedule of a tick; where it cannot be read, one with its name and the problem."""
    try:
        return schedule_of(tick)
    except Exception as error:
        return Schedule(tick.id.removeprefix(FIRST_ID), {}, problem=f"it cannot be read: {_short(error)}")


def is_genuine(tick: Task) -> bool:
    """Return whether `first_tick` made this task. A task that a user adds cannot pass for a tick: its payload would
    have to contain the time at which it is created."""
    try:
        made = msgspec.convert(tick.payload, Schedule)
    except Exception:  # the payload may be anything
        return False
    names_agree = (tick.type, tick.queue, tick.id) == (TYPE, QUEUE, tick_id(made.name))
    return names_agree and made.since == round(tick.created_at, 3)


def fire(tick: Task, now: float) -> tuple[Task, list[Task]]:
    """Return the outcome of a claimed tick: the tick, set to its next time, and the tasks to add. A tick that cannot be
    fired fails, whatever the reason."""
    try:
        schedule = schedule_of(tick)
        if not is_genuine(tick):
            raise InvalidTask("this task was not made as the tick of a schedule")
        check(schedule)
        most = max(1, min(TICKS_PER_OUTCOME, MAX_BYTES // len(to_json(schedule.task))))
        due, following = advance(schedule, tick.expires or now, now, most)
        return _armed(tick, following), [_work(schedule, at, now) for at in due]
    except Exception as error:  # written by another version of dtq, or no tick
        return fail(tick, ErrorInfo("ScheduleError", _short(error)), now, lambda: 0.0, final=True), []


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:500]


def blamed(tick: Task, works: Sequence[Task], stored: Mapping[str, Task]) -> Task:
    """Return the tick, with an error where another task in the store has the id of one of these tasks, so that it
    cannot be added. The same task is no problem: the tick fired twice."""
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
    """Return the id of a tick's task: report@2026-11-25T10:05:00Z. A tick that fires twice adds one task."""
    moment = datetime.fromtimestamp(round(at, 3), UTC)
    fraction = f".{moment.microsecond // 1000:03}" if moment.microsecond else ""
    return f"{name}@{moment:%Y-%m-%dT%H:%M:%S}{fraction}Z"


def _armed(tick: Task, at: float | None) -> Task:
    """Return the tick waiting for this time, or for none while it is paused."""
    status = Status.BLOCKED if at is None else Status.PENDING
    return replace(
        tick, status=status, run_at=at or tick.run_at, expires=at, doom=None, attempts=0, interruptions=0, worker=None,
        lease_until=None, started_at=None, finished_at=None, error=None,
    )  # fmt: skip


# --- changes


def edited(tick: Task, new: Schedule, now: float) -> Task:
    """Return the tick with a new definition.

    A paused schedule stays paused. One with the same timing keeps its next tick, so that a program may declare it at
    each start without delaying it.
    """
    if tick.is_terminal:
        return _defined(tick, replace(new, since=round(now, 3)), now)
    old = schedule_of(tick)
    if new.timing != old.timing:
        return _defined(tick, replace(new, since=round(now, 3), paused=old.paused), now)
    return _defined(tick, replace(new, since=old.since, paused=old.paused), now, tick.expires)


def paused(tick: Task, is_paused: bool, now: float) -> Task:
    """Return the tick after a pause, or after a resume. Ticks in between do not count as missed."""
    old = schedule_of(tick)
    return tick if old.paused == is_paused else _defined(tick, replace(old, paused=is_paused), now)


def _defined(tick: Task, schedule: Schedule, now: float, at: float | None = None) -> Task:
    definition = msgspec.to_builtins(replace(schedule, next_at=None, problem=None))
    if not schedule.paused and at is None:
        at = next(ticks(schedule, now))
    result = None if definition == tick.payload else definition
    return replace(_armed(tick, None if schedule.paused else at), result=result)
