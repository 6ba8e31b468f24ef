"""However many limit keys wait, or have waited, a claim reads what it takes and a little more."""

from __future__ import annotations

import random
import sqlite3
import subprocess
import sys
from contextlib import closing

import many_keys
import pytest
import servers
from fair_picks import PlainStore
from msgspec.structs import replace

from dtq.stores.open import open_store
from dtq.stores.redis.store import RedisStore
from dtq.stores.sqlite.store import SQLiteStore
from dtq.task.model import Status, Task
from dtq.task.transitions import cancel, release, revive, succeed

NOW = 1000.0
KEYS = ["", *(f"k{n}" for n in range(12))]


def random_task(rng: random.Random, number: int, now: float) -> Task:
    return Task(
        id=f"t{number}", type=rng.choice("ab"), queue=rng.choice("qr"), limit_key=rng.choice(KEYS),
        priority=rng.choice([0, 0, 0, 1, 5]), run_at=now + rng.choice([-3.0, 0.0, 0.0, 2.0]), created_at=now,
    )  # fmt: skip


def random_limit(rng: random.Random) -> tuple[dict, dict]:
    selector = {"queue": rng.choice([None, "q"]), "type": rng.choice([None, "a"])}
    selector["key"] = rng.choice([None, "*", "*", "k1", ""])
    change = rng.choice(
        [{"paused": True}, {"paused": False}, {"rate": rng.choice([0, 0.3, 2]), "burst": rng.choice([1, 3])},
         {"max_running": rng.randrange(3)}, {"paused": False, "rate": 0, "max_running": 0}]
    )  # fmt: skip
    return selector, change


MANY = 2000  # keys; tests/many_keys.py measures ten times as many
URLS = {
    "memory": "memory:",
    "file": "file:{}/queue?durability=relaxed",
    "sqlite": "sqlite:///{}/q.db?durability=relaxed",
}
KINDS = [*URLS, "valkey"]


def opened(kind, tmp_path):
    return open_store(URLS[kind].format(tmp_path) if kind in URLS else servers.url_of(kind))


@pytest.mark.parametrize("seed", range(15))
@pytest.mark.parametrize("kind", KINDS)
def test_a_claim_takes_the_tasks_that_the_plain_rule_over_all_lanes_names(kind, seed, tmp_path):
    rng = random.Random(seed)
    stores = [PlainStore(), opened(kind, tmp_path)]
    now, number, held, known = NOW, 0, [], []
    for step in range(150):
        action = rng.choices(["add", "claim", "end", "limit", "time", "change", "delete"], [5, 9, 5, 1, 3, 2, 1])[0]
        if action == "add":
            tasks = [random_task(rng, number + n, now) for n in range(rng.randrange(1, 12))]
            number += len(tasks)
            known += [task.id for task in tasks]
            [store.add(tasks) for store in stores]
        elif action == "claim":
            types, queues = rng.choice(["ab", "ab", "a"]), rng.choice([(), (), "q"])
            n, lowest = rng.choice([1, 1, 2, 5, 20]), rng.choice([None, None, 1])
            plain, got = [store.claim("w", n, 30, now, types, queues, lowest) for store in stores]
            assert [t.id for t in got] == [t.id for t in plain], (step, n, types, queues, lowest)
            held += got
        elif action == "end" and held:
            ended = [held.pop(rng.randrange(len(held))) for _ in range(min(len(held), 3))]
            outcomes = [(succeed(t, None, now) if rng.random() < 0.7 else release(t), []) for t in ended]
            [store.update(outcomes) for store in stores]
        elif action == "limit":
            selector, change = random_limit(rng)
            [store.set_lane(**selector, **change) for store in stores]
        elif action == "time":
            now += rng.choice([0.1, 0.5, 3.0])
        elif action == "change" and known:
            for task in stores[0].get([rng.choice(known)]):
                if task.status in ("failed", "cancelled"):
                    [store.update([(revive(task, now), [])]) for store in stores]
                elif task.status == Status.PENDING:
                    change = rng.choice([cancel(task, now), replace(task, priority=rng.choice([0, 7]))])
                    [store.update([(change, [])]) for store in stores]
        elif action == "delete" and known:
            gone = rng.sample(known, len(known) // 8)
            [store.delete(gone) for store in stores]
    [store.close() for store in stores]


# --- what a claim costs


def operations(store, work) -> int:
    """What this call does: instructions of SQLite's machine, commands of a server's scripts, or calls in Python."""
    if isinstance(store, SQLiteStore):
        return machine_steps(store, work)
    if isinstance(store, RedisStore):
        before = commands(store)
        work()
        return commands(store) - before
    count = 0

    def note(*_):
        nonlocal count
        count += 1

    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


def machine_steps(store, work) -> int:
    steps = 0

    def note():
        nonlocal steps
        steps += 1

    connections = [store.database.writer, store.database.reader]
    for connection in connections:
        connection.set_progress_handler(note, 1)
    work()
    for connection in connections:
        connection.set_progress_handler(None, 0)
    return steps


def commands(store) -> int:
    return sum(command["calls"] for command in store.client.redis.info("commandstats").values())


def worst_claim(store, n=8, rounds=6) -> int:
    """The operations of the most expensive of several claims; what is claimed is given back between them."""
    worst = 0
    for _ in range(rounds):
        claimed = []
        worst = max(worst, operations(store, lambda: claimed.extend(store.claim("w", n, 1e6, many_keys.NOW, TYPES))))  # noqa: B023
        store.update([(release(task), ()) for task in claimed])
    return worst


TYPES = {"job", "other"}


@pytest.mark.parametrize("situation", many_keys.SITUATIONS, ids=lambda situation: situation.__name__)
@pytest.mark.parametrize("kind", KINDS)
def test_a_claim_with_thousands_of_keys_does_at_most_twice_what_it_does_with_twenty(kind, situation, tmp_path):
    costs = []
    for keys in (20, MANY):
        (tmp_path / str(keys)).mkdir()
        store = opened(kind, tmp_path / str(keys))
        situation(store, keys)
        costs.append((worst_claim(store), operations(store, store.stats)))
        store.close()
    (claim, stats), (claim_of_many, stats_of_many) = costs
    print(f"{kind} {situation.__name__}: claim {claim} and {claim_of_many}, stats {stats} and {stats_of_many}")
    assert claim_of_many <= 2 * claim
    assert stats_of_many <= 2 * stats


@pytest.mark.parametrize("kind", KINDS)
def test_thousands_of_keys_that_open_at_once_are_let_in_in_bounded_steps(kind, tmp_path):
    later = many_keys.NOW + 1e6
    costs = []
    for keys in (200, 2000):
        (tmp_path / str(keys)).mkdir()
        store = opened(kind, tmp_path / str(keys))
        many_keys.throttled(store, keys)
        costs.append(operations(store, lambda: store.claim("w", 8, 1e9, later, {"job"})))  # noqa: B023
        assert store.next_due(later) <= later
        found = 8
        while tasks := store.claim("w", 100, 1e9, later, {"job"}):
            found += len(tasks)
        assert found == keys
        store.close()
    assert costs[1] <= 2 * costs[0]


# --- lanes that go and come back


def test_a_task_added_under_a_key_that_another_process_has_used_up_is_not_lost(tmp_path):
    one, two = (SQLiteStore(tmp_path / "queue.db") for _ in range(2))
    for n in range(3):
        one.add([Task(type="a", id=f"{n}", limit_key="k", run_at=NOW, created_at=NOW)])
        for task in two.claim("w", 1, 30, NOW, {"a"}):
            two.update([(succeed(task, None, NOW), [])])
            two.delete([task.id])
        assert one.stats().total == 0
        assert lanes_of(tmp_path / "queue.db") == 0
    two.add([Task(type="a", id="last", limit_key="k", run_at=NOW, created_at=NOW)])
    assert [task.id for task in one.claim("w", 5, 30, NOW, {"a"})] == ["last"]
    one.close()
    two.close()


def lanes_of(path) -> int:
    with closing(sqlite3.connect(path)) as database:
        return database.execute("SELECT count(*) FROM lane").fetchone()[0]


HAMMER = """
import sys
from dtq.stores.sqlite.store import SQLiteStore
from dtq.task.model import Task
from dtq.task.transitions import succeed
store, name, done = SQLiteStore(sys.argv[1], durability="relaxed"), sys.argv[2], 0
for n in range(300):
    store.add([Task(type="a", id=f"{name}-{n}", limit_key=f"k{n % 3}", run_at=1000.0, created_at=1000.0)])
    for task in store.claim(name, 2, 1e9, 1000.0, {"a"}):
        store.update([(succeed(task, None, 1000.0), [])])
        done += store.delete([task.id])
print(done)
store.close()
"""


def test_processes_that_use_up_the_same_keys_lose_no_task(tmp_path):
    path = tmp_path / "queue.db"
    hammers = [
        subprocess.Popen([sys.executable, "-c", HAMMER, str(path), name], stdout=subprocess.PIPE, text=True)
        for name in ("x", "y")
    ]
    done = sum(int(hammer.communicate(timeout=120)[0]) for hammer in hammers)
    store = SQLiteStore(path)
    left = store.claim("z", 1000, 30, 1000.0, {"a"})
    assert done + len(left) == 600
    assert store.delete([task.id for task in left]) == 0
    store.update([(succeed(task, None, 1000.0), []) for task in left])
    store.delete([task.id for task in left])
    assert (store.stats().total, lanes_of(path)) == (0, 0)
    store.close()
