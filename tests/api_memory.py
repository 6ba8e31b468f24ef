"""Measure how much memory the API process needs while its page is open and every list is read.

    python tests/api_memory.py                    3,000 ended tasks of 100 KiB in SQLite, Valkey and a file store
    python tests/api_memory.py URL [TASKS] [KIB]  in the empty store at URL

Each task has a payload and a result of KIB KiB, or, where it failed, a payload, two attempts and a log. Prints the peak
resident size of `dtq serve`, and exits with 1 where one is over LIMIT.
"""

from __future__ import annotations

import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

import httpx
import psutil
import servers
from msgspec.structs import replace

from dtq import QueueManager, step
from dtq.stores.protocol import Node
from dtq.task.model import ErrorInfo
from dtq.task.transitions import fail, succeed

TASKS, KIB = 3000, 100
LIMIT = 300  # MB
FLOW = 100  # tasks
UNKNOWN = "0"  # as a flow, it would stand before all tasks that have an id of ours
LISTS = (
    *(f"tasks?limit={limit}" for limit in (1, 100, 1000)),
    *(f"tasks?limit=1000&status={status}" for status in ("completed", "failed", "pending")),
    "tasks?limit=500&status=failed&finished_after=1",  # what the page reads
    "tasks?limit=1000&finished_after=1",
    "tasks?limit=1000&queue=default",
    "tasks?limit=1000&type=big",
    "dead?limit=1",
    "dead?limit=1000",
    "dead?limit=1000&error=OSError&since=1",
    "dead/errors",
    "flows/known",
    f"flows/{UNKNOWN}",
    "stats",
    "queues",
    "schedules",
    "limits",
    "metrics",
)
FOLLOWED = 20  # pages of one list


class Peak(NamedTuple):
    """Resident megabytes of the API process: when it had answered once, and at most; and how long all lists took."""

    begin: float
    most: float
    seconds: float


def fill(url: str, n: int, kib: int) -> None:
    """Leave `n` tasks behind that have just ended, every third of them failed."""
    rows = [[number, "x" * 50] for number in range(kib * 1024 // 60)]
    with QueueManager(url) as manager:
        store, node = manager.store, Node("filler")
        store.heartbeat(node, (), 60, manager.clock())
        manager.flow({f"s{number}": step("big", rows) for number in range(min(n, FLOW))}, id="known")
        for at in range(min(n, FLOW), n, 50):
            manager.add_many({"type": "big", "payload": rows} for _ in range(min(50, n - at)))
        number = 0
        while claimed := store.claim("filler", 50, 60, manager.clock(), {"big"}):
            outcomes = []
            for task in claimed:
                number += 1
                outcomes.append((_ended(task, rows, manager.clock(), number % 3 == 0), ()))
            store.update(outcomes)
        store.heartbeat(node, (), 0, manager.clock())


def _ended(task, rows, now, is_failed):
    if not is_failed:
        return succeed(replace(task, log="printed\n" * 2000), rows, now)
    error = ErrorInfo("OSError", "no " * 1000, "frame\n" * 2700)
    once = replace(fail(task, error, now, lambda: 0.0), status="processing")
    return replace(fail(once, error, now, lambda: 0.0, final=True), log="printed\n" * 2000)


def measure(url: str, log: Path) -> Peak:
    """Read every list while the page's stream is open."""
    with servers.serving(url, log) as (pid, client):
        client.timeout = 120
        watched = psutil.Process(pid)
        client.get("stats").raise_for_status()
        begin = watched.memory_info().rss / 1e6
        ended, streamed, peak = threading.Event(), threading.Event(), [begin]

        def watch() -> None:
            while not ended.wait(0.005):
                peak[0] = max(peak[0], watched.memory_info().rss / 1e6)

        def stream() -> None:
            with httpx.stream("GET", client.base_url.join("events"), timeout=120) as events:
                for _ in events.iter_bytes():
                    streamed.set()
                    if ended.is_set():
                        return

        threads = [threading.Thread(target=watch), threading.Thread(target=stream)]
        for thread in threads:
            thread.start()
        try:
            assert streamed.wait(120)
            started = time.monotonic()
            for path in LISTS:
                read(client, path)
            seconds = time.monotonic() - started
        finally:
            ended.set()
            for thread in threads:
                thread.join()
        return Peak(begin, max(peak[0], _high_water(pid)), seconds)


def _high_water(pid: int) -> float:
    """Return the peak that the kernel has noted, in MB; 0 where it does not say."""
    status = Path(f"/proc/{pid}/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return max((int(line.split()[1]) * 1.024e-3 for line in lines if line.startswith("VmHWM")), default=0.0)


def read(client: httpx.Client, path: str) -> int:
    """Read the list and the pages behind it; return the size of the largest page in bytes."""
    largest = 0
    for _ in range(FOLLOWED):
        answer = client.get(path)
        assert answer.status_code == (404 if path == f"flows/{UNKNOWN}" else 200), f"{path}: {answer.text[:500]}"
        largest = max(largest, len(answer.content))
        if not path.startswith(("tasks", "dead?")) or not (path := answer.json()["next"]):
            break
    return largest


def main() -> int:
    url, n, kib = [*sys.argv[1:], *["", str(TASKS), str(KIB)][len(sys.argv) - 1 :]]
    worst = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for store in [url] if url else [f"{folder}/q.db", servers.url_of("valkey"), f"file:{folder}/q"]:
            fill(store, int(n), int(kib))
            begin, most, seconds = measure(store, Path(folder, "log"))
            print(f"{store}: {begin:.0f} MB at first, {most:.0f} MB at most, {seconds:.1f} s", flush=True)
            worst = max(worst, most)
    print(f"{worst:.0f} MB at most, allowed are {LIMIT}")
    return int(worst > LIMIT)


if __name__ == "__main__":
    try:
        sys.exit(main())
    finally:
        servers.end_all()
