"""Nothing outlives a test: no thread, process, descriptor or temporary file that was not there before it.

    DTQ_LEAKS=1 pytest tests/test_pool.py        watches over each test

Not every test can be watched: what a module's fixture starts later, and threads that a test leaves in a call that
cannot be ended, look as if the test had left them.

What a fixture of a module or of the session holds was there before, as far as the test is concerned. The servers of
servers.py are started when they are first needed, and end with the session.
"""

from __future__ import annotations

import gc
import os
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

WITHIN = 5.0  # seconds that what ends may take to be gone, on a machine that is busy
FD = Path("/proc/self/fd")
TASKS = Path("/proc/self/task")
NOT_OURS = (  # threads that libraries start once and keep
    "asyncio_",  # the executor of an event loop that is kept
    "IPythonHistorySavingThread",
    "ThreadPoolExecutor-",
)
KEPT = (".org.chromium", "playwright", "pymp-", "dtq-server-")  # what browsers and others leave as temporary files

LONG = (  # what takes most of a minute, or measures how busy a limit was: DTQ_LONG=1 runs these too
    "test_api.py::test_processes_that_are_killed",
    "test_chaos.py::test_a_small_siege_breaks_no_promise[file",
    "test_flow_kills.py::test_a_random_graph_under_kills_keeps_its_order_and_every_node_ends_once[0-file",
    "test_redis_hosts.py",
    "test_redis_kills.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if "DTQ_LONG" not in os.environ:
        for item in items:
            if any(f"tests/{name}" in item.nodeid for name in LONG):
                item.add_marker(pytest.mark.skip(reason="takes long: set DTQ_LONG=1"))


@pytest.fixture(scope="session", autouse=True)
def _servers_end_with_the_session():
    yield
    if servers := sys.modules.get("servers"):
        servers.end_all()


@pytest.fixture(scope="session", autouse=True)
def temporary_files(tmp_path_factory):
    """A place of their own, where nobody else's are."""
    place = tmp_path_factory.mktemp("temporary")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(place))
        patch.setattr(tempfile, "tempdir", str(place))
        yield place


@pytest.fixture(scope="session")
def notebook_loop():
    """Jupyter's clients keep one event loop in each process: it is there before the first test that needs it."""
    from jupyter_core.utils import ensure_event_loop

    ensure_event_loop()


@pytest.fixture(autouse=True)
def _nothing_outlives_a_test(temporary_files):
    if "DTQ_LEAKS" not in os.environ:
        yield
        return
    before = inventory(temporary_files)
    yield
    give_up_at = time.monotonic() + WITHIN
    while left := inventory(temporary_files) - before:
        if time.monotonic() > give_up_at:
            pytest.fail("this test has left behind: " + ", ".join(sorted(left)), pytrace=False)
        gc.collect()  # a descriptor may be held by a cycle
        time.sleep(0.01)


def inventory(place: Path) -> set[str]:
    """What there is now, by name."""
    threads = {f"thread {thread.name} ({thread.ident})" for thread in threading.enumerate()}
    files = {f"temporary file {name}" for name in os.listdir(place) if not name.startswith(KEPT)}
    found = threads | files | {f"process {pid}" for pid in children() - _servers()} | descriptors()
    return {name for name in found if not name.startswith(tuple(f"thread {prefix}" for prefix in NOT_OURS))}


def _servers() -> set[str]:
    servers = sys.modules.get("servers")
    return {str(server.process.pid) for server in servers.running} if servers else set()


def children() -> set[str]:
    """Those that have ended and were not waited for are among them. (Not every kernel tells.)"""
    found: set[str] = set()
    for thread in _names(TASKS):
        try:
            found.update((TASKS / thread / "children").read_text().split())
        except OSError:
            continue
    return found


def descriptors() -> set[str]:
    """Sockets, pipes and what else can be waited for; files, where they are a test's own."""
    found = set()
    for number in _names(FD):
        try:
            target = os.readlink(FD / number)
        except OSError:  # the one that was used to look
            continue
        if not target.startswith("/") or "/pytest-" in target:
            found.add(f"descriptor {number} of {target}")
    return found


def _names(directory: Path) -> list[str]:
    return os.listdir(directory) if directory.exists() else []
