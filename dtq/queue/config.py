"""LoopConfig: the settings of a node's loop, which `TaskQueue` checks and passes on."""

from __future__ import annotations

from msgspec import Struct

from dtq.workers.run.parents import MAX_PARENTS


class LoopConfig(Struct, frozen=True):
    """How a loop leases, cleans up and starts tasks."""

    lease: float = 30.0  # seconds for which a claimed task is safe from other nodes after a heartbeat
    cleanup_age: float | None = 86400.0  # seconds for which an ended task is kept; None: forever
    dead_age: float | None = None  # seconds for which a failed task is kept; None: `cleanup_age`
    dead_limit: int | None = None  # how many failed tasks are kept at most; None: no limit
    max_parents: int = MAX_PARENTS  # bytes of JSON that the results of all parents of one task may have
    fires_schedules: bool = True
