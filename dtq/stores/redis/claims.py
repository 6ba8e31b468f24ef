"""Claims: a large claim becomes several calls of claim.lua, of TASKS_PER_SCRIPT tasks at most.

    claim 300 tasks --> call 0: 128
                        calls 1, 2: 128, 44    pipelined; only if call 0 found as many tasks as it asked for

Each call has a name: worker, filter and number. If its reply is lost, its retry token is kept under that name. The next
claim with this worker and filter repeats the call, and claim.lua returns the tasks that it claimed the first time.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from dtq.errors import StoreError
from dtq.stores.protocol import ClaimRequest
from dtq.stores.redis.client import TASKS_PER_SCRIPT, PipelinedCalls, RedisClient
from dtq.stores.redis.records import lowest_place, tasks_of
from dtq.stores.redis.retry_tokens import RetryTokens
from dtq.task.model import Task

LOOP_TIMEOUT = 0.25  # seconds for which a call of the loop tries to reach the server: workers must not wait for it
REPLY_TTL = 60  # seconds for which the server remembers a claim, to repeat a lost reply
Claimed = tuple[list[Task], list[bytes]]  # the tasks, and the times at which there may be more


class Claim:
    """One claim: its worker, the end of its lease, and the tasks that it may take."""

    def __init__(self, client: RedisClient, tokens: RetryTokens, request: ClaimRequest) -> None:
        self._client = client
        self._tokens = tokens
        self._worker, self._n, lease, now, types, queues, min_priority = request
        types, queues = sorted(types), sorted(queues)
        self._filter = f"{hash((*types, None, *queues, min_priority)) & 0xFFFFFFFF:08x}"
        self._arguments = [repr(now), repr(now + lease), types, queues, lowest_place(min_priority)]

    def run(self, before: PipelinedCalls[Any, Any] | None = None) -> Claimed:
        """Claim the tasks. Raises StoreError if the first call has no reply. The calls `before` go first, in the
        same round trip."""
        first, *others = self._sizes(self._n)
        tasks, times = self._call([first], before=before)[0]
        if others and (len(tasks) >= first or self._is_unanswered(1)):
            with suppress(StoreError):  # the next claim repeats them; the tasks of the first call must not be lost
                more = self._call(others, 1)
                tasks += [task for found, _ in more for task in found]
                times = more[-1][1]
        return tasks, times

    def _sizes(self, n: int) -> list[int]:
        """Return how many tasks each call asks for. A size of 0 only repeats a call that had no reply."""
        sizes = [min(TASKS_PER_SCRIPT, n - start) for start in range(0, n, TASKS_PER_SCRIPT)]
        while self._is_unanswered(len(sizes)):
            sizes.append(0)
        return sizes

    def _is_unanswered(self, number: int) -> bool:
        return self._tokens.has((self._worker, self._filter, number))

    def _call(
        self, sizes: list[int], start: int = 0, before: PipelinedCalls[Any, Any] | None = None
    ) -> list[Claimed]:  # fmt: skip
        """Make calls of these sizes, numbered from `start`. Return their replies."""
        numbers = range(start, start + len(sizes))
        names = [(self._worker, self._filter, number) for number in numbers]
        with self._tokens.tokens_for([(name, None) for name in names]) as tokens:
            requests = [
                [self._worker, size, *self._arguments, f"{self._filter}{number}", token, REPLY_TTL]
                for size, number, token in zip(sizes, numbers, tokens, strict=True)
            ]
            calls = PipelinedCalls("claim", requests, read=_claimed)
            return self._client.call_all(calls.after(before) if before else calls, LOOP_TIMEOUT)


def _claimed(reply: list[list[bytes]]) -> Claimed:
    records, times = reply
    return tasks_of(records), times
