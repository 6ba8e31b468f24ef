"""Alerts: raised once when a metric has been beyond its threshold for long enough, and cleared once when it has been
back for long enough. A metric that jumps about in between changes nothing.

    value over `value` for `duration` s --> raised ... --> at most `clear` for `cooldown` s --> cleared
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

from dtq.errors import DTQError
from dtq.monitor.readings import METRICS
from dtq.queue.events import Event

Change = Literal["raised", "cleared"]
NAMES = frozenset({"alert:raised", "alert:cleared"})
DEFAULTS: Mapping[str, float] = {
    "queue_size": 1000, "failure_rate": 0.1, "avg_execution_time": 60, "worker_utilization": 0.9,
}  # fmt: skip


class Threshold(msgspec.Struct, frozen=True):
    """When an alert is raised and cleared. A metric without a value, because nothing ran, counts as good.

    Args:
        value: the alert is raised when the metric has been above this value for `duration` seconds.
        duration: seconds.
        clear: the alert is cleared when the metric has been at this value or better for `cooldown` seconds; None: 10 %
            better than `value`.
        cooldown: seconds.
        below: raise the alert when the metric is below `value`, not above it.

    Raises:
        DTQError: a number is not allowed.
    """

    value: float
    duration: float = 0.0
    clear: float | None = None
    cooldown: float = 60.0
    below: bool = False

    def __post_init__(self) -> None:
        for name in ("value", "duration", "cooldown"):
            number = getattr(self, name)
            if isinstance(number, bool) or not isinstance(number, (int, float)) or not 0 <= number < float("inf"):
                raise DTQError(f"a threshold's {name} is {number!r}; allowed: a number, 0 or more")
        if self.clear is not None and (self.clear < self.value if self.below else self.clear > self.value):
            side = "or more" if self.below else "or less"
            raise DTQError(f"a threshold's clear is {self.clear!r}; allowed: its value, {self.value!r}, {side}")

    def is_broken_by(self, value: float | None) -> bool:
        return value is not None and (value < self.value if self.below else value > self.value)

    def is_good(self, value: float | None) -> bool:
        clear = self.value * (1.1 if self.below else 0.9) if self.clear is None else self.clear
        return value is None or (value >= clear if self.below else value <= clear)


class Alert(Event, frozen=True):
    """The event of "alert:raised" and "alert:cleared": the metric, its present value, and the threshold."""

    metric: str = ""
    value: float | None = None
    threshold: float = 0.0
    message: str = ""


class AlertState:
    """The state of one metric's alert. `tick` is the time of a monotonic clock."""

    def __init__(self, metric: str, threshold: Threshold) -> None:
        self.metric = metric
        self.threshold = threshold
        self.raised_at: float | None = None  # UTC seconds while the alert is raised
        self._since: float | None = None  # the tick since when the metric calls for a change of state

    def step(self, value: float | None, at: float, tick: float) -> Alert | None:
        """Take the metric's present value. Return the alert if it is raised or cleared now."""
        raised = self.raised_at is not None
        calls_for_change = self.threshold.is_good(value) if raised else self.threshold.is_broken_by(value)
        if not calls_for_change:
            self._since = None
            return None
        self._since = tick if self._since is None else self._since
        if tick - self._since < (self.threshold.cooldown if raised else self.threshold.duration):
            return None
        self._since = None
        self.raised_at = None if raised else at
        return self._alert("cleared" if raised else "raised", value, at)

    def _alert(self, change: Change, value: float | None, at: float) -> Alert:
        limit = self.threshold.value
        shown = "nothing" if value is None else f"{value:.4g}"
        side = "below" if self.threshold.below else "above"
        words = f"{side} its threshold of" if change == "raised" else f"no longer {side} its threshold of"
        return Alert(
            f"alert:{change}", at, metric=self.metric, value=value, threshold=limit,
            message=f"{self.metric} is {shown}, {words} {limit:g}",
        )  # fmt: skip


def alert_states(thresholds: Mapping[str, float | Threshold]) -> list[AlertState]:
    """Return a state for each threshold. Raises DTQError if a metric is unknown."""
    if unknown := thresholds.keys() - METRICS:
        raise DTQError(f"no metric is named {min(unknown)!r}; there are: {', '.join(sorted(METRICS))}")
    return [
        AlertState(metric, limit if isinstance(limit, Threshold) else Threshold(limit))
        for metric, limit in thresholds.items()
    ]
