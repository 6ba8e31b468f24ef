"""MonitorHealth: problems of the monitor itself. Each is logged when it begins, and reported until it is over."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

log = logging.getLogger("dtq")

MIN_CLOCK_STEP = 1.0  # seconds; a smaller difference between the two clocks counts as drift


class MonitorHealth:
    """The monitor's trouble with its store and its history, and the steps of the wall clock."""

    def __init__(self) -> None:
        self.troubles: dict[str, str | None] = {"store": None, "history": None}
        self.clock_steps = 0
        self._last: tuple[float, float] | None = None  # wall clock and monotonic clock at the last sample

    @contextmanager
    def noting(self, subject: str, errors: type[Exception]) -> Iterator[None]:
        """Catch these errors in the body of the context. The error is the trouble of this subject until a body
        succeeds."""
        try:
            yield
            self.troubles[subject] = None
        except errors as error:
            if self.troubles[subject] is None:
                log.warning("the monitor has trouble with its %s: %s: %s", subject, type(error).__name__, error)
            self.troubles[subject] = f"{type(error).__name__}: {error}"

    def step(self, at: float, tick: float) -> float:
        """Return by how many seconds the wall clock was set since the last sample; 0 if it was not."""
        step = 0.0 if self._last is None else (at - self._last[0]) - (tick - self._last[1])
        self._last = (at, tick)
        if abs(step) <= MIN_CLOCK_STEP:
            return 0.0
        self.clock_steps += 1
        log.warning("the clock was set by %+.1f s: waiting times of tasks that were waiting then are wrong", step)
        return step

    def report(self) -> dict[str, Any]:
        troubles = {f"{subject}_trouble": words for subject, words in self.troubles.items()}
        return {**troubles, "clock_steps": self.clock_steps}
