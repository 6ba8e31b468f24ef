"""When schedules tick, and what happens to missed ticks: pure functions, compared with a walk over the minutes.

pytest -m hourly tests/policy/test_cron.py    every change of every zone over five years (some minutes)
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import islice, takewhile
from operator import contains
from zoneinfo import ZoneInfo, available_timezones

import pytest
from msgspec.structs import replace

from dtq.errors import InvalidTask
from dtq.policy import cron
from dtq.policy.cron import (
    MISFIRE_GRACE,
    Schedule,
    advance,
    check,
    edited,
    fire,
    first_tick,
    paused,
    schedule_of,
    ticks,
    upcoming,
)
from dtq.task.model import Status

NOW = 1_700_000_000.0
WORK = {"type": "a", "payload": None}
MINUTE, HOUR, DAY = 60, 3600, 86400
YEARS = range(2022, 2027)
EXPRESSIONS = (
    "* * * * *", "*/5 * * * *", "0 * * * *", "30 * * * *", "0 0 * * *", "30 0 * * *", "15 1 * * *", "0 2 * * *",
    "30 2 * * *", "5,35,55 1-3 * * *", "0 */2 * * *", "*/20 2 * * *", "0 3 * * SUN", "59 23 * * SAT", "30 2 1-31 3 *",
    "7 4 * * 1-5",
)  # fmt: skip
TELLING = ("Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Antarctica/Troll")


def by(expression, tz="UTC", **fields):
    return Schedule("s", WORK, expression, tz=tz, **fields)


def every(seconds, since=NOW, **fields):
    return Schedule("s", WORK, every=seconds, since=since, **fields)


def stamp(*moment):
    return datetime(*moment, tzinfo=UTC).timestamp()


# --- the oracle: a walk over the minutes -----------------------------------------------------------------------------


@cache
def field(text, low, high, names=()):
    """The numbers that one field of an expression stands for."""
    numbers = set()
    for part in text.split(","):
        span, _, step = part.partition("/")
        if span == "*":
            first, last = low, high
        else:
            ends = [names.index(end) if end in names else int(end) for end in span.split("-")]
            first, last = ends[0], ends[-1]
        numbers |= set(range(first, last + 1, int(step or 1)))
    return numbers


@cache
def fields(expression):
    minute, hour, day, month, weekday = expression.split()
    days = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")
    return (
        field(minute, 0, 59), field(hour, 0, 23), field(day, 1, 31), field(month, 1, 12), field(weekday, 0, 6, days),
    )  # fmt: skip


def shown(wall):
    """What a clock shows, as the fields of an expression."""
    return wall.minute, wall.hour, wall.day, wall.month, wall.isoweekday() % 7


def steps(zone, start, end):
    """(minute, what the clock shows, whether for the second time, what it has leapt over), minute by minute."""
    before = None
    for minute in range(start, end + 1, MINUTE):
        wall = datetime.fromtimestamp(minute, zone)
        naive = wall.replace(tzinfo=None, fold=0)
        gap = 0 if before is None else int((naive - before).total_seconds()) // 60
        leapt = [shown(before + timedelta(minutes=n)) for n in range(1, gap)]
        yield minute, shown(wall), wall.fold, leapt
        before = naive


def walk(expression, path):
    """The minutes of these steps at which Debian's cron starts the job."""
    wanted = fields(expression)
    is_wild = expression.startswith("*") or expression.split()[1].startswith("*")
    due = []
    for minute, clock, is_second, leapt in path:
        hit = all(map(contains, wanted, clock))
        if not is_wild:
            hit = (hit and not is_second) or any(all(map(contains, wanted, time)) for time in leapt)
        if hit:
            due.append(minute)
    return due


def changes(tz):
    """The moments (UTC seconds, to the minute) at which the zone's offset changes."""
    zone, found = ZoneInfo(tz), []

    def offset(time):
        return datetime.fromtimestamp(time, zone).utcoffset()

    for low in range(int(stamp(YEARS[0], 1, 1)), int(stamp(YEARS[-1] + 1, 1, 1)), DAY):
        before, after = low, low + DAY
        if offset(before) != offset(after):
            while after - before > MINUTE:
                middle = (before + after) // 2 // MINUTE * MINUTE
                before, after = (middle, after) if offset(middle) == offset(before) else (before, middle)
            found.append(after)
    return found


def differences(tz):
    """(what differs, how many ticks were compared) in the 48 hours around each change."""
    zone, wrong, compared = ZoneInfo(tz), [], 0
    for change in changes(tz):
        start, end = change - DAY, change + DAY
        path = list(steps(zone, start, end))
        for expression in EXPRESSIONS:
            ours = list(takewhile(lambda t: t <= end, ticks(by(expression, tz), start - 1)))  # noqa: B023
            theirs = walk(expression, path)
            compared += len(theirs)
            if ours != theirs:
                wrong.append((tz, expression, sorted(set(ours) ^ set(theirs))[:5]))
    return wrong, compared


@pytest.mark.parametrize("tz", TELLING)
def test_around_changes_of_the_clock_ticks_are_those_of_a_walk_over_the_minutes(tz):
    wrong, compared = differences(tz)
    assert wrong == []
    assert compared > 10_000


@pytest.mark.hourly
def test_around_every_change_of_every_zone_ticks_are_those_of_a_walk_over_the_minutes(capsys):
    zones = {tz: found for tz in sorted(available_timezones()) if (found := changes(tz))}
    alike = {alike_by(tz, found): tz for tz, found in zones.items()}  # many are other names of the same clock
    results = {clock: differences(tz) for clock, tz in alike.items()}
    compared = sum(results[alike_by(tz, found)][1] for tz, found in zones.items())
    with capsys.disabled():
        n = sum(map(len, zones.values()))
        print(f"\n{len(zones)} zones ({len(alike)} clocks), {n} changes, {compared:,} ticks")
    assert [line for wrong, _ in results.values() for line in wrong] == []


def alike_by(tz, found):
    """What the walks around these changes depend on."""
    return tuple(
        (at, *(datetime.fromtimestamp(at + s, ZoneInfo(tz)).utcoffset() for s in (-DAY, 0, DAY))) for at in found
    )


# --- when


def test_every_counts_from_the_time_that_it_was_made():
    assert list(islice(ticks(every(30), NOW), 3)) == [NOW + 30, NOW + 60, NOW + 90]
    assert next(ticks(every(30), NOW + 30)) == NOW + 60
    assert next(ticks(every(0.1), NOW + 1e6)) > NOW + 1e6


def test_a_schedule_in_the_second_of_two_equal_hours_does_not_go_back_to_the_first():
    at = datetime(2026, 10, 25, 2, 10, tzinfo=ZoneInfo("Europe/Berlin"), fold=1).timestamp()
    first = next(ticks(by("30 2 * * *", "Europe/Berlin"), at))
    assert datetime.fromtimestamp(first, ZoneInfo("Europe/Berlin")).isoformat() == "2026-10-26T02:30:00+01:00"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"cron": "* * * *"}, "five fields"),
        ({"cron": "0 0 * * * *"}, "five fields"),
        ({"cron": "61 * * * *"}, "Bad minute"),
        ({"cron": "0 0 30 2 *"}, "Bad day"),
        ({"cron": 5}, "five fields"),
        ({"cron": "@hourly", "every": 5}, "needs either"),
        ({}, "needs either"),
        ({"every": 0}, "every is 0"),
        ({"every": True}, "every is True"),
        ({"cron": "@daily", "tz": "Europe/Bonn"}, "tz is 'Europe/Bonn'"),
        ({"cron": "@daily", "tz": "../../etc/passwd"}, "tz is"),
        ({"cron": "@daily", "tz": None}, "tz is None"),
        ({"cron": "@daily", "misfire": "twice"}, "allowed: 'skip', 'once', 'all'"),
        ({"cron": "@daily", "name": "two words"}, "two words"),
        ({"cron": "@daily", "name": "x" * 161}, "160"),
    ],
)
def test_what_cannot_be_is_refused_with_what_is_allowed(fields, message):
    with pytest.raises(InvalidTask, match=message):
        check(Schedule(**{"name": "s", "task": WORK, **fields}))


def test_the_preview_is_in_the_schedules_own_time():
    schedule = replace(by("0 9 * * MON", "Asia/Tokyo"), next_at=stamp(2026, 1, 5))
    assert [f"{moment:%a %H:%M %z}" for moment in upcoming(schedule, stamp(2026, 1, 1), 2)] == ["Mon 09:00 +0900"] * 2
    assert upcoming(replace(schedule, next_at=None), NOW, 5) == []


# --- what is due


def test_ticks_within_the_grace_all_run_whatever_the_policy():
    for misfire in ("skip", "once", "all"):
        due, following = advance(every(10, misfire=misfire), NOW + 10, NOW + 35)
        assert (due, following) == ([NOW + 10, NOW + 20, NOW + 30], NOW + 40)


@pytest.mark.parametrize(("misfire", "expected"), [("skip", []), ("once", [10]), ("all", [10, 20, 30])])
def test_missed_ticks_are_skipped_run_once_or_all_run(misfire, expected):
    hours = every(HOUR, misfire=misfire)
    due, following = advance(hours, NOW + HOUR, NOW + 3 * HOUR + MISFIRE_GRACE + 1)
    assert [(at - NOW) / HOUR * 10 for at in due] == expected
    assert following == NOW + 4 * HOUR


def test_where_a_tick_is_in_time_the_missed_ones_before_it_are_covered():
    due, _ = advance(every(HOUR), NOW + HOUR, NOW + 5 * HOUR + 1)
    assert due == [NOW + 5 * HOUR]


def test_a_year_of_missed_minutes_comes_in_batches():
    minutely, first, now = by("* * * * *", misfire="all"), stamp(2025, 1, 1), stamp(2026, 1, 1)
    due, following = advance(minutely, first, now)
    assert (len(due), following) == (cron.TICKS_PER_OUTCOME, due[-1] + MINUTE)
    assert due[0] == first


@pytest.mark.parametrize("misfire", ["skip", "once"])
def test_a_year_of_missed_minutes_is_no_work_where_they_are_not_all_run(misfire):
    due, following = advance(by("* * * * *", misfire=misfire), stamp(2025, 1, 1), stamp(2026, 1, 1))
    assert (due, following) == ([stamp(2026, 1, 1)], stamp(2026, 1, 1, 0, 1))


def test_large_payloads_make_smaller_batches():
    big = Schedule("s", {"type": "a", "payload": "x" * (1 << 20)}, every=1, since=NOW, misfire="all")
    tick, works = fire(replace(first_tick(big, NOW), status=Status.PROCESSING), NOW + 50)
    assert len(works) == 3
    assert tick.expires == NOW + 4


# --- the tick


def taken(tick, **fields):
    """Return the tick as `claim` returns it."""
    return replace(tick, status=Status.PROCESSING, doom="expired", worker="n", version=2, **fields)


def test_a_tick_plants_its_work_and_waits_for_the_next():
    schedule = Schedule("report", {"type": "a", "payload": {"n": 1}, "priority": 5, "expires_in": 20}, "*/5 * * * *")
    tick, (work,) = fire(taken(first_tick(schedule, stamp(2026, 1, 1))), stamp(2026, 1, 1, 0, 5, 1))
    assert (work.id, work.payload, work.priority) == ("report@2026-01-01T00:05:00Z", {"n": 1}, 5)
    assert (work.run_at, work.expires) == (stamp(2026, 1, 1, 0, 5), stamp(2026, 1, 1, 0, 5, 20))
    assert (tick.status, tick.expires, tick.doom, tick.attempts) == ("pending", stamp(2026, 1, 1, 0, 10), None, 0)


def test_a_tick_that_was_given_out_too_early_plants_nothing():
    tick = first_tick(every(30), NOW)
    again, works = fire(taken(tick), NOW + 29)
    assert (works, again.expires) == ([], NOW + 30)


def test_a_tick_that_cannot_be_read_fails_and_says_why():
    tick = taken(replace(first_tick(every(30), NOW), payload={"name": 5}))
    failed, works = fire(tick, NOW + 30)
    assert (failed.status, failed.error.type, works) == ("failed", "ScheduleError", [])


DEEP = {"a": None}
for _ in range(2000):
    DEEP = {"a": DEEP}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"every": 0}, "every is 0"),
        ({"every": -5}, "every is -5"),
        ({"every": 1e-300}, "every is 1e-300"),
        ({"every": 1e300}, "every is 1e"),
        ({"every": float("nan")}, "every is nan"),
        ({"every": None, "cron": "0 0 30 2 *"}, "cron is"),
        ({"every": None, "cron": "* * * *"}, "cron is"),
        ({"every": None, "cron": "* " * 3000}, "cron is"),
        ({"every": None, "cron": "0 0 * * *", "tz": "No/Where"}, "tz is"),
        ({"every": None}, "needs either"),
        ({"cron": "@daily"}, "needs either"),
        ({"misfire": "often"}, "misfire"),
        ({"task": {}}, "type"),
        ({"task": {"type": "a", "priority": "high"}}, "priority"),
        ({"task": {"type": "a", "nonsense": 1, "timeout": -1}}, "timeout"),
        ({"task": {"type": "a", "expires_in": "soon"}}, "is not a valid task"),
        ({"task": {"type": "dtq.webhook"}}, "type is 'dtq.webhook'"),
        ({"task": {"type": "a", "queue": "dtq.schedules"}}, "queue is 'dtq.schedules'"),
        ({"task": {"type": "a", "payload": DEEP}}, ""),
        ({"task": 5}, "object"),
        ({"name": "another"}, "not made as the tick"),
        ({"since": NOW + 1}, "not made as the tick"),
    ],
)
def test_whatever_a_tick_holds_firing_it_raises_nothing_and_plants_nothing(fields, message):
    tick = taken(first_tick(every(30), NOW))
    payload = {**tick.payload, **fields}
    for changed in (replace(tick, payload=payload), replace(tick, result=payload)):
        failed, works = fire(changed, NOW + 30)
        if changed.result and {"since", "name"} & fields.keys():  # these are looked at in the payload alone
            continue
        assert (failed.status, failed.error.type, works) == ("failed", "ScheduleError", [])
        assert message in failed.error.message
        assert len(failed.error.message) <= 500


@pytest.mark.parametrize("tick", [{"expires": 1e300}, {"expires": float("inf")}, {"expires": -1e9}, {"payload": None},
                                  {"created_at": NOW - 1}, {"queue": "default"}, {"id": "mine"}])  # fmt: skip
def test_whatever_a_tick_is_firing_it_raises_nothing(tick):
    outcome, works = fire(replace(taken(first_tick(every(30), NOW)), **tick), NOW + 30)
    assert outcome.status == "failed" or len(works) <= cron.TICKS_PER_OUTCOME


def test_a_schedule_whose_tasks_could_not_be_added_is_refused_when_it_is_made():
    long = {"name": "x" * 150, "every": 60, "task": {"type": "a", "webhook": {"url": "https://example.org/"}}}
    with pytest.raises(InvalidTask, match="160 characters"):
        check(Schedule(**long))
    check(Schedule(**{**long, "name": "x" * 135}))


def test_work_that_lost_its_id_to_another_task_is_told_by_the_schedule():
    tick, (work,) = fire(taken(first_tick(every(30), NOW)), NOW + 30)
    assert cron.blamed(tick, [work], {}) == tick
    assert cron.blamed(tick, [work], {work.id: replace(work, status=Status.COMPLETED, run_at=NOW)}) == tick
    told = cron.blamed(tick, [work], {work.id: replace(work, payload="of another")})
    assert schedule_of(told).problem == f"NotAdded: {work.id}: another task has this id"
    again, _ = fire(replace(told, status=Status.PROCESSING), NOW + 60)
    assert schedule_of(again).problem is None


def test_declaring_the_same_schedule_again_changes_nothing():
    tick = first_tick(every(HOUR), NOW)
    assert edited(tick, every(HOUR, since=0), NOW + 1800) == tick


def test_a_new_payload_keeps_the_next_tick_and_a_new_time_does_not():
    tick = first_tick(every(HOUR), NOW)
    other = edited(tick, Schedule("s", {"type": "b", "payload": 1}, every=HOUR), NOW + 1800)
    assert (other.expires, schedule_of(other).task) == (NOW + HOUR, {"type": "b", "payload": 1})
    assert edited(other, every(60), NOW + 1800).expires == NOW + 1860


def test_a_paused_schedule_stays_paused_when_it_is_edited_and_misses_nothing():
    tick = paused(first_tick(every(60), NOW), True, NOW)
    assert (tick.status, tick.expires, schedule_of(tick).next_at) == ("blocked", None, None)
    tick = edited(tick, every(30), NOW + 10)
    assert tick.expires is None
    assert paused(tick, False, NOW + 1000).expires == NOW + 1000 + 30 - (1000 - 10) % 30
