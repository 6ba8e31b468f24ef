"""The times of a cron expression in a time zone, and those of a fixed interval. Pure, except that the time
zones are those of the machine.

    "30 2 * * *", Europe/Berlin --times_of--> UTC seconds, in order, without end
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
    """Raise InvalidTask where this is no cron expression, or one that never comes."""
    from cronsim import CronSimError

    try:
        if not isinstance(cron, str) or len(_expression(cron).split()) != 5:
            raise CronSimError("it does not have five fields")
        next(_simulate(_expression(cron), datetime(2024, 1, 1, tzinfo=UTC)))
    except CronSimError as error:
        raise InvalidTask(
            f"cron is {cron!r}: {error}; allowed: minute, hour, day of month, month and day of week, as in "
            f"'*/5 9-17 * * MON-FRI', or one of {', '.join(NICKNAMES)}"
        ) from None
    except StopIteration:
        raise InvalidTask(f"cron is {cron!r}; allowed: an expression whose time comes at some date") from None


@lru_cache
def zone(tz: str) -> tzinfo:
    """Return the time zone of this name. Raise InvalidTask where there is none."""
    from zoneinfo import ZoneInfo  # slow to import, like cronsim: loaded with the first schedule

    try:
        return UTC if tz == "UTC" else ZoneInfo(tz)
    except (KeyError, ValueError, TypeError, OSError):
        raise InvalidTask(f"tz is {tz!r}; allowed: the name of a time zone, as in 'Europe/Berlin'") from None


def times_of(cron: str, tz: str, after: float) -> Iterator[float]:
    """Return all times of this expression later than `after`, in order, in UTC seconds.

    Daylight saving time is as in Debian's cron. A time of day that the clock skips comes right after the gap; one that
    it shows twice comes the first time. Where minute or hour begin with a star, every time that the clock shows counts,
    also twice.
    """
    expression, place = _expression(cron), zone(tz)
    minute, hour = expression.split()[:2]
    times = _times_of_day if minute[0] != "*" != hour[0] else _clock_times
    return (time for time in times(expression, place, after) if time > after)


def _times_of_day(expression: str, zone: tzinfo, after: float) -> Iterator[float]:
    """Return times of day. A start in the second of two equal hours counts as in the first, so the first time may be
    earlier than `after`."""
    return (moment.timestamp() for moment in _simulate(expression, datetime.fromtimestamp(after, zone)))


def _clock_times(expression: str, zone: tzinfo, after: float) -> Iterator[float]:
    """Yield every time that the local clock shows, period by period of constant UTC offset.

    cronsim itself steps by whole hours in a zone, and misses times where a clock changes by half an hour.
    """
    begin = int(after)
    while True:
        offset, end = _constant_offset(zone, begin)
        for wall in _simulate(expression, datetime.fromtimestamp(begin + offset - 1, UTC)):
            time = wall.timestamp() - offset
            if time >= end:
                begin = max(end, int(time) - 2 * DAY)  # no clock shows it before
                break
            yield time
        else:
            return


def _constant_offset(zone: tzinfo, begin: int) -> tuple[int, int]:
    """Return the UTC offset in seconds at `begin`, and until when it stays the same, at most a day later."""
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
    """Return `since` plus multiples of `every` (seconds), those later than `after`."""
    times = (since + k * every for k in count(max(1, int((after - since) // every))))
    return (time for time in times if time > after)
