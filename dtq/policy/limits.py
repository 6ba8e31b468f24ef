"""Limits: which lanes a limit selects, and what its settings may be. picking.py applies them in a claim.

A lane is (queue, type, limit key). A limit selects some lanes. It can pause them, and bound how many of their tasks run
at once and how many start in a second. Lanes of one queue and type form a kind.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from typing import Any

import msgspec

from dtq.errors import DTQError

Lane = tuple[str, str, str]  # queue, type, limit key
Kind = tuple[str, str, str]  # queue, type, and "*" for all lanes with a limit key or "" for the one without
Selector = tuple[str | None, str | None, str | None]  # a lane, with None for any

MAX_RATE = 1e6  # tasks a second
MAX_COUNT = 10**9
EACH = "*"  # a limit with this key applies to every key on its own


class Limit(msgspec.Struct, frozen=True):
    """A limit, and the lanes that it applies to."""

    queue: str | None = None  # None: every queue
    type: str | None = None  # None: every type
    key: str | None = None  # a limit key; None: every one, counted together; "*": each on its own
    paused: bool = False  # whether no task starts
    rate: float = 0.0  # tasks that start in a second; 0: no limit
    burst: int = 1  # tasks that may start at once after a pause
    max_running: int = 0  # tasks that run at once; 0: no limit

    def covers(self, lane: Lane) -> bool:
        """Return whether the limit applies to this lane (queue, type, limit key)."""
        queue, type_, key = lane
        return (
            self.queue in (None, queue)
            and self.type in (None, type_)
            and (self.key in (None, key) or (self.key == EACH and key != ""))
        )

    def bucket(self, lane: Lane) -> str:
        """Return the bucket that this `lane` counts in: its limit key where the limit's key is "*", else ""."""
        return lane[2] if self.key == EACH else ""

    def holds_all_of(self, kind: Kind) -> bool:
        """Return whether the limit counts every lane of this kind together, or pauses every one."""
        queue, type_, key = kind
        fits = self.queue in (None, queue) and self.type in (None, type_)
        return fits and (self.key is None or (self.paused and self.key == key == EACH))

    @property
    def selector(self) -> Selector:
        """Its queue, type and key: a store has one limit for each selector."""
        return self.queue, self.type, self.key

    @property
    def ahead(self) -> float:
        """Seconds by which `next_at` of a bucket may be in the future while a task may still start."""
        return (self.burst - 1) / self.rate if self.rate else 0.0

    def with_changes(self, changes: Mapping[str, Any]) -> Limit:
        """Return the limit with these `changes` (field -> value); fields that are None stay as they are."""
        return msgspec.structs.replace(self, **{name: value for name, value in changes.items() if value is not None})

    @property
    def is_void(self) -> bool:
        """Whether it limits nothing."""
        return not (self.paused or self.rate or self.max_running)


def check(name: str, value: object, most: float, whole: bool = False) -> None:
    """Raise DTQError where a setting of a limit is not None and not a (whole) number from 0 to `most`."""
    kinds = int if whole else (int, float)
    if value is not None and (isinstance(value, bool) or not isinstance(value, kinds) or not 0 <= value <= most):
        raise DTQError(f"{name} is {value!r}; allowed: a {'whole ' * whole}number from 0 (no limit) to {most:,.0f}")


def changes(rate: float | None, burst: int | None, max_running: int | None) -> dict[str, Any]:
    """Return the changes for `set_lane`. Raise DTQError where a setting is out of range or there is no limit."""
    check("rate", rate, MAX_RATE)
    check("burst", burst, MAX_COUNT, whole=True)
    check("max_running", max_running, MAX_COUNT, whole=True)
    if rate and burst is None:
        burst = usual_burst(rate)
    if burst == 0 or rate is burst is max_running is None:
        raise DTQError("a limit needs a rate, max_running, or both; burst is 1 or more, and goes with a rate")
    return {"rate": rate, "burst": burst, "max_running": max_running}


def usual_burst(rate: float) -> int:
    """Return the tasks of a tenth of a second. With less, each start that comes a moment late would lower the rate."""
    return max(1, ceil(rate / 10))


def kind_of(lane: Lane) -> Kind:
    """Return the kind of a lane."""
    queue, type_, key = lane
    return queue, type_, EACH if key else ""
