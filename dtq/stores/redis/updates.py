"""Updates: one update of many outcomes becomes several calls of update.lua.

    outcomes --> parts of TASKS_PER_SCRIPT --> calls --> replies: the refused ids, and whether children are left

Outcomes whose successors wait for other tasks are one call, so that all of them are stored or none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from dtq.stores.protocol import Outcome
from dtq.stores.redis.client import PipelinedCalls, in_parts
from dtq.stores.redis.records import ids_of, new_record, outcome_record

reply_of = msgspec.msgpack.Decoder().decode


class Update:
    """One update: its calls, and what their replies say.

    Args:
        outcomes: what to store.
        tokens: a retry token for each outcome.
        sender: the id under which the store publishes.
    """

    def __init__(self, outcomes: Sequence[Outcome], tokens: Sequence[str], sender: str) -> None:
        self._sender = sender
        self._parts = in_parts(list(zip(outcomes, tokens, strict=True)), whole=adds_children(outcomes))
        self.calls = PipelinedCalls("update", self._parts, self._argument, reply_of)

    def _argument(self, part: Sequence[tuple[Outcome, str]]) -> list[Any]:
        """Return the argument of update.lua for these outcomes and their tokens."""
        outcomes = [
            outcome_record(task, token, [new_record(new) for new in planted]) for (task, planted), token in part
        ]
        return [outcomes, self._sender]

    @property
    def has_children_left(self) -> bool:
        """True if an ended parent has children that are not unblocked yet."""
        return any(left for _, left in self.calls.replies)

    def accepted(self) -> set[str]:
        """Return the ids of the outcomes that were stored. Raise InvalidTask where a successor has an unknown
        parent."""
        ids: set[str] = set()
        for part, reply in zip(self._parts, self.calls.replies, strict=True):
            ids |= {task.id for (task, _), _ in part}.difference(ids_of(reply))
        return ids


def adds_children(outcomes: Sequence[Outcome]) -> bool:
    """Return whether a successor waits for other tasks. Only then the server may refuse the whole update."""
    return any(task.after for _, planted in outcomes for task in planted)
