"""QueueConfig: the settings of a TaskQueue. It checks them once, and passes them to the loop as one value."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

import msgspec

from dtq.errors import DTQError
from dtq.queue.manager import DEFAULT_MAX_JSON
from dtq.workers import groups
from dtq.workers.groups import Executor, Pool
from dtq.workers.run.parents import MAX_PARENTS


class QueueConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How a node leases, runs and cleans up tasks. TaskQueue documents the fields."""

    pools: Mapping[str, Pool] = msgspec.field(default_factory=lambda: {"w": Pool()})
    executor: Executor = "process"
    max_tasks_per_worker: int | None = None
    lease: float = 30.0
    cleanup_age: float | None = 86400.0  # None: never clean up
    dead_age: float | None = None
    dead_limit: int | None = None
    max_result: int = DEFAULT_MAX_JSON
    max_parents: int = MAX_PARENTS
    backlog_limit: int | None = None
    max_payload: int = DEFAULT_MAX_JSON
    clock: Callable[[], float] | None = None
    chance: Callable[[], float] = random.random

    @property
    def is_inline(self) -> bool:
        """Whether `add` itself runs the tasks."""
        return self.executor == "inline"

    def check(self) -> None:
        """Raise DTQError if a setting is out of range. QueueManager checks those that it has too."""
        groups.check(self.pools, self.executor)
        if not 1 <= self.lease <= 86400:
            raise DTQError(f"lease is {self.lease!r}; allowed: 1 to 86,400 seconds")
        if self.dead_limit is not None and not self.dead_limit >= 0:
            raise DTQError(f"dead_limit is {self.dead_limit!r}; allowed: a number of failed tasks to keep, 0 or more")
