"""Lists need little memory, however large the tasks are, and their pages are bounded in bytes."""

from __future__ import annotations

from contextlib import closing
from itertools import chain
from pathlib import Path

import httpx
import pytest
import servers
from api_memory import FLOW, LIMIT, LISTS, Peak, fill, measure, read
from api_memory import TASKS as MANY
from msgspec.json import encode

pytest.importorskip("starlette")

from dtq import APIServer, QueueManager
from dtq.api.responses import TaskSummary
from dtq.api.routes import common
from dtq.errors import UnknownTask
from dtq.queue.flow import Flow
from dtq.queue.handle import Waiters
from dtq.stores.memory.store import MemoryStore
from dtq.task.model import ErrorInfo
from dtq.task.transitions import fail

STORES = ["sqlite", "valkey", "file"]
TASKS, KIB = 150, 100
ALLOWED = 40  # MB beyond what the process has when it has answered once; the tasks of one page of 100 would take more


def peak_of(store: str, directory: Path, tasks: int) -> Peak:
    """Return how much memory an API process needs for this many tasks of KIB KiB in such a store."""
    urls = {"sqlite": f"{directory}/queue.db", "file": f"file:{directory}/queue"}
    url = urls.get(store) or servers.url_of(store)
    fill(url, tasks, KIB)
    return measure(url, directory / "log")


@pytest.mark.long
@pytest.mark.parametrize("store", STORES)
def test_an_api_process_stays_small_while_every_list_of_large_tasks_is_read(store, tmp_path):
    peak = peak_of(store, tmp_path, TASKS)
    assert peak.most - peak.begin < ALLOWED, peak


@pytest.mark.hourly
@pytest.mark.parametrize("store", STORES)
def test_an_api_process_of_many_large_tasks_stays_below_its_limit(store, tmp_path):
    peak = peak_of(store, tmp_path, MANY)
    assert peak.most < LIMIT, peak


class Counted(MemoryStore):
    """Counts the tasks that it hands out whole, and those that it hands out brief."""

    def __init__(self):
        super().__init__()
        self.whole = self.brief = 0

    def find(self, *, brief=False, **wanted):
        return self._counted(super().find(brief=brief, **wanted), brief)

    def get(self, ids, *, brief=False):
        return self._counted(super().get(ids, brief=brief), brief)

    def _counted(self, tasks, brief):
        self.brief += brief * len(tasks)
        self.whole += (not brief) * len(tasks)
        return tasks


@pytest.fixture
def store():
    with closing(Counted()) as store:
        yield store


@pytest.fixture
def manager(store):
    with QueueManager(store) as manager:
        yield manager


@pytest.fixture
def client(manager):
    with APIServer(manager, port=0) as api, httpx.Client(base_url=api.url, timeout=60) as client:
        yield client


def die(manager, message="no"):
    """Let everything that waits fail permanently."""
    now = manager.clock()
    tasks = manager.store.claim("n", 10_000, 60, now, {"some"})
    errors = [fail(task, ErrorInfo("OSError", message), now, lambda: 0, final=True) for task in tasks]
    manager.store.update([(task, ()) for task in errors])


@pytest.mark.parametrize("path", [path for path in LISTS if path.startswith(("tasks", "dead", "flows"))])
def test_no_list_reads_a_whole_task(path, client, manager, store):
    manager.flow({f"s{n}": {"type": "some"} for n in range(FLOW)}, id="known")
    die(manager)
    store.whole = 0
    read(client, path)
    assert store.whole == 0


def test_a_list_of_one_reads_few_tasks(client, manager, store):
    manager.add_many({"type": "some"} for _ in range(2000))
    die(manager)
    store.brief = 0
    for path in ("tasks?limit=1", "dead?limit=1"):
        assert len(client.get(path).json()["tasks"]) == 1
    assert store.brief <= 4


def test_an_unknown_flow_is_known_to_be_so_from_one_task(manager, store):
    manager.add_many({"type": "some"} for _ in range(2000))
    store.brief = store.whole = 0
    with pytest.raises(UnknownTask, match="no flow has the id '0'"):
        manager.get_flow("0")
    assert (store.brief, store.whole) == (1, 0)


@pytest.mark.parametrize("n", [1, 10, 11, 12, 1111, 1112, 3000])
def test_a_flow_of_any_size_is_found_whole_among_others(n, manager):
    for id in ("a", "flow", "z"):
        manager.flow({f"s{number:04}": {"type": "some"} for number in range(n if id == "flow" else 2)}, id=id)
    assert Flow.find("flow", manager).ids == [f"flow.s{number:04}" for number in range(n)]


@pytest.mark.parametrize("path", ["tasks", "dead"])
def test_a_page_ends_at_its_bound_of_bytes_and_leads_on(path, client, manager, monkeypatch):
    ids = [handle.id for handle in manager.add_many({"type": "some"} for _ in range(10))]
    die(manager, "ü" * 500)
    sizes = [len(encode(TaskSummary.of(task))) for task in manager.find()]

    def pages(bound):
        monkeypatch.setattr(common, "PAGE_BYTES", bound)
        page, found = client.get(f"{path}?limit=7").json(), []
        while True:
            found.append([task["id"] for task in page["tasks"]])
            if page["next"] is None:
                return found
            page = client.get(page["next"]).json()

    assert [len(page) for page in pages(sum(sizes[:3]))] == [3, 3, 3, 1]
    assert [len(page) for page in pages(sum(sizes[:3]) - 1)] == [2] * 5
    assert [len(page) for page in pages(sum(sizes))] == [7, 3]
    assert [len(page) for page in pages(1)] == [1] * 10  # one that is larger than the bound comes alone
    for bound in (sum(sizes[:3]), 1):
        assert list(chain(*pages(bound))) == ids


def test_a_page_of_the_largest_errors_stays_below_its_bound(client, manager):
    manager.add_many({"type": "some"} for _ in range(1000))
    die(manager, "\x00" * 4000)  # six bytes of JSON each
    page = client.get("tasks?limit=1000")
    assert len(page.content) <= common.PAGE_BYTES + 200
    assert len(page.json()["tasks"]) < 1000
    assert page.json()["next"] in page.headers["link"]


def test_tasks_that_are_waited_for_are_read_whole_when_they_have_ended(manager, store):
    ids = [handle.id for handle in manager.add_many({"type": "some", "payload": 1} for _ in range(20))]
    endings = Waiters()
    futures = [endings.future(id) for id in ids]
    store.whole = 0
    endings.poll(store.get)
    assert (store.whole, any(future.done() for future in futures)) == (0, False)
    die(manager)
    endings.poll(store.get)
    assert (store.whole, [future.result(0).payload for future in futures]) == (20, [1] * 20)


def test_dead_letters_are_counted_and_purged_with_few_of_them_in_memory(manager, store):
    manager.add_many({"type": "some"} for _ in range(200))
    die(manager)
    store.whole = 0
    assert manager.dead.errors() == {"OSError": 200}
    assert store.whole == 0
    largest = []
    find, get = store.find, store.get
    store.find = lambda *, brief=False, **wanted: (
        largest.append((not brief) * wanted["limit"]) or find(brief=brief, **wanted)
    )
    store.get = lambda ids, *, brief=False: largest.append((not brief) * len(list(ids))) or get(ids, brief=brief)
    assert len(manager.dead.find(limit=200)) == len(list(manager.dead)) == 200
    assert len(manager.dead.redrive(limit=90)) == 90
    assert manager.dead.purge() == 110
    assert max(largest) == 50
