"""The processes of a run with faults, `python -m dtq.testing.chaos.node ORDERS` (JSON): a node, or a client that adds.

A node lives until its standard input ends, and obeys the lines that come in there: `clock 60`, `full 1`, `slow 0.2`.
A client adds its tasks, some after others, and ends; what `add`, or the API, has acknowledged is written down.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import msgspec

from dtq.errors import DTQError, StoreError
from dtq.queue.events import Event
from dtq.queue.manager import QueueManager
from dtq.queue.task_queue import TaskQueue
from dtq.stores.file.store import FileStore
from dtq.stores.open import open_store
from dtq.stores.protocol import Store, clock_of
from dtq.testing.chaos.failpoints import BadDisk, Failpoint, WatchedStore, watched_dispatch
from dtq.testing.chaos.history_log import Witness
from dtq.testing.chaos.invariants import Line

TYPE = "work"
LIMITED, MOST = "limited", 1  # a limit key, and how many of its tasks may run at once
BACKLOG = 2000  # unfinished tasks, above which a client waits
LONGER = 1.5  # seconds that the last task of a client takes beyond a lease, which has to be renewed for it
ENDINGS = ("task:completed", "task:failed", "task:retrying", "task:cancelled")
WORKERS = 2


class Orders(msgspec.Struct):
    """What the process is to be: a client if it has `tasks` to add, else a node."""

    url: str
    log: str
    name: str
    lease: float = 5.0
    failpoint: str = ""
    passes: int = 1
    tasks: int = 0
    seed: int = 0
    seconds: float = 0.004  # that a task takes, on average
    retries: bool = True  # whether some fail at first
    api: int = 0  # the port of one, through which a client adds half of its tasks


def main(text: str) -> None:
    orders = msgspec.json.decode(text, type=Orders)
    if orders.tasks:
        Client(orders).add_all()
    else:
        work(orders)


# --- a node ----------------------------------------------------------------------------------------------------------


def work(orders: Orders) -> None:
    failpoint = Failpoint(orders.failpoint, orders.passes)
    disk = BadDisk(failpoint)
    witness = Witness(orders.log)
    store: Any = WatchedStore(_open(orders.url, disk), disk, witness, failpoint, orders.name)
    clock = Clock(clock_of(store))
    handlers = {TYPE: str(Path(__file__).with_name("work.py"))}
    queue = TaskQueue(store, handlers, WORKERS, lease=orders.lease, clock=clock)
    queue._loop.id = orders.name
    pool: Any = queue._groups[0].pool
    pool.dispatch = watched_dispatch(pool.dispatch, witness, failpoint, orders.name)
    for name in ENDINGS:
        queue.on(name, lambda event: _note(event, witness, orders.name))
    with queue:
        for line in sys.stdin:
            _obey(line.split(), store, clock)
    store.close()


def _note(event: Event, witness: Witness, node: str) -> None:
    if event.task:
        witness.write(Line("told", event.task.id, event.task.version, node), flush=False)


def _open(url: str, disk: BadDisk) -> Store:
    """A file store with a disk that can be told to fail; its files are new each second."""
    return FileStore(url.removeprefix("file:"), persistence_interval=1, disk=disk) if _is_file(url) else open_store(url)


def _is_file(url: str) -> bool:
    return url.startswith("file:") and "?" not in url and not url.startswith("file://")


class Clock:
    """The time by which the store's nodes go, wrong by `offset` seconds."""

    def __init__(self, right: Callable[[], float]) -> None:
        self.offset = 0.0
        self._right = right

    def __call__(self) -> float:
        return self._right() + self.offset


def _obey(words: Sequence[str], store: WatchedStore, clock: Clock) -> None:
    kind, value = words[0], float(words[1])
    if kind == "clock":
        clock.offset = value
    elif kind == "full":
        store.be_full(bool(value))
    else:
        store.be_slow(value)


# --- a client --------------------------------------------------------------------------------------------------------


class Client:
    """Adds tasks in batches, as many as fit into the backlog; a store that fails is asked again for the same ones."""

    def __init__(self, orders: Orders) -> None:
        self._orders = orders
        self._chance = random.Random(f"{orders.seed} {orders.name}")
        self._witness = Witness(orders.log)
        self._number = 0

    def add_all(self) -> None:
        with QueueManager(self._orders.url) as manager:
            while self._number < self._orders.tasks:
                if manager.stats().unfinished > BACKLOG:
                    time.sleep(0.02)
                else:
                    n = min(self._chance.choice((1, 5, 50)), self._orders.tasks - self._number)
                    self._add(manager, [self._task(k) for k in range(self._number, self._number + n)])
                    self._number += n

    def _add(self, manager: QueueManager, tasks: list[dict[str, Any]]) -> None:
        add = self._add_by_api if self._orders.api and self._chance.random() < 0.5 else _add_by(manager)
        while (ids := add(tasks)) is None:
            time.sleep(0.05)
        self._witness.write(*(Line("acknowledged", id) for id in ids))

    def _add_by_api(self, tasks: list[dict[str, Any]]) -> list[str] | None:
        """None where it is dead, or its store fails: whatever it did then, it may do again."""
        api = HTTPConnection("127.0.0.1", self._orders.api, timeout=10)
        with closing(api), suppress(OSError, HTTPException):
            api.request("POST", "/tasks", msgspec.json.encode(tasks), {"Content-Type": "application/json"})
            answer = api.getresponse()
            body = answer.read()
            if answer.status < 300:
                return [accepted["id"] for accepted in msgspec.json.decode(body)]
            if answer.status < 500:
                raise DTQError(f"the API says {answer.status}: {body.decode()}")
        return None

    def _task(self, number: int) -> dict[str, Any]:
        chance, name = self._chance, self._orders.name
        seconds = min(chance.expovariate(1 / self._orders.seconds), 1.0) if self._orders.seconds else 0.0
        fails = chance.choice((0,) * 18 + (1, 2)) if self._orders.retries else 0
        is_limited = chance.random() < 0.05
        if is_limited:  # so that they would run side by side, were they let
            seconds *= 8
        if number == self._orders.tasks - 1:
            seconds, fails = self._orders.lease + LONGER, 0
        return {
            "type": TYPE,
            "id": f"{name}-{number}",
            "payload": {"log": self._orders.log, "seconds": seconds, "fails": fails},
            "after": (f"{name}-{number - 1}",) if number and chance.random() < 0.1 else (),
            "limit_key": LIMITED if is_limited else "",
            "max_attempts": 1000,
            "retry_delay": 0.05,
            "retry_backoff": "constant",
        }


def _add_by(manager: QueueManager) -> Callable[[list[dict[str, Any]]], list[str] | None]:
    def add(tasks: list[dict[str, Any]]) -> list[str] | None:
        try:
            return [handle.id for handle in manager.add_many(tasks)]
        except StoreError:
            return None

    return add


if __name__ == "__main__":
    main(sys.argv[1])
