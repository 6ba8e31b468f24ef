"""Check that nothing outlives a test: no thread, process, descriptor or temporary file that was not there before it.

    DTQ_LEAKS=1 pytest tests/workers/test_pool.py        checks each test

Anything that a module-scoped fixture starts is ended with the module, so tests that use such a fixture are checked
together, after the last test of the file. The servers of servers.py end with the session.

A test whose thread cannot be interrupted declares that thread by name: @pytest.mark.leaves("thread stuck").
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

CHECKS_LEAKS = "DTQ_LEAKS" in os.environ
END_TIMEOUT = 5.0  # seconds within which threads, processes and files must be gone, even on a busy machine
FD = Path("/proc/self/fd")
TASKS = Path("/proc/self/task")
LIBRARY_THREADS = (  # libraries start these once and keep them
    "asyncio_",  # the executor of an event loop that lives on
    "IPythonHistorySavingThread",
    "ThreadPoolExecutor-",
)
KEPT_FILES = (
    ".org.chromium",
    "playwright",
    "pymp-",
    "dtq-server-",
    "dtq-chapter-",
)  # left by browsers, and by killed kernels


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "leaves(*names): threads that cannot be interrupted and so outlive the test")
    if (
        signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    ):  # inherited from a background script; child processes would inherit it too
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _servers_end_with_the_session():
    yield
    if servers := sys.modules.get("servers"):
        servers.end_all()


@pytest.fixture(scope="session", autouse=True)
def temporary_files(tmp_path_factory):
    """Return a new directory for all temporary files of this session."""
    place = tmp_path_factory.mktemp("temporary")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(place))
        patch.setenv("DTQ_MINE", str(place / "mine"))  # not the reader's own solutions
        patch.setattr(tempfile, "tempdir", str(place))
        yield place


@pytest.fixture(scope="module", autouse=True)
def _directories_of_handlers_end_with_a_file_of_tests():
    """Restore DTQ_FILES, which `lab.start` sets for the workers of a chapter."""
    before = os.environ.get("DTQ_FILES")
    yield
    if before is None:
        os.environ.pop("DTQ_FILES", None)
    else:
        os.environ["DTQ_FILES"] = before


@pytest.fixture(scope="session")
def notebook_loop(temporary_files):
    """Start the event loop that Jupyter's clients keep in each process, before the first test that needs it."""
    from jupyter_core.utils import ensure_event_loop

    before = inventory(temporary_files)
    ensure_event_loop()
    LeakCheck.of_session |= inventory(temporary_files) - before


class LeakCheck:
    """Remembers what exists when a test, or a file of tests, begins. `known` is what existed when the previous one
    ended."""

    known: set[str] | None = None
    of_session: ClassVar[set[str]] = set()  # started by fixtures of the session
    allowed: tuple[str, ...] = ()  # prefixes of the names that tests allow

    def __init__(self, place: Path) -> None:
        self._place = place
        self._before = inventory(place) if LeakCheck.known is None else LeakCheck.known

    def finish(self, name: str) -> None:
        """Fail if anything is left after it has had time to end."""
        give_up_at = time.monotonic() + END_TIMEOUT
        while left := (now := inventory(self._place)) - self._before - self.of_session:
            if all(item.startswith(LeakCheck.allowed) for item in left):
                break
            if time.monotonic() > give_up_at:
                pytest.fail(f"{name} left behind: " + ", ".join(sorted(left)), pytrace=False)
            gc.collect()  # a descriptor may be held by a cycle
            time.sleep(0.01)
        LeakCheck.known = now


@pytest.fixture(scope="module", autouse=True)
def _nothing_outlives_a_file_of_tests(temporary_files):
    if not CHECKS_LEAKS:
        yield
        return
    LeakCheck.known = None
    check = LeakCheck(temporary_files)
    yield
    check.finish("this file of tests")


@pytest.fixture(autouse=True)
def _nothing_outlives_a_test(request, temporary_files):
    for mark in request.node.iter_markers("leaves"):
        LeakCheck.allowed += mark.args
    if not CHECKS_LEAKS or uses_shared_fixture(request.node):
        LeakCheck.known = None
        yield
        return
    check = LeakCheck(temporary_files)
    yield
    check.finish("this test")


def uses_shared_fixture(item: pytest.Item) -> bool:
    """Return True if the test uses a fixture of its file that outlives the test."""
    given = (fixture for fixtures in item._fixtureinfo.name2fixturedefs.values() for fixture in fixtures)
    return any(fixture.scope != "function" and fixture.func.__module__.startswith("test_") for fixture in given)


def inventory(place: Path) -> set[str]:
    """Return the names of everything that exists now."""
    threads = {f"thread {thread.name} ({thread.ident})" for thread in threading.enumerate()}
    files = {f"temporary file {name}" for name in os.listdir(place) if not name.startswith(KEPT_FILES)}
    found = threads | files | {f"process {pid}" for pid in children() - _servers()} | descriptors()
    return {name for name in found if not name.startswith(tuple(f"thread {prefix}" for prefix in LIBRARY_THREADS))}


def _servers() -> set[str]:
    servers = sys.modules.get("servers")
    return {str(server.process.pid) for server in servers.running} if servers else set()


def children() -> set[str]:
    """Return the child processes, including those that ended but were not waited for. (Not every kernel lists them.)"""
    found: set[str] = set()
    for thread in _names(TASKS):
        try:
            found.update((TASKS / thread / "children").read_text().split())
        except OSError:
            continue
    return found


def descriptors() -> set[str]:
    """Return sockets, pipes and the like; of files, only those of tests."""
    found = set()
    for number in _names(FD):
        try:
            target = os.readlink(FD / number)
        except OSError:  # the descriptor of the directory itself
            continue
        if not target.startswith("/") or "/pytest-" in target:
            found.add(f"descriptor {number} of {target}")
    return found


def _names(directory: Path) -> list[str]:
    return os.listdir(directory) if directory.exists() else []
