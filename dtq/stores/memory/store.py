"""MemoryStore: the store that lives in one process, and forgets all with it. Its rules are those of Index.

Each method is one step: it happens whole or not at all, also where an interrupt (Ctrl-C, a notebook's Stop) comes
between. A step notes what it is about to change. One that was interrupted is taken back: at once, or by the next step.

    step:  note the old value --> change --> note ... --> whole
                    |  interrupt
                    '---------> put the old values back --> derive what follows from them --> whole
"""

from __future__ import annotations

import threading
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from dtq.errors import InvalidTask, StoreError
from dtq.policy.limits import Selector
from dtq.stores.memory.index import Index
from dtq.stores.protocol import Node, Outcome, Stats
from dtq.sync.forks import Forkable
from dtq.sync.wakeup import Wakeup
from dtq.task.model import Task

T = TypeVar("T")
Facts = tuple[Task | None, int, Collection[str]]  # a task as it is stored, its number, the parents that it waits for
NEW: Facts = (None, 0, ())


class Elsewhere:
    """What a child made by os.fork has in place of the lock and the bell: whatever is done with it raises StoreError.
    To close it does nothing."""

    def __getattr__(self, name: str) -> Any:
        raise StoreError(
            "a memory: store lives in the process that made it, and this one was forked from it: use a store that "
            "processes share, such as queue.db, or make a store here"
        )

    def __enter__(self) -> None:
        self.__getattr__("__enter__")

    def __exit__(self, *_: object) -> None:
        """Never called: __enter__ raises."""

    def close(self) -> None:
        """Do nothing."""


class MemoryStore(Index, Forkable):
    """Keeps the protocol of dtq.stores within one process; one lock makes each method one step."""

    def __init__(self) -> None:
        super().__init__()
        self._lock: threading.RLock | Elsewhere = threading.RLock()
        self._wakeup: Wakeup | Elsewhere = Wakeup()
        self.follow_forks()
        self._is_whole = True  # False during a step, and behind one that was interrupted and not taken back yet
        self._before: dict[str, Facts] = {}  # of the tasks that the step has changed

    # --- steps

    def _change(self, work: Callable[[], T]) -> T:
        """Do a step, and wake those who wait."""
        value = self._step(work)
        self._wakeup.wake()
        return value

    def _step(self, work: Callable[[], T]) -> T:
        with self._lock:
            self._mend()
            self._note_policy()
            self._is_whole = False
            try:
                value = work()
                self._is_whole = True
                return value
            except InvalidTask:  # raised before anything was changed
                self._is_whole = True
                raise
            except BaseException:
                self._mend()
                raise

    def _note_policy(self) -> None:
        """Note all but the tasks: there is little of it."""
        self._before = {}
        self._numbers = (self._number, self._deleted)
        self._policy = (dict(self._limits), dict(self._next_at), dict(self._nodes))
        self._buckets: list[tuple[Selector, str, float]] = []  # those that the step has used, and how full they were
        share = self._share
        self._served = share.now, share.ahead, len(share.ahead)

    def _mend(self) -> None:
        """Take back a step that was interrupted. Harmless when it is interrupted itself: the next one begins anew."""
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
        self._mend_policy()
        self._derive()
        self._is_whole = True

    def _mend_policy(self) -> None:
        limits, next_at, nodes = self._policy
        self._limits, self._next_at, self._nodes = dict(limits), defaultdict(OrderedDict, next_at), dict(nodes)
        for selector, bucket, at in reversed(self._buckets):
            self._next_at[selector][bucket] = at
        self._share.now, self._share.ahead, n = self._served
        while len(self._share.ahead) > n:  # a step only adds to it, or begins another
            self._share.ahead.popitem()

    # --- what a step notes

    def _note(self, task_id: str) -> None:
        if task_id not in self._before:
            parents = self._parents.get(task_id) or ()
            self._before[task_id] = self._tasks.get(task_id), self._seq.get(task_id, 0), parents and set(parents)

    def _register(self, task: Task, number: int) -> None:
        self._before.setdefault(task.id, NEW)
        super()._register(task, number)

    def _set(self, task: Task) -> None:
        if task.id not in self._before:
            self._note(task.id)
        self._tasks[task.id] = task

    def _settle_children(self, parent: Task) -> None:
        for child_id in self._children.get(parent.id, ()):
            self._note(child_id)
        super()._settle_children(parent)

    def _orphan_children(self, parent: Task) -> None:
        for child_id in self._children.get(parent.id, ()):
            self._note(child_id)
        super()._orphan_children(parent)

    def _use(self, selector: Selector, used: Mapping[str, float], now: float) -> None:
        buckets = self._next_at[selector]
        self._buckets += [(selector, bucket, buckets.get(bucket, 0.0)) for bucket in used]
        super()._use(selector, used, now)

    def _forget(self, task: Task) -> None:
        self._note(task.id)
        super()._forget(task)

    # --- the protocol

    def add(self, tasks: Sequence[Task]) -> list[str]:
        return self._change(partial(super().add, tasks))

    def claim(
        self, worker: str, n: int, lease: float, now: float, types: Collection[str], queues: Collection[str] = (),
        min_priority: int | None = None,
    ) -> list[Task]:  # fmt: skip
        return self._step(partial(super().claim, worker, n, lease, now, types, queues, min_priority))

    def update(self, outcomes: Sequence[Outcome]) -> set[str]:
        return self._change(partial(super().update, outcomes))

    def heartbeat(self, node: Node, held: Sequence[Task], lease: float, now: float) -> set[str]:
        return self._step(partial(super().heartbeat, node, held, lease, now))

    def reap(self, worker: str, n: int, lease: float, now: float, dead: Collection[str] = ()) -> list[Task]:
        return self._step(partial(super().reap, worker, n, lease, now, dead))

    def get(self, ids: Iterable[str], *, brief: bool = False) -> list[Task]:
        with self._lock:
            self._mend()
            return super().get(ids, brief=brief)

    def find(self, **wanted: Any) -> list[Task]:
        with self._lock:
            self._mend()
            return super().find(**wanted)

    def stats(self) -> Stats:
        with self._lock:
            self._mend()
            return super().stats()

    def next_due(self, now: float) -> float | None:
        with self._lock:
            self._mend()
            return super().next_due(now)

    def set_lane(
        self, queue: str | None = None, type: str | None = None, key: str | None = None, **changes: Any
    ) -> None:
        self._change(partial(super().set_lane, queue, type, key, **changes))

    def delete(self, ids: Iterable[str]) -> int:
        return self._change(partial(super().delete, ids))

    def purge(self, before: float, statuses: Collection[str]) -> int:
        return self._change(partial(super().purge, before, statuses))

    def fileno(self) -> int:
        return self._wakeup.fileno()

    def wait(self, timeout: float) -> bool:
        return self._wakeup.wait(timeout)

    def close(self) -> None:
        self._nodes.clear()
        self._wakeup.close()

    def in_child(self) -> None:
        self._wakeup.close()
        self._lock = self._wakeup = Elsewhere()
