"""MemoryStore: a store within one process, gone when the process ends. Its rules are those of Index.

Each method is one step: it happens completely or not at all, even if an interrupt (Ctrl-C, a notebook's Stop) comes in
the middle. A step keeps the old value of everything that it changes. If it is interrupted, the old values are restored
at once or by the next step.

    step:  keep the old value --> change --> keep ... --> whole
                     |  interrupt
                     '---------> restore the old values --> derive everything else from them --> whole
"""

from __future__ import annotations

import threading
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from dtq.errors import InvalidTask, StoreError
from dtq.policy.limits import Selector
from dtq.stores.memory.index import Index
from dtq.stores.protocol import ClaimRequest, Exchanged, Outcome
from dtq.sync.forks import Forkable
from dtq.sync.waits import Wakeup
from dtq.task.model import Task

P = ParamSpec("P")
T = TypeVar("T")
Facts = tuple[Task | None, int, Collection[str]]  # a task as it is stored, its number, the parents that it waits for
NEW: Facts = (None, 0, ())


def reading(method: Callable[P, T]) -> Callable[P, T]:
    """Run a method of Index under the lock."""

    @wraps(method)
    def locked(*args: P.args, **kwargs: P.kwargs) -> T:
        store: Any = args[0]
        with store._lock:
            store._restore()
            return method(*args, **kwargs)

    return locked


def changing(method: Callable[P, T]) -> Callable[P, T]:
    """Run a method of Index under the lock, as one step."""

    @wraps(method)
    def step(*args: P.args, **kwargs: P.kwargs) -> T:
        store: Any = args[0]
        with store._lock:
            store._begin_step()
            try:
                value = method(*args, **kwargs)
                store._is_whole = True
                return value
            except InvalidTask:  # raised before anything was changed
                store._is_whole = True
                raise
            except BaseException:
                store._restore()
                raise

    return step


def waking(method: Callable[P, T]) -> Callable[P, T]:
    """Run a method of Index as one step, then wake the threads that wait for a change."""
    step = changing(method)

    @wraps(method)
    def step_and_wake(*args: P.args, **kwargs: P.kwargs) -> T:
        store: Any = args[0]
        value = step(*args, **kwargs)
        store._wakeup.wake()
        return value

    return step_and_wake


class Unusable:
    """Replaces the lock and the wake-up in a forked child: any use raises StoreError, and closing does nothing."""

    def __getattr__(self, name: str) -> Any:
        raise StoreError(
            "a memory: store works only in the process that created it, not in a forked child: use a store that "
            "processes share, such as queue.db, or make a store here"
        )

    def __enter__(self) -> None:
        self.__getattr__("__enter__")

    def __exit__(self, *_: object) -> None:
        """Never called: __enter__ raises."""

    def close(self) -> None:
        """Do nothing."""


class MemoryStore(Index, Forkable):
    """Keeps all tasks within one process. Several threads may use it."""

    def __init__(self) -> None:
        super().__init__()
        self._lock: threading.RLock | Unusable = threading.RLock()
        self._wakeup: Wakeup | Unusable = Wakeup()
        self.follow_forks()
        self._is_whole = True  # False during a step, and after an interrupted step until it is undone
        self._before: dict[str, Facts] = {}  # the tasks that the step has changed, as they were before

    add = waking(Index.add)
    claim = changing(Index.claim)
    update = waking(Index.update)
    heartbeat = changing(Index.heartbeat)
    reap = changing(Index.reap)
    get = reading(Index.get)
    find = reading(Index.find)
    stats = reading(Index.stats)
    next_due = reading(Index.next_due)
    set_lane = waking(Index.set_lane)
    delete = waking(Index.delete)
    purge = waking(Index.purge)

    @waking
    def exchange(self, outcomes: Sequence[Outcome], claim: ClaimRequest) -> Exchanged:
        return Index.update(self, outcomes), Index.claim(self, *claim)

    def fileno(self) -> int:
        return self._wakeup.fileno()

    def wait(self, timeout: float) -> bool:
        return self._wakeup.wait(timeout)

    def close(self) -> None:
        self._nodes.clear()
        self._wakeup.close()

    def in_child(self) -> None:
        self._wakeup.close()
        self._lock = self._wakeup = Unusable()

    # --- steps

    def _begin_step(self) -> None:
        """Save everything except the tasks; it is small."""
        self._restore()
        self._before = {}
        self._numbers = (self._number, self._deleted)
        self._policy = (dict(self._limits), dict(self._next_at), dict(self._nodes))
        self._buckets: list[tuple[Selector, str, float]] = []  # the buckets that the step has used, as they were before
        share = self._share
        self._served = share.now, share.ahead, len(share.ahead)
        self._is_whole = False

    def _restore(self) -> None:
        """Undo an interrupted step. If the undo is interrupted too, the next step starts it again."""
        if self._is_whole:
            return
        for task_id, (task, number, parents) in self._before.items():
            if task is None:
                self._tasks.pop(task_id, None)
                self._seq.pop(task_id, None)
                self._parents.pop(task_id, None)
            else:
                self._tasks[task_id], self._seq[task_id], self._parents[task_id] = task, number, set(parents)
        self._number, self._deleted = self._numbers
        self._restore_policy()
        self._derive()
        self._is_whole = True

    def _restore_policy(self) -> None:
        limits, next_at, nodes = self._policy
        self._limits, self._next_at, self._nodes = dict(limits), defaultdict(OrderedDict, next_at), dict(nodes)
        for selector, bucket, at in reversed(self._buckets):
            self._next_at[selector][bucket] = at
        self._share.now, self._share.ahead, n = self._served
        while len(self._share.ahead) > n:  # a step only adds to it, or replaces it
            self._share.ahead.popitem()

    # --- what a step keeps

    def _keep_old(self, task_id: str) -> None:
        if task_id not in self._before:
            parents = self._parents.get(task_id) or ()
            self._before[task_id] = self._tasks.get(task_id), self._seq.get(task_id, 0), parents and set(parents)

    def _register(self, task: Task, number: int) -> None:
        self._before.setdefault(task.id, NEW)
        super()._register(task, number)

    def _set(self, task: Task) -> None:
        if task.id not in self._before:
            self._keep_old(task.id)
        self._tasks[task.id] = task

    def _unblock_children(self, parent: Task) -> None:
        for child_id in self._children.get(parent.id, ()):
            self._keep_old(child_id)
        super()._unblock_children(parent)

    def _detach_children(self, parent: Task) -> None:
        for child_id in self._children.get(parent.id, ()):
            self._keep_old(child_id)
        super()._detach_children(parent)

    def _use(self, selector: Selector, used: Mapping[str, float], now: float) -> None:
        buckets = self._next_at[selector]
        self._buckets += [(selector, bucket, buckets.get(bucket, 0.0)) for bucket in used]
        super()._use(selector, used, now)

    def _forget(self, task: Task) -> None:
        self._keep_old(task.id)
        super()._forget(task)
