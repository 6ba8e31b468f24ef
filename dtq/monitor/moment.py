"""Moment: the counts of a queue at one time, and the rate of its work between two times. For pages that show the queue
live; readings.py has the metrics that nodes publish."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from dtq.stores.protocol import Counts
from dtq.task.model import TERMINAL, WAITING


class Moment(msgspec.Struct, frozen=True):
    """The number of tasks with each status at one time, in seconds."""

    at: float
    counts: Counts

    @property
    def waiting(self) -> int:
        return sum(self.counts[status] for status in WAITING)

    @property
    def running(self) -> int:
        return self.counts["processing"]

    @property
    def ended(self) -> int:
        return sum(self.counts[status] for status in TERMINAL)

    def rate_since(self, before: Moment | None) -> float | None:
        """Return the tasks per second that have ended since the moment `before`. None if that is unknown: there is no
        such moment, or a clean-up has removed more tasks than ended."""
        if before is None or self.at <= before.at or self.ended < before.ended:
            return None
        return (self.ended - before.ended) / (self.at - before.at)


def quantile(values: Sequence[float], q: float) -> float | None:
    """Return the q-quantile (0 <= q <= 1) of these values, or None if there are none."""
    return sorted(values)[min(len(values) - 1, int(q * len(values)))] if values else None
