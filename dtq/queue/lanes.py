"""LaneControls: pause and limit the tasks of a queue, a type or a limit key, on all nodes together.

pause, resume, limit, unlimit --> store.set_lane --> policy/picking.py decides in each `claim`
"""

from __future__ import annotations

from dtq.policy import limits
from dtq.policy.limits import Limit
from dtq.queue.client import StoreClient
from dtq.task import names
from dtq.webhooks import deliveries


class LaneControls(StoreClient):
    """Pauses queues and sets limits. Part of QueueManager."""

    def pause(self, queue: str = "default") -> None:
        """Start no more tasks of this `queue`, on any node, until `resume`. Running tasks continue. Raise InvalidTask
        if no user's queue can have this name."""
        names.check_free("queue", queue)
        self.store.set_lane(queue=queue, paused=True)
        self.events.emit("queue:paused", self.clock(), queue=queue)

    def resume(self, queue: str = "default") -> None:
        """Start tasks of a paused `queue` again. Raise InvalidTask if no user's queue can have this name."""
        if not self._is_limited(queue, None, None):
            names.check_free("queue", queue)
        self.store.set_lane(queue=queue, paused=False)
        self.events.emit("queue:resumed", self.clock(), queue=queue)

    def limit(
        self, queue: str | None = None, type: str | None = None, key: str | None = None, *, rate: float | None = None,
        burst: int | None = None, max_running: int | None = None,
    ) -> Limit:  # fmt: skip
        """Set a limit for tasks on all nodes together. Waiting for it costs no attempt.

        Args:
            queue: The queue of the tasks; None: any.
            type: The type of the tasks; None: any.
            key: The limit key of the tasks; None: any; "*": one limit for each key.
            rate: How many tasks may start in a second. None: unchanged; 0: no limit.
            burst: How many of them may start at once. None: unchanged, at first the number for a tenth of a second.
            max_running: How many tasks may run at a time. None: unchanged; 0: no limit.

        Returns:
            The limit as it is now.

        Raises:
            DTQError: A number is not allowed.
            InvalidTask: No task can have these names.
        """
        _check_selector(queue, type, key)
        self.store.set_lane(queue, type, key, **limits.changes(rate, burst, max_running))
        return next((at for at in self.limits() if at.selector == (queue, type, key)), Limit(queue, type, key))

    def limits(self) -> list[Limit]:
        """Return everything that holds tasks back: limits and paused queues."""
        return self.store.stats().limits

    def unlimit(self, queue: str | None = None, type: str | None = None, key: str | None = None) -> None:
        """Remove the limit that was set with exactly this `queue`, `type` and `key`. A pause stays. Raise InvalidTask
        if no limit can have these names."""
        if not self._is_limited(queue, type, key):
            _check_selector(queue, type, key)
        self.store.set_lane(queue, type, key, rate=0, burst=1, max_running=0)

    def _is_limited(self, *selector: str | None) -> bool:
        """Return whether there is a limit with these names, even invalid ones: an older dtq accepted every name."""
        return selector in [limit.selector for limit in self.limits()]


def _check_selector(queue: str | None, type: str | None, key: str | None) -> None:
    """Raise InvalidTask if no limit can have these names. Webhook deliveries may be limited, ticks may not."""
    if queue is not None:
        names.check_free("queue", queue)
    if type is not None and type != deliveries.TYPE:
        names.check_free("type", type)
    if key is not None:
        names.check_text("limit_key", key, 0)
