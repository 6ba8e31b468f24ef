"""How many calls of a type one worker should have at a time: the longer they take, the fewer.

    Done.seconds --> an estimate for the type --> its window: 256 calls of microseconds, one of a millisecond or more

Many small calls in one frame share the cost of system calls and of turns of the loop. A long one must not have others
waiting behind it, which another worker, or another node, could run. So a window holds about FRAME seconds of work.
"""

from __future__ import annotations

from math import inf

FRAME = 0.005  # seconds of work that may wait in a worker
SLOW = 0.001  # seconds; calls that take longer come one by one
WINDOWS = (256, 64, 16, 4)  # few values, so that types share them and `steps` has few steps
SINK = 0.125  # of the way down to a lower duration, each time

Step = tuple[int, bool, frozenset[str]]  # window, parallel, types


class TypeProfile:
    """What is known of one type. `weight` is the share of a worker that one call takes: at 1 it is full. `parallel`
    calls run beside each other on the worker's event loop, others one after the other in its main thread."""

    __slots__ = ("high", "low", "parallel", "seconds", "weight", "window")

    def __init__(self, concurrency: int) -> None:
        self.parallel = concurrency > 1
        self.window = concurrency
        self.weight = 1 / concurrency
        self.seconds = inf  # not known
        self.low, self.high = (0.0, inf) if self.parallel else (SLOW, inf)  # estimates between them give this window


class Prefetch:
    """The gaits of all types."""

    def __init__(self) -> None:
        self._gaits: dict[str, TypeProfile] = {}
        self._steps: list[Step] | None = None

    def define(self, type: str, concurrency: int) -> None:
        """A new or changed handler: nothing is known of its duration."""
        self._gaits[type] = TypeProfile(concurrency)
        self._steps = None

    def gait(self, type: str) -> TypeProfile:
        gait = self._gaits.get(type)
        return gait if gait is not None else TypeProfile(1)

    def learn(self, gait: TypeProfile, seconds: float) -> None:
        """A call has taken so long. The estimate rises at once and sinks slowly: a type that is fast most of the time
        is still not safe to stand behind."""
        if seconds >= gait.seconds or gait.seconds == inf:
            gait.seconds = seconds
        else:
            gait.seconds += (seconds - gait.seconds) * SINK
        if not gait.low <= gait.seconds < gait.high:
            self._change(gait)

    def steps(self) -> list[Step]:
        """Each window that there is, in ascending order, with the types whose window is at least that. Parallel types
        have steps of their own, as they run elsewhere in the worker."""
        if self._steps is None:
            kinds = {(gait.parallel, gait.window) for gait in self._gaits.values()}
            self._steps = [(window, parallel, self._types(parallel, window)) for parallel, window in sorted(kinds)]
        return self._steps

    def _types(self, parallel: bool, window: int) -> frozenset[str]:
        gaits = self._gaits.items()
        return frozenset(type for type, gait in gaits if gait.parallel == parallel and gait.window >= window)

    def _change(self, gait: TypeProfile) -> None:
        gait.window, gait.low, gait.high = _window(gait.seconds)
        gait.weight = 1 / gait.window
        self._steps = None


def _window(seconds: float) -> tuple[int, float, float]:
    """The window for calls that take so long, and the durations from and below which it is the right one."""
    low = 0.0
    for window in WINDOWS:
        high = min(FRAME / window, SLOW)
        if seconds < high:
            return window, low, high
        low = high
    return 1, SLOW, inf
