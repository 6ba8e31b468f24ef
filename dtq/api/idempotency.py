"""Idempotency keys: a repeated request adds nothing, and the same key with another body is refused.

    key of the first task       idempotency/REQUEST              REQUEST: hash of the token and the header
    keys of further tasks       idempotency/REQUEST/BODY/1 ...   BODY: hash of REQUEST and the body
    ids that the client omits   time, counter, BODY

The first key is the same for every body. The task that has it shows that the header was used before; its id, or the
keys of further tasks, show with which body.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from dtq.api.auth import Token
from dtq.api.problems import HTTPProblem
from dtq.api.requests import NewTask, is_same
from dtq.api.responses import Reason
from dtq.errors import InvalidTask
from dtq.queue.manager import QueueManager
from dtq.task.model import Task, new_id
from dtq.task.names import RESERVED, RESERVED_KEYS


class IdempotencyKey:
    """The header Idempotency-Key of one request, with its token and its body."""

    def __init__(self, token: Token, header: str, body: bytes) -> None:
        self._request = hashlib.sha256(token.digest + header.encode()).hexdigest()
        self._body = hashlib.sha256(self._request.encode() + body).hexdigest()[:16]

    def key(self, number: int) -> str:
        """Return the key of the task with this number in the request."""
        first = f"{RESERVED_KEYS}{self._request}"
        return f"{first}/{self._body}/{number}" if number else first

    def new_id(self, now: float) -> str:
        """Return a new id, which ends with the hash of the body in place of random digits."""
        return new_id(now)[:16] + self._body

    def require_same_body(self, manager: QueueManager, wanted: Sequence[tuple[NewTask, Task]]) -> None:
        """Raise HTTPProblem (409) if the header was used before with another body."""
        new, task = wanted[0]
        holder = _holder_of(manager, self.key(0))
        if holder is None:
            return
        if new.id is None:
            is_repeated = holder.id[16:] == self._body
        else:
            is_repeated = holder.id == new.id and is_same(task, holder)
            if len(wanted) > 1:
                is_repeated = is_repeated and _holder_of(manager, self.key(1)) is not None
        if not is_repeated:
            reason = "this Idempotency-Key was used with another body; nothing was added"
            raise HTTPProblem(409, reason, [Reason("Idempotency-Key", reason)])


def _holder_of(manager: QueueManager, key: str) -> Task | None:
    """Return the task that has this key.

    The parent of this probe does not exist, so it is never stored: the store refuses it if the key is free, and returns
    the holder of the key, without a look at parents, if it is taken.
    """
    now = manager.clock()
    probe = Task(type="probe", id=new_id(now), key=key, after=(f"{RESERVED}nothing",), created_at=now, run_at=now)
    try:
        ids = manager.store.add([probe])
    except InvalidTask:
        return None
    return next(iter(manager.store.get(ids)), None)
