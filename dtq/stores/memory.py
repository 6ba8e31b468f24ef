"""MemoryStore: the store that lives in one process, and forgets all with it. Its rules are those of Index."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from dtq.stores import Node, Outcome, Stats
from dtq.stores.bell import Bell
from dtq.stores.index import Index
from dtq.task import Task


class MemoryStore(Index):
    """Keeps the protocol of dtq.stores within one process; one lock makes each method one step."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.RLock()
        self._bell = Bell()

    @contextmanager
    def _change(self) -> Iterator[None]:
        """One step, of which those who wait are told when it is done."""
        with self._lock:
            yield
        self._bell.ring()

    def add(self, tasks: Sequence[Task]) -> list[str]:
        with self._change():
            return super().add(tasks)

    def claim(
        self, worker: str, n: int, lease: float, now: float, types: Collection[str], queues: Collection[str] = (),
        min_priority: int | None = None,
    ) -> list[Task]:  # fmt: skip
        with self._lock:
            return super().claim(worker, n, lease, now, types, queues, min_priority)

    def update(self, outcomes: Sequence[Outcome]) -> set[str]:
        with self._change():
            return super().update(outcomes)

    def heartbeat(self, node: Node, held: Sequence[Task], lease: float, now: float) -> set[str]:
        with self._lock:
            return super().heartbeat(node, held, lease, now)

    def reap(self, worker: str, n: int, lease: float, now: float, dead: Collection[str] = ()) -> list[Task]:
        with self._lock:
            return super().reap(worker, n, lease, now, dead)

    def get(self, ids: Iterable[str], *, brief: bool = False) -> list[Task]:
        with self._lock:
            return super().get(ids, brief=brief)

    def find(self, **wanted: Any) -> list[Task]:
        with self._lock:
            return super().find(**wanted)

    def stats(self) -> Stats:
        with self._lock:
            return super().stats()

    def next_due(self, now: float) -> float | None:
        with self._lock:
            return super().next_due(now)

    def set_lane(
        self, queue: str | None = None, type: str | None = None, key: str | None = None, **changes: Any
    ) -> None:
        with self._change():
            super().set_lane(queue, type, key, **changes)

    def delete(self, ids: Iterable[str]) -> int:
        with self._change():
            return super().delete(ids)

    def purge(self, before: float, statuses: Collection[str]) -> int:
        with self._change():
            return super().purge(before, statuses)

    def fileno(self) -> int:
        return self._bell.fileno()

    def wait(self, timeout: float) -> bool:
        return self._bell.wait(timeout)

    def close(self) -> None:
        self._nodes.clear()
        self._bell.close()
