"""An attempt that is ended runs its `finally`, and its processes end with it. Processes and kills are real."""

from __future__ import annotations

import os
import signal
import time

import psutil
import pytest
from pool_lab import is_gone, wait_until

from dtq import TaskQueue
from dtq.errors import TaskCancelled, TaskFailed
from dtq.workers.run.offspring import SEES_CHILDREN

WAIT = 20.0
HANDLERS = {name: f"offspring_handlers:{name}" for name in ("run", "run_async", "helper", "use_pool")}
WAYS = ["popen", "session", "shell", "orphan", "fork"]

pytestmark = pytest.mark.skipif(not SEES_CHILDREN, reason="needs a kernel that lists children")


@pytest.fixture
def queue(tmp_path):
    with TaskQueue(tmp_path / "q.db", HANDLERS, 1) as queue:
        yield queue
        queue.shutdown(force=True)


class Attempt:
    """A task whose handler starts processes. `pids` are their ids, `worker` is the process id of its worker."""

    def __init__(self, queue, place, start, end, type="run", **options):
        options = {"timeout": 60, "max_attempts": 1, **options}
        self.place = place
        self.handle = queue.add(type, {"start": start, "end": end, "place": str(place)}, **options)
        wait_until((place / "pids").exists, WAIT)
        *self.pids, self.worker = map(int, (place / "pids").read_text().split())

    def is_over(self):
        return all(map(is_gone, self.pids))

    def ran_finally(self):
        return (self.place / "finally").exists()


# --- every way to end -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("type", ["run", "run_async"])
@pytest.mark.parametrize("how", WAYS)
def test_processes_of_an_attempt_end_with_its_timeout(queue, tmp_path, type, how):
    attempt = Attempt(queue, tmp_path, [how], "sleep", type, timeout=0.5)
    with pytest.raises(TaskFailed, match="timeout of"):
        attempt.handle.result(WAIT)
    assert attempt.ran_finally()
    assert attempt.is_over()
    assert not is_gone(attempt.worker)


@pytest.mark.parametrize("type", ["run", "run_async"])
@pytest.mark.parametrize("how", WAYS)
def test_processes_of_an_attempt_end_with_its_cancellation(queue, tmp_path, type, how):
    attempt = Attempt(queue, tmp_path, [how], "sleep", type)
    attempt.handle.cancel()
    with pytest.raises(TaskCancelled):
        attempt.handle.result(WAIT)
    wait_until(lambda: attempt.ran_finally() and attempt.is_over(), 2)
    assert not is_gone(attempt.worker)


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("end", ["exit", "crash"])
def test_processes_of_an_attempt_end_with_its_worker(queue, tmp_path, how, end):
    attempt = Attempt(queue, tmp_path, [how], end)
    with pytest.raises(TaskFailed):
        attempt.handle.result(WAIT)
    wait_until(attempt.is_over, 2)


@pytest.mark.parametrize("how", WAYS)
def test_processes_of_an_attempt_end_when_its_worker_is_killed_for_it(queue, tmp_path, how):
    attempt = Attempt(queue, tmp_path, [how], "hold", timeout=0.5)
    with pytest.raises(TaskFailed, match="its worker was killed"):
        attempt.handle.result(WAIT)
    wait_until(lambda: attempt.is_over() and is_gone(attempt.worker), 2)


@pytest.mark.parametrize("type", ["run", "run_async"])
@pytest.mark.parametrize("options", [{"force": True}, {"timeout": 0.2}])
def test_a_shutdown_that_runs_out_of_time_runs_finally_and_ends_processes(tmp_path, type, options):
    with TaskQueue(tmp_path / "q.db", HANDLERS, 1) as queue:
        attempt = Attempt(queue, tmp_path, WAYS, "sleep", type)
        began = time.monotonic()
        queue.shutdown(**options)
        assert time.monotonic() - began < 3
    assert attempt.ran_finally()
    wait_until(lambda: attempt.is_over() and is_gone(attempt.worker), 2)
    with TaskQueue(tmp_path / "q.db") as queue:
        task = queue.get(attempt.handle.id)
        assert (task.status, task.attempts, task.interruptions) == ("pending", 0, 0)


@pytest.mark.parametrize("end", ["return", "raise"])
def test_processes_of_an_attempt_end_when_its_handler_returns_or_raises(queue, tmp_path, end):
    attempt = Attempt(queue, tmp_path, WAYS, end)
    if end == "return":
        assert attempt.handle.result(WAIT) == attempt.pids
    else:
        with pytest.raises(TaskFailed):
            attempt.handle.result(WAIT)
    assert attempt.is_over()
    assert not is_gone(attempt.worker)


@pytest.mark.parametrize("type", ["run", "run_async"])
def test_a_shutdown_that_runs_out_of_time_runs_finally_in_threads_too(tmp_path, type):
    with TaskQueue(tmp_path / "q.db", HANDLERS, 1, executor="thread") as queue:
        attempt = Attempt(queue, tmp_path, [], "poll", type)
        queue.shutdown(timeout=0.1)
    assert attempt.ran_finally()


# --- stubborn children, and those that survive ------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["sleep", "return"])
def test_a_child_that_ignores_sigterm_is_killed_and_the_outcome_of_its_attempt_stays(queue, tmp_path, end):
    attempt = Attempt(queue, tmp_path, ["stubborn"], end, timeout=1.5)
    if end == "return":
        attempt.handle.result(WAIT)
    else:
        with pytest.raises(TaskFailed, match=r"timeout of 1\.5 s$"):
            attempt.handle.result(WAIT)
    assert attempt.is_over()
    assert not is_gone(attempt.worker), "the worker must survive"


def test_ending_a_child_frees_the_handler_that_waits_for_it(queue, tmp_path):
    """`with Popen` waits for the child, even when an exception is raised inside."""
    attempt = Attempt(queue, tmp_path, ["popen"], "wait for it", timeout=0.5)
    with pytest.raises(TaskFailed, match=r"timeout of 0\.5 s$"):
        attempt.handle.result(WAIT)
    assert attempt.ran_finally()
    assert attempt.is_over()
    assert not is_gone(attempt.worker)


@pytest.mark.parametrize("end", ["sleep", "return", "raise"])
def test_a_child_of_setup_survives_the_attempts(queue, tmp_path, end):
    helper = queue.add("helper").result(WAIT)
    attempt = Attempt(queue, tmp_path, ["popen", "shell"], end, timeout=0.5)
    wait_until(lambda: attempt.handle.status in ("failed", "completed"), WAIT)
    assert attempt.is_over()
    assert queue.add("helper").result(WAIT) == helper
    assert not is_gone(helper)
    queue.shutdown()
    wait_until(lambda: is_gone(helper), 2)


def test_children_of_async_attempts_that_overlap_end_with_the_last_of_them(tmp_path):
    with TaskQueue(tmp_path / "q.db", pool_size=1) as queue:
        queue.register("run_async", "offspring_handlers:run_async", concurrency=5)
        for name in ("long", "short"):
            (tmp_path / name).mkdir()
        long = Attempt(queue, tmp_path / "long", ["popen"], "sleep", "run_async", timeout=2)
        short = Attempt(queue, tmp_path / "short", ["popen"], "return", "run_async")
        short.handle.result(WAIT)
        assert not any(map(is_gone, long.pids))
        with pytest.raises(TaskFailed):
            long.handle.result(WAIT)
        assert long.is_over()
        assert short.is_over()


def test_a_teardown_that_hangs_is_interrupted(tmp_path):
    (tmp_path / "slow.py").write_text(
        "import time\n"
        "def execute(payload, context): return 1\n"
        "def teardown():\n"
        "    try: time.sleep(60)\n"
        f"    finally: open({str(tmp_path / 'end')!r}, 'w').close()\n"
    )
    with TaskQueue(tmp_path / "q.db", {"slow": tmp_path / "slow.py"}, 1, max_tasks_per_worker=1) as queue:
        queue.add("slow").result(WAIT)
        wait_until((tmp_path / "end").exists, 5)


@pytest.mark.parametrize("kind", ["executor", "pool"])
def test_a_process_pool_that_later_attempts_use_survives(queue, kind):
    pids = {queue.add("use_pool", {"kind": kind, "seconds": 0}).result(WAIT) for _ in range(6)}
    with pytest.raises(TaskFailed, match=r"timeout of 0\.3 s$"):
        queue.add("use_pool", {"kind": kind, "seconds": 60}, timeout=0.3, max_attempts=1).result(WAIT)
    assert len(pids) <= 2
    assert not any(map(is_gone, pids))


@pytest.mark.parametrize("kind", ["executor", "pool"])
def test_a_process_pool_ends_with_the_attempt_that_started_it_if_that_is_interrupted(queue, kind):
    task = queue.add("use_pool", {"kind": kind, "seconds": 60}, timeout=1, max_attempts=1)
    wait_until(lambda: any(worker.task_id == task.id for worker in queue.workers()))
    (worker,) = (psutil.Process(worker.pid) for worker in queue.workers())
    wait_until(lambda: any(child.name() != "sleep" for child in worker.children()))
    started = [child.pid for child in worker.children() if child.name() != "sleep"]
    # A pool replaces processes that end, from its own thread. If it does so until the grace is over, the worker is
    # killed as well, and the error states that. In either case, nothing that the attempt started may be left.
    with pytest.raises(TaskFailed, match=r"Timeout: ran longer than its timeout of 1 s"):
        task.result(WAIT)
    assert all(map(is_gone, started))


def test_the_resource_tracker_of_multiprocessing_survives(queue):
    def share(payload, context):
        from multiprocessing import resource_tracker
        from multiprocessing.shared_memory import SharedMemory

        block = SharedMemory(create=True, size=10)
        block.close()
        block.unlink()
        return resource_tracker._resource_tracker._pid

    queue.register("share", share)
    first = queue.add("share").result(WAIT)
    began = time.monotonic()
    assert queue.add("share").result(WAIT) == first
    assert time.monotonic() - began < 0.3
    assert not is_gone(first)


def test_killing_the_process_of_the_queue_leaves_no_process_behind(tmp_path):
    pid = os.fork()
    if pid == 0:
        try:
            queue = TaskQueue(tmp_path / "q.db", HANDLERS, 1).start()
            Attempt(queue, tmp_path, WAYS, "sleep")
            signal.pause()
        finally:
            os._exit(1)
    wait_until((tmp_path / "pids").exists, WAIT)
    time.sleep(0.1)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    pids = [int(word) for word in (tmp_path / "pids").read_text().split()]
    wait_until(lambda: all(map(is_gone, pids)), 2)
