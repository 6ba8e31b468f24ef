"""Timing: the times of a cron expression in a time zone, and those that come every so many seconds. Pure, but for the
time zones of the machine.

    "30 2 * * *", Europe/Berlin --at_times, by_the_clock--> UTC seconds, in order, without an end
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, tzinfo
from functools import lru_cache
from itertools import count
from typing import Any

from dtq.errors import InvalidTask

DAY = 86400
NICKNAMES = {
    "@hourly": "0 * * * *", "@daily": "0 0 * * *", "@weekly": "0 0 * * 0", "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
}  # fmt: skip


def check_expression(cron: Any) -> None:
    from cronsim import CronSimError

    try:
        if not isinstance(cron, str) or len(_expression(cron).split()) != 5:
            raise CronSimError("it has not five fields")
        next(_simulate(_expression(cron), datetime(2024, 1, 1, tzinfo=UTC)))
    except CronSimError as error:
        raise InvalidTask(
            f"cron is {cron!r}: {error}; allowed: minute, hour, day of month, month and day of week, as in "
            f"'*/5 9-17 * * MON-FRI', or one of {', '.join(NICKNAMES)}"
        ) from None
    except StopIteration:
        raise InvalidTask(f"cron is {cron!r}: a time that never comes") from None


@lru_cache
def zone(tz: str) -> tzinfo:
    from zoneinfo import ZoneInfo  # takes a while: loaded with the first schedule, as cronsim is

    try:
        return UTC if tz == "UTC" else ZoneInfo(tz)
    except (KeyError, ValueError, TypeError, OSError):
        raise InvalidTask(f"tz is {tz!r}; allowed: the name of a time zone, as in 'Europe/Berlin'") from None


def times_of(cron: str, tz: str, after: float) -> Iterator[float]:
    """All times of this expression later than `after`, in order, in UTC seconds.

    Summer time is as in Debian's cron: a time of the day that the clock leaps over comes right after the gap, one that
    it shows twice comes the first time; where minute or hour begin with a star, every time that the clock shows
    counts, also twice.
    """
    expression, place = _expression(cron), zone(tz)
    minute, hour = expression.split()[:2]
    times = _at_times if minute[0] != "*" != hour[0] else _by_the_clock
    return (time for time in times(expression, place, after) if time > after)


def _at_times(expression: str, zone: tzinfo, after: float) -> Iterator[float]:
    """Times of the day. A start in the second of two equal hours counts as in the first: what comes may be earlier."""
    return (moment.timestamp() for moment in _simulate(expression, datetime.fromtimestamp(after, zone)))


def _by_the_clock(expression: str, zone: tzinfo, after: float) -> Iterator[float]:
    """Whatever the clock on the wall shows, one stretch after the other in which its distance from UTC stays. (With a
    zone, cronsim walks by whole hours, and misses times where clocks are changed by half an hour.)"""
    begin = int(after)
    while True:
        offset, end = _stretch(zone, begin)
        for wall in _simulate(expression, datetime.fromtimestamp(begin + offset - 1, UTC)):
            time = wall.timestamp() - offset
            if time >= end:
                begin = max(end, int(time) - 2 * DAY)  # until then no clock shows it
                break
            yield time
        else:
            return


def _stretch(zone: tzinfo, begin: int) -> tuple[int, int]:
    """The clock's distance from UTC in seconds, and the time until which it stays; a day, at most."""
    offset, first, last = _offset(zone, begin), begin, begin + DAY
    if _offset(zone, last) == offset:
        return offset, last
    while last - first > 1:
        middle = (first + last) // 2
        first, last = (middle, last) if _offset(zone, middle) == offset else (first, middle)
    return offset, last


def _offset(zone: tzinfo, time: int) -> int:
    return round((datetime.fromtimestamp(time, zone).utcoffset() or timedelta()).total_seconds())


def _simulate(expression: str, start: datetime) -> Iterator[datetime]:
    from cronsim import CronSim

    return CronSim(expression, start)


def _expression(cron: str) -> str:
    return NICKNAMES.get(cron, cron)


def multiples(since: float, every: float, after: float) -> Iterator[float]:
    times = (since + k * every for k in count(max(1, int((after - since) // every))))
    return (time for time in times if time > after)
