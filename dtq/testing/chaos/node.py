"""One process of a chaos run, `python -m dtq.testing.chaos.node CONFIG` (JSON): a node, or the client that adds tasks.

A node works until its standard input closes, and follows the commands on it: `clock 60`, `full 1`, `slow 0.2`.
A client adds its tasks, some of them with parents, and ends. Now and then it deletes a task and adds another under the
same id. It records each task that `add`, or the API, has acknowledged.
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

from dtq.errors import DTQError, IllegalTransition, StoreError, UnknownTask
from dtq.queue.events import Event
from dtq.queue.manager import QueueManager
from dtq.queue.task_queue import TaskQueue
from dtq.stores.file.store import FileStore
from dtq.stores.open import open_store
from dtq.stores.protocol import Store, clock_of
from dtq.testing.chaos.failpoints import Failpoint, FaultyDisk, WatchedStore, watched_dispatch
from dtq.testing.chaos.history_log import HistoryLog
from dtq.testing.chaos.invariants import Line, name_of
from dtq.testing.wrapper import SkewedClock

TYPE = "work"
LIMITED, MAX_RUNNING = "limited", 1  # a limit key, and how many of its tasks may run at once
MAX_BACKLOG = 2000  # unfinished tasks; above that, a client waits
EXTRA_SECONDS = 1.5  # that the last task of a client takes beyond a lease, so that the lease must be renewed
OUTCOME_EVENTS = ("task:completed", "task:failed", "task:retrying", "task:cancelled")
WORKERS = 2
RETRY_INTERVAL = 0.05  # seconds until a client repeats what failed
REUSE_RATE = 0.2  # of the batches are followed by one task that is deleted and added again


class ProcessConfig(msgspec.Struct):
    """What the process is and does: a client if it has `tasks` to add, else a node."""

    url: str
    log: str
    name: str
    lease: float = 5.0
    failpoint: str = ""
    passes: int = 1
    tasks: int = 0
    seed: int = 0
    seconds: float = 0.004  # that a task takes, on average
    retries: bool = True  # some tasks fail at first
    api: int = 0  # the port of an API through which a client adds half of its tasks


def main(text: str) -> None:
    config = msgspec.json.decode(text, type=ProcessConfig)
    if config.tasks:
        AddingClient(config).add_all()
    else:
        run_node(config)


# --- a node ----------------------------------------------------------------------------------------------------------


def run_node(config: ProcessConfig) -> None:
    failpoint = Failpoint(config.failpoint, config.passes)
    disk = FaultyDisk(failpoint)
    history = HistoryLog(config.log)
    store: Any = WatchedStore(_open(config.url, disk), disk, history, failpoint, config.name)
    clock = SkewedClock(clock_of(store))
    handlers = {TYPE: str(Path(__file__).with_name("work.py"))}
    queue = TaskQueue(store, handlers, WORKERS, lease=config.lease, clock=clock)
    queue._loop.id = config.name
    pool: Any = queue._groups[0].pool
    pool.dispatch = watched_dispatch(pool.dispatch, history, failpoint, config.name)
    for name in OUTCOME_EVENTS:
        queue.on(name, lambda event: _record_event(event, history, config.name))
    with queue:
        for line in sys.stdin:
            _execute(line.split(), store, clock)
    store.close()


def _record_event(event: Event, history: HistoryLog, node: str) -> None:
    if event.task:
        history.write(Line("announced", name_of(event.task), event.task.version, node), flush=False)


def _open(url: str, disk: FaultyDisk) -> Store:
    """Open the store. A file store gets a disk that can fail, and writes its snapshot every second."""
    return FileStore(url.removeprefix("file:"), persistence_interval=1, disk=disk) if _is_file(url) else open_store(url)


def _is_file(url: str) -> bool:
    return url.startswith("file:") and "?" not in url and not url.startswith("file://")


def _execute(words: Sequence[str], store: WatchedStore, clock: SkewedClock) -> None:
    kind, value = words[0], float(words[1])
    if kind == "clock":
        clock.offset = value
    elif kind == "full":
        store.set_full(bool(value))
    else:
        store.set_slow(value)


# --- a client --------------------------------------------------------------------------------------------------------


class AddingClient:
    """Adds tasks in batches while the backlog has room. After an error of the store it adds the same tasks again."""

    def __init__(self, config: ProcessConfig) -> None:
        self._config = config
        self._rng = random.Random(f"{config.seed} {config.name}")
        self._history = HistoryLog(config.log)
        self._number = 0  # tasks added so far
        self._lives = 0  # tasks added under an id that was used before

    def add_all(self) -> None:
        with QueueManager(self._config.url) as manager:
            while self._number < self._config.tasks:
                if manager.stats().unfinished > MAX_BACKLOG:
                    time.sleep(0.02)
                else:
                    n = min(self._rng.choice((1, 5, 50)), self._config.tasks - self._number)
                    self._add(manager, [self._task(k) for k in range(self._number, self._number + n)])
                    self._number += n
                    if self._rng.random() < REUSE_RATE:
                        self._reuse_id(manager)

    def _add(self, manager: QueueManager, tasks: list[dict[str, Any]]) -> None:
        add = self._add_by_api if self._config.api and self._rng.random() < 0.5 else _add_by(manager)
        while add(tasks) is None:
            time.sleep(RETRY_INTERVAL)
        self._history.write(*(Line("acknowledged", task["payload"].get("life", task["id"])) for task in tasks))

    def _reuse_id(self, manager: QueueManager) -> None:
        """Delete one of the tasks added so far (cancel it first if it has not ended), and add another under its id."""
        task = self._task(self._rng.randrange(min(self._number, self._config.tasks - 1) or 1))
        while not self._delete(manager, task["id"]):
            time.sleep(RETRY_INTERVAL)
        self._lives += 1
        task["payload"]["life"] = f"{task['id']}#{self._lives}"
        self._add(manager, [{**task, "after": ()}])

    def _delete(self, manager: QueueManager, id: str) -> bool:
        """Return True when no task has this id. The history names the task first: a client may die after its delete."""
        try:
            for task in manager.store.get([id]):
                self._history.write(Line("deleted", name_of(task)))
                if not task.is_terminal:
                    manager.cancel(id)
                manager.delete(id)
            return not manager.store.get([id])
        except (StoreError, IllegalTransition, UnknownTask):
            return False

    def _add_by_api(self, tasks: list[dict[str, Any]]) -> list[str] | None:
        """Return None if the API is dead or its store fails. It may have added the tasks: adding them again is
        harmless."""
        api = HTTPConnection("127.0.0.1", self._config.api, timeout=10)
        with closing(api), suppress(OSError, HTTPException):
            api.request("POST", "/tasks", msgspec.json.encode(tasks), {"Content-Type": "application/json"})
            answer = api.getresponse()
            body = answer.read()
            if answer.status < 300:
                return [accepted["id"] for accepted in msgspec.json.decode(body)]
            if answer.status < 500:
                raise DTQError(f"the API returned {answer.status}: {body.decode()}")
        return None

    def _task(self, number: int) -> dict[str, Any]:
        rng, name = self._rng, self._config.name
        seconds = min(rng.expovariate(1 / self._config.seconds), 1.0) if self._config.seconds else 0.0
        fails = rng.choice((0,) * 18 + (1, 2)) if self._config.retries else 0
        is_limited = rng.random() < 0.05
        if is_limited:  # long enough that, without the limit, they would overlap
            seconds *= 8
        if number == self._config.tasks - 1:
            seconds, fails = self._config.lease + EXTRA_SECONDS, 0
        return {
            "type": TYPE,
            "id": f"{name}-{number}",
            "payload": {"log": self._config.log, "seconds": seconds, "fails": fails},
            "after": (f"{name}-{number - 1}",) if number and rng.random() < 0.1 else (),
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
