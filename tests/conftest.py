"""Nothing outlives a test: no thread, process, descriptor or temporary file that was not there before it.

    DTQ_LEAKS=1 pytest tests/workers/test_pool.py        watches over each test

What a fixture of a module starts, now or when it is first needed, ends with that module: tests which use one are looked
at together, when the last of the file is over. The servers of servers.py end with the session.

A thread that sits in a call which nobody can end is handed over by its name: @pytest.mark.leaves("thread stuck").
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import ClassVar

import pytest

WATCHES = "DTQ_LEAKS" in os.environ
WITHIN = 5.0  # seconds that what ends may take to be gone, on a machine that is busy
FD = Path("/proc/self/fd")
TASKS = Path("/proc/self/task")
NOT_OURS = (  # threads that libraries start once and keep
    "asyncio_",  # the executor of an event loop that is kept
    "IPythonHistorySavingThread",
    "ThreadPoolExecutor-",
)
KEPT = (
    ".org.chromium",
    "playwright",
    "pymp-",
    "dtq-server-",
    "dtq-chapter-",
)  # of browsers, and of kernels that are killed


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "leaves(*names): threads that cannot be ended and that outlive the test")
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # in the background of a script, and so in what we start
        signal.signal(signal.SIGINT, signal.default_int_handler)


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
def notebook_loop(temporary_files):
    """Jupyter's clients keep one event loop in each process: it is there before the first test that needs it."""
    from jupyter_core.utils import ensure_event_loop

    before = inventory(temporary_files)
    ensure_event_loop()
    Watch.of_session |= inventory(temporary_files) - before


class Watch:
    """What was there when a test, or a file of tests, began; `known` is what was there when the last one had ended."""

    known: set[str] | None = None
    of_session: ClassVar[set[str]] = set()  # what a fixture of the session started
    wont_end: tuple[str, ...] = ()  # what tests have handed over: beginnings of names

    def __init__(self, place: Path) -> None:
        self._place = place
        self._before = inventory(place) if Watch.known is None else Watch.known

    def look(self, whose: str) -> None:
        """Fails where something is left, when it has had time to go."""
        give_up_at = time.monotonic() + WITHIN
        while left := (now := inventory(self._place)) - self._before - self.of_session:
            if all(name.startswith(Watch.wont_end) for name in left):
                break
            if time.monotonic() > give_up_at:
                pytest.fail(f"{whose} has left behind: " + ", ".join(sorted(left)), pytrace=False)
            gc.collect()  # a descriptor may be held by a cycle
            time.sleep(0.01)
        Watch.known = now


@pytest.fixture(scope="module", autouse=True)
def _nothing_outlives_a_file_of_tests(temporary_files):
    if not WATCHES:
        yield
        return
    Watch.known = None
    watch = Watch(temporary_files)
    yield
    watch.look("this file of tests")


@pytest.fixture(autouse=True)
def _nothing_outlives_a_test(request, temporary_files):
    for mark in request.node.iter_markers("leaves"):
        Watch.wont_end += mark.args
    if not WATCHES or uses_what_is_shared(request.node):
        Watch.known = None
        yield
        return
    watch = Watch(temporary_files)
    yield
    watch.look("this test")


def uses_what_is_shared(item: pytest.Item) -> bool:
    """Whether a fixture of its file, which outlives it, may be at work in it."""
    given = (fixture for fixtures in item._fixtureinfo.name2fixturedefs.values() for fixture in fixtures)
    return any(fixture.scope != "function" and fixture.func.__module__.startswith("test_") for fixture in given)


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
