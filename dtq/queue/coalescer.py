"""Coalescer: when a loop should pause before its next turn, so that one turn takes several tasks.

A task that comes alone is claimed at once. In a stream of tasks that come one by one, each would cost a turn: a claim,
a commit, and two locks that the clients which add tasks want too. Network drivers have the same problem with packets.
They take the first one after a quiet time by an interrupt, and the packets of a stream in batches (interrupt
coalescing; NAPI: Salim, Olsson and Kuznetsov, "Beyond Softnet", 2001).

How fast tasks come does not show whether a pause helps. It helps clients that only add; it delays clients that wait for
each result before they add the next task. So the coalescer tries pauses for a moment, and compares:

    watch --a stream--> try pauses --more tasks found a second--> pause for KEEP seconds --> watch
      ^                     |
      '--- RETRY seconds ---+     (not more: twice as long each time)
"""

from __future__ import annotations

from typing import Literal

PAUSE = 0.005  # seconds
STRETCH = 0.03  # seconds that are compared: without pauses, then with them
KEEP = 1.0  # seconds for which pauses are kept before the next comparison
FIRST_RETRY, LAST_RETRY = 0.2, 4.0  # seconds until pauses are tried again after they did not help
LULL = 0.02  # seconds without a new task that end a stream
MIN_RATE = 3 / PAUSE  # tasks a second; a pause would find less than three tasks of a slower stream
MIN_GAIN = 1.1


class Coalescer:
    """Decides about the pauses of one loop. All times are seconds of a monotonic clock, passed in."""

    def __init__(self) -> None:
        self._state: Literal["watch", "try", "pause"] = "watch"
        self._until = 0.0  # nothing is tried, or given up, before this time
        self._retry = FIRST_RETRY
        self._last = 0.0  # when a task was found last
        self._began = 0.0  # this stretch
        self._found = self._crowded = 0  # tasks in this stretch; those that came while others were under way
        self._rate = 0.0  # tasks a second in the stretch before, without pauses

    @property
    def is_on(self) -> bool:
        """True while tasks come in a stream, and the loop pauses between its turns."""
        return self._state != "watch"

    def pause(self, now: float, found: int, held: int) -> float:
        """Return how many seconds the loop should wait for more tasks before its next turn; 0 is not to wait.

        Call it after each claim that found less than it wanted.

        Args:
            now: The time.
            found: How many tasks the claims of this turn found.
            held: How many tasks the node held before.
        """
        if found:
            if now - self._last > LULL:
                self._begin("watch", now)
            self._last = now
        self._found += found
        self._crowded += found if found > 1 or held else 0
        passed = now - self._began
        is_worse = self._state == "try" and passed >= 2 * PAUSE and self._found < self._rate * passed
        if is_worse or passed >= STRETCH:
            self._end_stretch(now, self._found / passed)
        return PAUSE if self.is_on and now - self._last <= LULL else 0.0

    def _begin(self, state: Literal["watch", "try", "pause"], now: float) -> None:
        self._state = state
        self._began, self._found, self._crowded = now, 0, 0

    def _end_stretch(self, now: float, rate: float) -> None:
        is_stream = rate >= MIN_RATE and 2 * self._crowded > self._found
        state = self._state
        if state == "try" and rate > MIN_GAIN * self._rate:
            state, self._until, self._retry = "pause", now + KEEP, FIRST_RETRY
        elif state == "try":
            state, self._until, self._retry = "watch", now + self._retry, min(2 * self._retry, LAST_RETRY)
        elif now >= self._until:
            state = "try" if state == "watch" and is_stream else "watch"
        self._rate = rate
        self._begin(state, now)
