"""Figures that take minutes to measure: `pytest -m hourly tests/testing/test_chaos_figures.py -s` prints them."""

from __future__ import annotations

import gc
import statistics
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from dtq import QueueManager, TaskQueue
from dtq.stores.open import open_store
from dtq.task.model import Task
from dtq.task.transitions import succeed

pytestmark = pytest.mark.hourly

NOW = 1000.0
WAITING = 100_000
BATCH = 10_000
URLS = ["{}/queue.db", "file:{}/queue"]


def tasks(n: int, name: str = "t") -> list[Task]:
    return [Task(type="work", id=f"{name}{k:06}", created_at=NOW, run_at=NOW, payload=0) for k in range(n)]


@pytest.mark.parametrize("url", URLS)
def test_a_claim_among_a_hundred_thousand_takes_at_most_twice_as_long_as_among_a_hundred(url, tmp_path):
    few, many = (open_store(url.format(_made(tmp_path / name))) for name in ("few", "many"))
    for start in range(0, WAITING, 10_000):
        many.add(tasks(10_000, f"{start:06}-"))
    few.add(tasks(100))
    times: dict[object, list[float]] = {few: [], many: []}
    for _ in range(1000):
        for store in (few, many):  # in turn, so that both have the same machine
            began = time.perf_counter()
            (task,) = store.claim("w", 1, 30, NOW, {"work"})
            times[store].append(time.perf_counter() - began)
            store.update([(succeed(task, None, NOW), ())])
            store.add([Task(type="work", id=f"{task.id}:again", created_at=NOW, run_at=NOW)])
    p99 = {name: statistics.quantiles(times[store], n=100)[98] * 1000 for name, store in (("few", few), ("many", many))}
    print(f"\n{url}: claim p99 {p99['few']:.3f} ms at 100, {p99['many']:.3f} ms at {WAITING:,}")
    few.close()
    many.close()
    assert p99["many"] <= 2 * p99["few"]


@pytest.mark.parametrize(("url", "seconds"), list(zip(URLS, (10, 30), strict=True)))
def test_after_kill_9_a_node_that_is_started_anew_goes_on_within(url, seconds, tmp_path):
    """A hundred thousand tasks wait; the time is from the kill until one that the dead node held has run."""
    url = url.format(tmp_path)
    with QueueManager(url) as manager:
        for start in range(0, WAITING, 10_000):
            manager.store.add(tasks(10_000, f"{start:06}-"))
        node = _node(url)
        while manager.stats().running < 2:
            time.sleep(0.005)
        node.kill()
        held = [task.id for task in manager.find(status="processing", limit=1000)]
        began = time.monotonic()
        node.communicate()
        other = _node(url)
        while not any(task.status == "completed" for task in manager.store.get(held)):
            assert time.monotonic() - began < 2 * seconds
            time.sleep(0.01)
        took = time.monotonic() - began
        other.kill()
        other.communicate()
    print(f"\n{url[:6]}: {took:.2f} s from kill -9 to the first of {len(held)} tasks of the dead, {WAITING:,} waiting")
    assert took < seconds


def _node(url: str) -> subprocess.Popen[bytes]:
    code = (
        "import sys; from dtq import TaskQueue\n"
        "with TaskQueue(sys.argv[1], {'work': 'queue_handlers:sleep_if_asked'}, 2): sys.stdin.read()"
    )
    return subprocess.Popen([sys.executable, "-c", code, url], stdin=subprocess.PIPE, cwd=Path(__file__).parents[1])


def test_two_million_tasks_leave_no_more_memory_than_two_hundred_thousand(tmp_path):
    """What grows with the tasks that came and went is a leak: in the queue's process, its zygote and its workers."""
    few, many = 200_000, 2_000_000
    seen = {}
    with TaskQueue(str(tmp_path / "queue.db"), {"work": "queue_handlers:nothing"}, 2) as queue:
        for done in range(BATCH, many + 1, BATCH):
            queue.add_many([{"type": "work"}] * BATCH)
            queue.join(600)
            queue.cleanup(0)
            if done in (few, many):
                seen[done] = _family_rss()
    grown = [(after - before) / (1 << 20) for before, after in zip(seen[few], seen[many], strict=True)]
    print(f"\nRSS after {few:,} tasks, MB: {[f'{size / (1 << 20):.1f}' for size in seen[few]]} (node, zygote, workers)")
    print(f"after {many:,}: {[f'{size:+.2f}' for size in grown]}")
    assert sum(grown) <= 1


def _made(path: Path) -> Path:
    path.mkdir()
    return path


def _family_rss() -> list[int]:
    """This process first, then those below it."""
    gc.collect()
    me = psutil.Process()
    return [process.memory_info().rss for process in (me, *me.children(recursive=True))]
