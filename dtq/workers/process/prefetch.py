"""Prefetch: how many calls of a type one worker should hold at a time. The longer they take, the fewer.

    Done.seconds --> estimate for the type --> prefetch: 256 calls of microseconds, one call of a millisecond or more

Many small calls in one frame share the cost of system calls and of turns of the loop. Nothing should wait behind a long
call, because another worker, or another node, could run it. So a worker holds about FRAME seconds of work.
"""

from __future__ import annotations

from math import inf

FRAME = 0.005  # seconds of work that may wait in a worker
SLOW = 0.001  # seconds; longer calls are dispatched one by one
PREFETCHES = (256, 64, 16, 4)  # only a few values, so that types share them and `steps` has few steps
DECAY = 0.125  # the part of the difference by which the estimate sinks towards a shorter duration

Step = tuple[int, bool, frozenset[str]]  # prefetch, parallel, types


class TypeProfile:
    """The measured duration of a type, and the prefetch that follows from it.

    `weight` is the share of a worker that one call takes: a worker with a load of 1 is full. Calls of a `parallel` type
    run side by side on the worker's event loop; others run one after the other in its main thread.
    """

    __slots__ = ("high", "low", "parallel", "prefetch", "seconds", "weight")

    def __init__(self, concurrency: int) -> None:
        self.parallel = concurrency > 1
        self.prefetch = concurrency
        self.weight = 1 / concurrency
        self.seconds = inf  # unknown
        self.low, self.high = (0.0, inf) if self.parallel else (SLOW, inf)  # estimates that keep this prefetch


class Prefetch:
    """The profiles of all types."""

    def __init__(self) -> None:
        self._profiles: dict[str, TypeProfile] = {}
        self._steps: list[Step] | None = None

    def define(self, type: str, concurrency: int) -> None:
        """Forget the duration of the type: its handler is new, or has changed."""
        self._profiles[type] = TypeProfile(concurrency)
        self._steps = None

    def profile(self, type: str) -> TypeProfile:
        profile = self._profiles.get(type)
        return profile if profile is not None else TypeProfile(1)

    def learn(self, profile: TypeProfile, seconds: float) -> None:
        """Update the estimate with the duration of a call.

        It rises at once and sinks slowly: nothing should wait behind a type that is fast only most of the time.
        """
        if seconds >= profile.seconds or profile.seconds == inf:
            profile.seconds = seconds
        else:
            profile.seconds += (seconds - profile.seconds) * DECAY
        if not profile.low <= profile.seconds < profile.high:
            self._change(profile)

    def steps(self) -> list[Step]:
        """Return each prefetch in use, ascending, with the types whose prefetch is at least that. Parallel types have
        steps of their own, because they run on the event loop of the worker."""
        if self._steps is None:
            kinds = {(profile.parallel, profile.prefetch) for profile in self._profiles.values()}
            self._steps = [
                (prefetch, parallel, self._types(parallel, prefetch)) for parallel, prefetch in sorted(kinds)
            ]
        return self._steps

    def _types(self, parallel: bool, prefetch: int) -> frozenset[str]:
        profiles = self._profiles.items()
        return frozenset(type for type, p in profiles if p.parallel == parallel and p.prefetch >= prefetch)

    def _change(self, profile: TypeProfile) -> None:
        profile.prefetch, profile.low, profile.high = _prefetch_for(profile.seconds)
        profile.weight = 1 / profile.prefetch
        self._steps = None


def _prefetch_for(seconds: float) -> tuple[int, float, float]:
    """Return the prefetch for calls of this duration, and the range of durations with the same prefetch."""
    low = 0.0
    for prefetch in PREFETCHES:
        high = min(FRAME / prefetch, SLOW)
        if seconds < high:
            return prefetch, low, high
        low = high
    return 1, SLOW, inf
