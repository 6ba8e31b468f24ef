"""WorkerPool: how calls run and end. Each test states one rule; the processes are real."""

import os
import signal
import socket
import time

import pytest
from msgspec.structs import replace
from pool_lab import Lab, task

from dtq.workers.backend import Finished, Logged, Progressed, Returned, Started, WorkerChanged
from dtq.workers.wire import Source


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


def make_fast(lab, type="echo", prefetch=256):
    """Run calls of the type until the pool has learned that they take microseconds."""
    while capacity(lab, type)[-1] < prefetch:
        lab.run(task(type, 0))


def capacity(lab, type):
    return [n for n, types in lab.pool.capacity() if type in types]


def error(report):
    assert isinstance(report, Finished), report
    return report.error.type if report.error else None


# --- reports ----------------------------------------------------------------------------------------------------------


def test_a_call_is_reported_as_started_and_as_finished_with_its_result(lab):
    call = task(payload={"n": [1, 2.5, None, "x"]})
    (end,) = lab.run(call)
    (start,) = lab.of(Started)
    assert start.task is call
    assert (end.result, end.error, end.worker) == ({"n": [1, 2.5, None, "x"]}, None, "w1")
    assert start.at <= end.started_at <= time.time()


def test_progress_and_log_arrive_before_the_result(lab):
    (end,) = lab.run(task("talk"))
    assert lab.of(Progressed)[0].percent == 50
    assert lab.of(Logged)[0].text == "printed\n"
    assert lab.reports[-1] is end
    assert (end.result, end.log) == ("done", "printed\n")


def test_every_task_comes_back_exactly_once(two):
    tasks = [task(payload=n) for n in range(1000)]
    ends = two.run(*tasks)
    assert [end.result for end in ends] == list(range(1000))
    assert len(two.of(Finished)) == 1000
    assert two.pool.outstanding() == 0


def test_one_worker_runs_its_calls_in_order(lab):
    tasks = [task(payload=n) for n in range(500)]
    lab.run(*tasks)
    assert [r.task for r in lab.of(Finished)] == tasks


def test_a_result_over_the_limit_is_a_final_error():
    with Lab(max_result=100) as lab:
        (end,) = lab.run(task("large", 101))
        assert (error(end), end.final) == ("ResultError", True)


def test_a_type_without_handler_fails_and_harms_no_other_task(lab):
    (end, other) = lab.run(task("nonsense"), task(payload=1))
    assert error(end) == "HandlerError"
    assert other.result == 1


def test_a_changed_handler_is_used_from_the_next_call(lab, tmp_path):
    file = tmp_path / "handler.py"
    results = []
    for answer in (1, 2):
        file.write_text(f"def execute(payload, context): return {answer}")
        lab.pool.define("answer", Source("path", str(file)))
        results += [end.result for end in lab.run(task("answer"))]
    assert results == [1, 2]


def test_calls_are_spread_evenly_over_the_workers(two):
    tasks = [task("who") for _ in range(100)]
    names = [end.result["name"] for end in two.run(*tasks)]
    assert names.count("w1") == 50


def test_single_calls_go_to_the_workers_in_turn(two):
    names = [two.run(task("who"))[0].worker for _ in range(6)]
    assert sorted(names) == ["w1"] * 3 + ["w2"] * 3


# --- capacity ---------------------------------------------------------------------------------------------------------


def test_the_capacity_for_an_unknown_type_is_one_call_for_each_worker(two):
    assert capacity(two, "sleep") == [2]


def test_a_worker_with_a_slow_call_has_no_capacity(lab):
    lab.pool.dispatch([task("sleep", 60)])
    assert capacity(lab, "echo") == []


def test_the_capacity_for_a_fast_type_is_large_and_leaves_room_for_a_slow_call(lab):
    make_fast(lab)
    assert capacity(lab, "echo") == [1, 256]
    assert capacity(lab, "sleep") == [1]
    lab.pool.dispatch([task() for _ in range(200)])
    assert capacity(lab, "echo") == [1, 56]
    lab.pool.dispatch([task("sleep", 60)])
    assert capacity(lab, "echo") == []


def test_a_capacity_step_counts_the_calls_dispatched_since_the_previous_one(lab):
    make_fast(lab)
    steps = lab.pool.capacity()
    assert next(steps)[0] == 1
    lab.pool.dispatch([task() for _ in range(100)])
    assert next(steps)[0] == 156


def test_calls_beyond_the_capacity_are_accepted(lab):
    ends = lab.run(*[task("sleep", 0.0) for _ in range(300)])
    assert all(isinstance(end, Finished) for end in ends)


def test_a_starting_worker_gets_calls_if_there_is_no_other():
    with Lab(start=False) as lab:
        lab.pool.start()
        assert lab.run(task(payload=5))[0].result == 5


def test_the_capacity_for_an_async_type_is_its_concurrency_for_each_worker(two):
    assert capacity(two, "nap") == [16]
    two.pool.dispatch([task("sleep", 60)])
    assert capacity(two, "nap") == [16]


# --- neighbours -------------------------------------------------------------------------------------------------------


def test_calls_behind_a_call_that_turns_out_to_be_long_are_returned(lab):
    make_fast(lab, "sleep", 64)
    sleeper, *others = tasks = [task("sleep", 60), *(task("sleep", 0) for _ in range(20))]
    lab.pool.dispatch(tasks)
    began = time.monotonic()
    assert all(isinstance(end, Returned) for end in lab.ends(*others))
    assert 0.04 < time.monotonic() - began < 0.5
    assert capacity(lab, "sleep") == []
    assert [w.task_id for w in lab.pool.workers()] == [sleeper.id]


def test_recall_returns_all_calls_that_have_not_started(lab):
    running, *others = tasks = [task("sleep", 60), *(task() for _ in range(200))]
    lab.pool.dispatch(tasks)
    lab.started(running)
    lab.pool.recall()
    assert all(isinstance(end, Returned) for end in lab.ends(*others))
    assert lab.pool.outstanding() == 1


def test_async_calls_run_side_by_side_and_beside_a_sync_call(lab):
    lab.run(task("nap", 0))
    lab.pool.dispatch([task("sleep", 60)])
    began = time.monotonic()
    lab.run(*[task("nap", 0.2) for _ in range(8)])
    assert time.monotonic() - began < 1


def test_no_more_async_calls_run_at_once_than_their_concurrency_allows():
    with Lab(concurrency=3) as lab:
        tasks = [task("nap", 60) for _ in range(5)]
        lab.pool.dispatch(tasks)
        lab.started(tasks[2])
        lab.pool.recall()
        assert all(isinstance(end, Returned) for end in lab.ends(*tasks[3:]))
        assert len(lab.of(Started)) == 3


def test_an_async_handler_that_is_not_loaded_does_not_wait_behind_a_long_call(lab):
    long = task("sleep", 60)
    lab.pool.dispatch([long])
    lab.started(long)
    time.sleep(0.06)
    assert capacity(lab, "nap") == []


# --- timeouts ---------------------------------------------------------------------------------------------------------


def test_a_call_is_interrupted_at_its_timeout_and_its_worker_goes_on(lab):
    (before,) = lab.pids()
    began = time.monotonic()
    (end,) = lab.run(task("sleep", 60, timeout=0.1))
    assert error(end) == "Timeout"
    assert 0.1 <= time.monotonic() - began < 0.4
    assert lab.run(task("who"))[0].result["pid"] == before


def test_an_async_call_is_interrupted_at_its_timeout(lab):
    ends = lab.run(task("nap", 60, timeout=0.1), task("nap", 0.2))
    assert [error(end) for end in ends] == ["Timeout", None]


def test_a_timeout_never_interrupts_the_next_call(lab):
    """Calls that end at about their timeout, each followed at once by another call."""
    tasks = [task("sleep", 0.001 * (n % 3) + 0.0095, timeout=0.01) if n % 2 else task() for n in range(100)]
    ends = lab.run(*tasks)
    assert {error(end) for end in ends[1::2]} <= {None, "Timeout"}
    assert {error(end) for end in ends[::2]} == {None}


def test_the_timer_of_an_earlier_call_makes_a_timeout_neither_late_nor_early(lab):
    lab.run(task(timeout=60))
    (end,) = lab.run(task("sleep", 60, timeout=0.1))
    assert (error(end), round(end.seconds)) == ("Timeout", 0)
    lab.run(task(timeout=0.1))
    (end,) = lab.run(task("sleep", 60, timeout=0.4))
    assert error(end) == "Timeout"
    assert end.seconds >= 0.4


@pytest.mark.parametrize("type", ["stubborn", "hold_interpreter", "nap_through"])
def test_a_call_that_does_not_stop_is_killed_a_grace_after_its_timeout(type):
    with Lab(grace=0.1) as lab:
        stuck, waiting = task(type, timeout=0.2), task()
        lab.run(task())
        began = time.monotonic()
        end, other = lab.run(stuck, waiting)
        assert error(end) == "Timeout"
        assert 0.3 <= time.monotonic() - began < 0.8
        assert isinstance(other, Returned | Finished)
        lab.ready(1)


def test_a_suspended_process_is_killed_at_its_timeout():
    with Lab(grace=0.1) as lab:
        assert error(lab.run(task("signal_self", signal.SIGSTOP, timeout=0.2))[0]) == "Timeout"


def test_calls_beside_a_killed_call_are_returned():
    with Lab(grace=0.1) as lab:
        culprit, neighbour = task("nap_through", timeout=0.2), task("nap", 60)
        assert [type(r) for r in lab.run(culprit, neighbour)] == [Finished, Returned]
        assert lab.of(Started, task=neighbour)


def test_a_handler_has_more_time_to_load_than_to_run(lab, tmp_path):
    file = tmp_path / "handler.py"
    file.write_text("import time; time.sleep(0.3)\ndef execute(payload, context): return 'loaded'")
    lab.pool.define("slow_to_load", Source("path", str(file)))
    assert lab.run(task("slow_to_load", timeout=0.05))[0].result == "loaded"


def test_an_interrupt_leaves_no_half_message():
    with Lab(grace=5) as lab:
        (pid,) = lab.pids()
        for _ in range(20):
            assert error(lab.run(task("chatter", timeout=0.02))[0]) == "Timeout"
        assert lab.pids() == [pid]


# --- stop -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("type", ["sleep", "nap"])
def test_a_running_call_is_stopped(lab, type):
    lab.run(task(type, 0))
    call = task(type, 60)
    lab.pool.dispatch([call])
    lab.started(call)
    lab.pool.stop(call)
    assert error(lab.ends(call)[0]) == "Cancelled"
    assert lab.run(task(payload=1))[0].worker == "w1"
    assert len(lab.of(Finished, task=call)) == 1


@pytest.mark.parametrize("type", ["stubborn", "hold_interpreter", "nap_through"])
def test_a_call_that_ignores_the_stop_is_killed(type):
    with Lab(grace=0.1) as lab:
        call = task(type)
        lab.pool.dispatch([call])
        lab.until(lambda: lab.of(Progressed))
        lab.pool.stop(call)
        assert error(lab.ends(call)[0]) == "Cancelled"


def test_an_async_call_that_is_stopped_while_its_handler_is_loaded_does_not_run(lab):
    call = task("nap", 60)
    lab.pool.dispatch([call])
    lab.started(call)
    lab.pool.stop(call)
    (end,) = lab.ends(call)
    assert isinstance(end, Returned) or error(end) == "Cancelled"
    assert not lab.of(WorkerChanged, state="exited")


def test_a_waiting_call_that_is_stopped_is_returned_and_the_others_keep_their_order(lab):
    tasks = [task("sleep", 0.03), task(payload=1), task(payload=2), task(payload=3)]
    lab.pool.dispatch(tasks)
    lab.pool.stop(tasks[2])
    ends = lab.ends(*tasks)
    assert [type(end) for end in ends] == [Finished, Finished, Returned, Finished]
    assert [r.task for r in lab.of(Finished)] == [tasks[0], tasks[1], tasks[3]]


def test_stopping_a_call_at_any_moment_harms_no_other_call(lab):
    for pause in (0, 0.0001, 0.0003, 0.001) * 10:
        call, other = task("sleep", 0.0005), task(payload=7)
        lab.pool.dispatch([call, other])
        time.sleep(pause)
        lab.pool.stop(call)
        end, next_end = lab.ends(call, other)
        assert isinstance(end, Returned) or error(end) in ("Cancelled", None)
        assert next_end.result == 7


def test_a_waiting_async_call_that_is_stopped_is_returned():
    with Lab(concurrency=2) as lab:
        tasks = [task("nap", 60) for _ in range(3)]
        lab.pool.dispatch(tasks)
        lab.started(tasks[1])
        lab.pool.stop(tasks[2])
        assert isinstance(lab.ends(tasks[2])[0], Returned)


def test_stopping_an_attempt_does_not_stop_another_attempt_of_the_task(lab):
    new = task("sleep", 0.1)
    lab.pool.dispatch([new])
    lab.started(new)
    lab.pool.stop(replace(new, version=new.version - 1))  # compare versions: a retry by hand resets `attempts`
    assert error(lab.ends(new)[0]) is None


def test_stopping_an_unknown_task_does_nothing(lab):
    lab.pool.stop(task())
    assert lab.run(task(payload=1))[0].result == 1


# --- the pool never blocks --------------------------------------------------------------------------------------------


def test_a_worker_that_reads_nothing_does_not_block_the_pool():
    with Lab(2, grace=0.1) as lab:
        stuck = task("hold_interpreter", timeout=0.5)
        lab.pool.dispatch([stuck])
        lab.until(lambda: lab.of(Progressed))
        began = time.monotonic()
        lab.pool.dispatch([task(payload="x" * 2**20) for _ in range(8)])
        lab.pool.poll()
        assert time.monotonic() - began < 0.2
        assert error(lab.ends(stuck)[0]) == "Timeout"


def test_a_worker_suspended_while_it_sends_a_result_is_killed_at_its_timeout():
    with Lab(grace=0.1) as lab:
        call = task("large", 2**20 - 2, timeout=0.5)
        lab.pool.dispatch([call])
        time.sleep(0.2)  # the socket buffer is smaller than the result, so the worker is still sending
        (pid,) = lab.pids()
        os.kill(pid, signal.SIGSTOP)
        assert error(lab.ends(call)[0]) == "Timeout"


def test_an_idle_pool_has_no_deadline(lab):
    lab.run(task())
    assert lab.pool.deadline() is None
    assert lab.pool.poll() == []


def test_wake_ends_the_current_wait_or_the_next_one(lab):
    for _ in range(3):
        for _ in range(1000):
            lab.pool.wake()
        began = time.monotonic()
        lab.pool.wait(5)
        lab.pool.poll()
        assert time.monotonic() - began < 1
    lab.pool.wait(0.01)


def test_a_readable_watched_descriptor_ends_a_wait(lab):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        lab.pool.watch(ours.fileno())
        theirs.send(b"!")
        began = time.monotonic()
        lab.pool.wait(5)
        assert time.monotonic() - began < 1
        lab.pool.poll()
        assert ours.recv(1) == b"!"
