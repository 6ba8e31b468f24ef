"""However many limit keys wait, or have waited, a claim reads what it takes and a little more."""

from __future__ import annotations

import random

import pytest
import servers
from fair_picks import PlainStore
from msgspec.structs import replace

from dtq.stores import open_store
from dtq.task import Status, Task, cancel, release, revive, succeed

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
