"""Staff: which workers a queue has, and what each group of them is for.

TaskQueue(pool_size=4)                                          one group, for everything
TaskQueue(pools={"urgent": Pool(1, min_priority=5),             a worker that is kept free for what cannot wait,
                 "rest": Pool(3)})                              and three for all
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from msgspec import Struct

from dtq.errors import DTQError
from dtq.workers import backend
from dtq.workers.process.pool import WorkerPool

Executor = Literal["process", "thread", "inline"] | backend.WorkerBackend
EXECUTORS = ("process", "thread", "inline")
MAX_WORKERS = 1000


class Pool(Struct, frozen=True):
    """How many workers, and what for: tasks of these queues (all, if none is named) and of at least this priority."""

    size: int = 4
    queues: tuple[str, ...] = ()
    min_priority: int | None = None


class WorkerGroup(Struct, frozen=True):
    """A pool of workers, with what it is for."""

    spec: Pool
    pool: backend.WorkerBackend
    name: str = ""


def check(pools: Mapping[str, Pool], executor: Executor) -> None:
    """Raises DTQError, naming what cannot be and what is allowed."""
    for name, spec in pools.items():
        if not isinstance(spec, Pool) or type(spec.size) is not int or not 0 <= spec.size <= MAX_WORKERS:
            raise DTQError(f"pool {name!r} is {spec!r}; allowed: a Pool of 0 to {MAX_WORKERS:,} workers")
    if isinstance(executor, str) and executor not in EXECUTORS:
        raise DTQError(f"executor is {executor!r}; allowed: {', '.join(map(repr, EXECUTORS))}, or a pool of your own")


def check_size(size: object) -> None:
    """Raises DTQError where a pool cannot have so many workers."""
    if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= MAX_WORKERS:
        raise DTQError(f"the size of a pool is {size!r}; allowed: a whole number from 0 to {MAX_WORKERS:,}")


def named(groups: Sequence[WorkerGroup], pool: object) -> WorkerGroup:
    """Return the pool of this name, or of this position. Raises DTQError where there is none."""
    for position, group in enumerate(groups):
        if pool == group.name or (type(pool) is int and pool == position):
            return group
    names = ", ".join(repr(group.name) for group in groups)
    raise DTQError(f"there is no pool {pool!r}; allowed: {names}, or a position from 0 to {len(groups) - 1}")


def make_executors(
    pools: Mapping[str, Pool], executor: Executor, max_tasks: int | None, max_result: int
) -> list[WorkerGroup]:
    """The pools, made and not yet started."""
    return [
        WorkerGroup(spec, _make(executor, name, spec.size, max_tasks, max_result), name) for name, spec in pools.items()
    ]


def _make(executor: Executor, name: str, size: int, max_tasks: int | None, max_result: int) -> backend.WorkerBackend:
    if executor == "process":
        return WorkerPool(size, name=name, max_tasks_per_worker=max_tasks, max_result=max_result)
    if not isinstance(executor, str):
        return executor
    from dtq.workers.inline import InlinePool  # these load asyncio, and all that a worker needs: seldom used here
    from dtq.workers.threads import ThreadPool

    return (
        ThreadPool(size, name=name, max_result=max_result)
        if executor == "thread"
        else InlinePool(name=name, max_result=max_result)
    )
