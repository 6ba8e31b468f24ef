"""Health: what goes wrong with watching itself. Each trouble is told of when it begins, and shown until it is over."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

log = logging.getLogger("dtq")

STEP = 1.0  # seconds by which the wall clock may drift from the other between two looks before it counts as set


class Health:
    def __init__(self) -> None:
        self.troubles: dict[str, str | None] = {"store": None, "history": None}
        self.clock_steps = 0
        self._last: tuple[float, float] | None = None  # wall clock and tick of the last look

    @contextmanager
    def noting(self, subject: str, errors: type[Exception]) -> Iterator[None]:
        """Lets no such error out of what is done within: it is the trouble of this subject, until it goes well
        again."""
        try:
            yield
            self.troubles[subject] = None
        except errors as error:
            if self.troubles[subject] is None:
                log.warning("the monitor has trouble with its %s: %s: %s", subject, type(error).__name__, error)
            self.troubles[subject] = f"{type(error).__name__}: {error}"

    def step(self, at: float, tick: float) -> float:
        """By how many seconds the wall clock was set since the last look; 0 where it was not."""
        step = 0.0 if self._last is None else (at - self._last[0]) - (tick - self._last[1])
        self._last = (at, tick)
        if abs(step) <= STEP:
            return 0.0
        self.clock_steps += 1
        log.warning("the clock was set by %+.1f s: waiting times of tasks that waited meanwhile are off", step)
        return step

    def report(self) -> dict[str, Any]:
        troubles = {f"{subject}_trouble": words for subject, words in self.troubles.items()}
        return {**troubles, "clock_steps": self.clock_steps}
