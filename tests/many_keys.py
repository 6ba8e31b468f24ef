"""How long a claim takes with 20 limit keys and with 20,000: `python tests/many_keys.py --stores memory,sqlite`.

Both stores are measured in turn, and each figure is a median. In each situation the keys wait, except for the last two,
in which they are used up: their tasks have ended, or are deleted.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import servers

from dtq.stores.open import open_store
from dtq.stores.protocol import Store
from dtq.task.model import Task
from dtq.task.transitions import release, succeed

NOW = 1_700_000_000.0
LARGE = 500  # tasks in one call
URLS = {
    "memory": "memory:",
    "file": "file:{}/queue?durability=relaxed",
    "sqlite": "sqlite:///{}/q.db?durability=relaxed",
}


def add(store: Store, keys: int, **options) -> None:
    tasks = [
        Task(type="job", id=f"{n:06}", limit_key=f"key-{n}", run_at=NOW, created_at=NOW, **options) for n in range(keys)
    ]
    for at in range(0, keys, LARGE):
        store.add(tasks[at : at + LARGE])


def open_lanes(store: Store, keys: int) -> None:
    add(store, keys)


def throttled(store: Store, keys: int) -> None:
    """Each key has started one task, and may start the next in a while; another type has work."""
    store.set_lane(key="*", rate=0.0001, burst=1)
    use_up(store, keys)
    add(store, keys)
    drain(store)
    other(store)


def full(store: Store, keys: int) -> None:
    """Each key runs as many tasks as it may; another type has work."""
    store.set_lane(key="*", max_running=1)
    add(store, keys)
    drain(store)
    tasks = [Task(type="job", id=f"more{n}", limit_key=f"key-{n}", run_at=NOW, created_at=NOW) for n in range(keys)]
    for at in range(0, keys, LARGE):
        store.add(tasks[at : at + LARGE])
    drain(store)
    other(store)


def paused(store: Store, keys: int) -> None:
    add(store, keys, queue="q")
    store.set_lane(queue="q", paused=True)
    other(store)


def ended(store: Store, keys: int) -> None:
    use_up(store, keys, delete=False)
    other(store)


def deleted(store: Store, keys: int) -> None:
    use_up(store, keys)
    other(store)


def use_up(store: Store, keys: int, delete: bool = True) -> None:
    add(store, keys)
    while tasks := store.claim("w", LARGE, 1e6, NOW, {"job"}):
        store.update([(succeed(task, None, NOW), ()) for task in tasks])
        if delete:
            store.delete([task.id for task in tasks])


def drain(store: Store) -> None:
    while store.claim("w", LARGE, 1e6, NOW, {"job"}):
        pass


def other(store: Store) -> None:
    """What is claimed and given back while it is measured."""
    store.add([Task(type="other", id=f"other{n}", run_at=NOW, created_at=NOW) for n in range(40)])


SITUATIONS: list[Callable[[Store, int], None]] = [open_lanes, throttled, full, paused, ended, deleted]


def claim(store: Store) -> float:
    began = time.perf_counter()
    tasks = store.claim("w", 8, 1e6, NOW, {"job", "other"})
    took = time.perf_counter() - began
    assert len(tasks) == 8
    store.update([(release(task), ()) for task in tasks])
    return took * 1e6


def stats(store: Store) -> float:
    began = time.perf_counter()
    store.stats()
    return (time.perf_counter() - began) * 1e6


def measure(kind: str, situation: Callable[[Store, int], None], sizes: tuple[int, int], rounds: int) -> None:
    with tempfile.TemporaryDirectory() as few, tempfile.TemporaryDirectory() as many:
        stores = [opened(kind, directory) for directory in (few, many)]
        for store, keys in zip(stores, sizes, strict=True):
            situation(store, keys)
        line = f"{kind:8} {situation.__name__:12}"
        for name, look in (("claim", claim), ("stats", stats)):
            times: list[list[float]] = [[], []]
            for _ in range(rounds):
                for store, found in zip(stores, times, strict=True):
                    found.append(look(store))
            low, high = map(statistics.median, times)
            line += f"   {name} {low:8.0f} us, {high:8.0f} us ({high / low:5.2f} times; worst {max(times[1]):7.0f} us)"
        print(line, flush=True)
        for store in stores:
            store.close()


def opened(kind: str, directory: str) -> Store:
    return open_store(URLS[kind].format(directory) if kind in URLS else servers.url_of(kind))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keys", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--stores", default="memory,file,sqlite,valkey")
    options = parser.parse_args()
    print(f"with 20 keys, and with {options.keys:,}; medians of {options.rounds}, in turn")
    for kind in options.stores.split(","):
        for situation in SITUATIONS:
            measure(kind, situation, (20, options.keys), options.rounds)


if __name__ == "__main__":
    main()
