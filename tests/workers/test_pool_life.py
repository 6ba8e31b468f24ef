"""WorkerPool: how workers start, die and are replaced, and what they leave behind. Processes and kills are real."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
import servers
from pool_lab import Lab, descriptors, is_gone, task, wait_until

from dtq.workers.backend import Finished, Returned, Started, WorkerChanged
from dtq.workers.process.pool import WorkerPool
from dtq.workers.wire import Source


@pytest.fixture(scope="module", autouse=True)
def _no_other_children():
    """End other children: these tests count the processes below this one."""
    servers.end_all()


@pytest.fixture(autouse=True)
def _larger_frames_for_a_busy_machine(monkeypatch):
    monkeypatch.setattr("dtq.workers.process.prefetch.FRAME", 0.05)


@pytest.fixture
def lab():
    with Lab() as lab:
        yield lab


@pytest.fixture
def two():
    with Lab(2) as lab:
        yield lab


def changes(lab, state, **fields):
    return lab.of(WorkerChanged, state=state, **fields)


# --- start ------------------------------------------------------------------------------------------------------------


def test_workers_report_their_start_and_that_they_are_ready(two):
    for state in ("started", "ready"):
        assert sorted(r.worker for r in changes(two, state)) == ["w1", "w2"]
    assert sorted(r.pid for r in changes(two, "ready")) == sorted(two.pids())


def test_a_worker_has_a_session_of_its_own_and_inherits_nothing_else(two):
    ends = two.run(task("surroundings"), task("surroundings"))
    for own in (end.result for end in ends):
        assert own["pid"] == own["session"] == own["group"] != own["parent"] != os.getpid()
        assert own["sigint"]
        assert own["sigterm"]
        assert own["thread"]
        assert own["blocked"] == []
        assert len(own["descriptors"]) == 4, "three standard descriptors and its own socket"
        assert own["stdin"] == "/dev/null"
        assert "pytest" not in str(own["main"])
        assert [os.path.abspath(entry) for entry in sys.path] == own["path"]


def test_a_type_defined_later_reaches_current_and_future_workers(lab, tmp_path):
    file = tmp_path / "handler.py"
    file.write_text("def execute(payload, context): return 'late'")
    lab.pool.define("late", Source("path", str(file)))
    lab.pool.resize(2)
    lab.ready(2)
    assert {(end.worker, end.result) for end in lab.run(task("late"), task("late"))} == {("w1", "late"), ("w2", "late")}


# --- crashes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
def test_a_worker_that_dies_fails_its_running_call_and_returns_the_waiting_ones(lab, number):
    tasks = [task("signal_self", int(number)), *(task() for _ in range(50))]
    end, *others = lab.run(*tasks)
    assert end.error.type == "WorkerDied"
    assert end.error.message == f"the worker process died of {number.name} while it ran this task"
    assert end.error.signal == number
    assert all(isinstance(other, Returned) for other in others)
    assert changes(lab, "exited", worker="w1", signal=int(number))


@pytest.mark.parametrize("code", [0, 3])
def test_a_handler_that_exits_the_process_fails_with_the_exit_code(lab, code):
    (end,) = lab.run(task("leave", code))
    assert (end.error.type, end.error.exit_code) == ("WorkerDied", code)


def test_calls_that_ended_before_a_crash_keep_their_results(lab):
    ends = lab.run(*[task(payload=n) for n in range(100)], task("signal_self", 9))
    assert [end.result for end in ends[:100]] == list(range(100))


def test_the_death_of_a_worker_fails_all_its_running_async_calls(lab):
    naps = [task("nap", 60) for _ in range(3)]
    lab.pool.dispatch(naps)
    lab.started(naps[-1])
    os.kill(lab.pids()[0], signal.SIGKILL)
    assert [end.error.type for end in lab.ends(*naps)] == ["WorkerDied"] * 3


def test_a_worker_that_died_is_replaced_under_the_same_name_within_a_second(two):
    before = two.pids()
    began = time.monotonic()
    two.run(task("signal_self", 9))
    two.ready(2)
    assert time.monotonic() - began < 1
    assert sorted(worker.id for worker in two.pool.workers()) == ["w1", "w2"]
    assert len(set(two.pids()) & set(before)) == 1


def test_a_module_that_kills_its_worker_at_import_fails_its_task(lab, tmp_path):
    file = tmp_path / "handler.py"
    file.write_text("import os; os.abort()")
    lab.pool.define("poison", Source("path", str(file)))
    (end,) = lab.run(task("poison"))
    assert end.error.signal == signal.SIGABRT
    lab.ready(1)


def test_processes_of_a_handler_die_with_its_worker(lab):
    (end,) = lab.run(task("grandchild", "die"))
    (text,) = [r.text for r in lab.reports if hasattr(r, "text")]
    wait_until(lambda: is_gone(int(text)))
    assert end.error.exit_code == 3


def test_a_forked_child_cannot_send_messages_for_its_worker(lab):
    assert [lab.run(task("fork_and_return"))[0].result for _ in range(3)] == [False] * 3
    assert lab.run(task(payload=1))[0].result == 1


def test_a_worker_that_sends_invalid_frames_is_killed_and_its_call_fails(lab, tmp_path):
    file = tmp_path / "handler.py"
    file.write_text("""
import contextlib, os, time
def execute(payload, context):
    for fd in range(3, 99):
        with contextlib.suppress(OSError):
            os.write(fd, b"\\0\\0\\0\\1?")
    time.sleep(60)
""")
    lab.pool.define("vandal", Source("path", str(file)))
    (end,) = lab.run(task("vandal"))
    assert end.error.type == "WorkerDied"


def test_a_worker_that_closes_its_socket_dies_and_its_call_fails(lab, tmp_path):
    file = tmp_path / "handler.py"
    file.write_text("import os\ndef execute(payload, context): os.closerange(3, 99)")
    lab.pool.define("closer", Source("path", str(file)))
    (end,) = lab.run(task("closer"))
    assert end.error.type == "WorkerDied"


def test_workers_that_cannot_start_are_retried_with_doubling_pauses(monkeypatch):
    monkeypatch.setattr("dtq.workers.process.supervisor.BOOT", "raise SystemExit")
    with Lab(start=False) as lab:
        lab.pool.start()
        began = time.monotonic()
        lab.until(lambda: len(changes(lab, "exited")) == 4)
        assert 0.7 <= time.monotonic() - began < 3  # 0.1 + 0.2 + 0.4
        monkeypatch.undo()
        lab.ready(1)


def test_workers_die_with_the_zygote_and_are_replaced(two):
    running, before = task("hold_interpreter"), two.pids()
    two.pool.dispatch([running])
    two.started(running)
    os.kill(two.zygote(), signal.SIGKILL)
    assert two.ends(running)[0].error.type == "WorkerDied"
    two.ready(2)
    assert set(two.pids()).isdisjoint(before)
    wait_until(lambda: all(map(is_gone, before)), 1)


def test_a_call_is_killed_even_if_the_zygote_hangs(monkeypatch):
    monkeypatch.setattr("dtq.workers.process.supervisor.GONE_WITHIN", 0.2)
    with Lab(grace=0.1) as lab:
        (before,) = lab.pids()
        zygote = lab.zygote()
        os.kill(zygote, signal.SIGSTOP)
        (end,) = lab.run(task("stubborn", timeout=0.1))
        assert end.error.type == "Timeout"
        wait_until(lambda: is_gone(before))
        os.kill(zygote, signal.SIGCONT)
        lab.ready(1)


@pytest.mark.parametrize("victim", ["idle", "hold_interpreter", "stubborn", "grandchild"])
def test_killing_the_process_of_the_pool_leaves_no_process_behind(victim):
    code = f"""
import sys; sys.path[:] = {sys.path!r}
from pool_lab import Lab, task
lab = Lab(2)
call = task({victim!r} if {victim!r} != "idle" else "echo", "stay")
lab.pool.dispatch([call])
lab.started(call)
print(lab.zygote(), *lab.pids(), flush=True)
while True: lab.pool.wait(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        pids = [int(pid) for pid in process.stdout.readline().split()]
        if victim == "grandchild":
            wait_until(lambda: psutil.Process(pids[0]).children(recursive=True)[2:])
            pids = [pids[0], *(child.pid for child in psutil.Process(pids[0]).children(recursive=True))]
        assert len(pids) >= 3
        process.kill()
        wait_until(lambda: all(map(is_gone, pids)), 1)


# --- size -------------------------------------------------------------------------------------------------------------


def test_a_worker_is_replaced_after_its_maximum_of_tasks():
    with Lab(max_tasks_per_worker=10) as lab:
        pids = []
        for _ in range(30):
            lab.until(lambda: list(lab.pool.capacity()))
            pids += [end.result["pid"] for end in lab.run(task("who"))]
        assert [pids.count(pid) for pid in dict.fromkeys(pids)] == [10, 10, 10]
        assert {r.exit_code for r in changes(lab, "exited")} == {0}


def test_the_capacity_never_exceeds_what_workers_may_still_take():
    with Lab(max_tasks_per_worker=500) as lab:
        while [n for n, types in lab.pool.capacity() if "echo" in types] != [1, 256]:
            lab.run(task())
        given = 500 - sum(worker.done for worker in lab.pool.workers())
        lab.run(*[task() for _ in range(given - 5)])
        assert all(n <= 5 for n, _ in lab.pool.capacity())


def test_a_pool_grows_at_once(lab):
    lab.pool.resize(3)
    lab.ready(3)
    assert sorted(worker.id for worker in lab.pool.workers()) == ["w1", "w2", "w3"]


def test_shrinking_retires_idle_workers_first_and_lets_busy_ones_finish(two):
    long, other = task("sleep", 0.3), task("sleep", 0.3)
    two.pool.dispatch([long])
    two.started(long)
    two.pool.resize(1)
    (left,) = two.until(lambda: len(two.pool.workers()) == 1 and two.pool.workers())
    assert left.task_id == long.id
    two.pool.resize(0)
    assert two.ends(long)[0].error is None
    two.until(lambda: not two.pool.workers())
    two.pool.resize(2)
    two.ready(2)
    assert two.run(other)[0].error is None


def test_a_pool_without_workers_returns_every_task():
    with Lab(0) as lab:
        assert isinstance(lab.run(task())[0], Returned)


# --- the end ----------------------------------------------------------------------------------------------------------


def test_close_lets_running_calls_finish_and_returns_the_rest(lab):
    running, waiting = task("sleep", 0.2), task()
    lab.pool.dispatch([running, waiting])
    lab.started(running)
    lab.pool.close()
    lab.reports += lab.pool.poll()
    assert [type(end) for end in lab.ends(running, waiting)] == [Finished, Returned]
    assert changes(lab, "exited", exit_code=0)


@pytest.mark.parametrize(("type", "seconds"), [("stubborn", 1.0), ("hold_interpreter", 1.0), ("nap", 0.5)])
def test_close_with_kill_interrupts_calls_waits_for_the_grace_and_returns_them(lab, type, seconds):
    call = task(type, 60)
    lab.pool.dispatch([call])
    lab.until(lambda: lab.of(Started))
    began = time.monotonic()
    lab.pool.close(kill=True)
    assert time.monotonic() - began < seconds
    lab.reports += lab.pool.poll()
    assert isinstance(lab.ends(call)[0], Returned)


def test_close_kills_calls_that_do_not_end_in_time(monkeypatch):
    monkeypatch.setattr("dtq.workers.process.pool.CLOSE_WITHIN", 0.2)
    with Lab() as lab:
        lab.pool.dispatch([task("stubborn")])
        lab.pool.close()
        assert lab.pool.workers() == []


def test_teardown_runs_when_a_worker_retires(lab, tmp_path):
    file, trace = tmp_path / "handler.py", tmp_path / "trace"
    file.write_text(f"def execute(payload, context): pass\ndef teardown(): open({str(trace)!r}, 'w').close()")
    lab.pool.define("tidy", Source("path", str(file)))
    lab.run(task("tidy"))
    lab.pool.close()
    assert trace.exists()


@pytest.mark.parametrize("kill", [False, True])
def test_close_leaves_no_process_thread_or_descriptor(kill):
    before, me = descriptors(), psutil.Process()
    threads = me.num_threads()
    lab = Lab(2)
    family = me.children(recursive=True)
    assert len(family) == 3
    lab.run(task("grandchild"), task("signal_self", 9), task("nap", 0))
    family += me.children(recursive=True)
    lab.pool.close(kill)
    assert descriptors() == before
    assert me.num_threads() == threads
    assert me.children(recursive=True) == []
    wait_until(lambda: all(is_gone(process.pid) for process in family))


def test_a_pool_that_was_never_started_can_be_closed():
    before = descriptors()
    WorkerPool().close()
    assert descriptors() == before


def test_methods_after_close_are_harmless(lab):
    lab.pool.close()
    lab.pool.close()
    lab.pool.wake()
    lab.pool.wait(5)
    assert isinstance(lab.run(task())[0], Returned)


def test_a_worker_that_never_starts_a_call_is_replaced_and_its_calls_are_returned(monkeypatch):
    monkeypatch.setattr("dtq.workers.process.process.ANSWERS_WITHIN", 0.2)
    with Lab() as lab:
        (before,) = lab.pids()
        os.kill(before, signal.SIGSTOP)
        assert [type(end) for end in lab.run(task(), task())] == [Returned, Returned]
        lab.ready(1)
        assert lab.pids() != [before]
