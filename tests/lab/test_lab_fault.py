"""The fault lab: after each fault all tasks end as the delivery contract says, and what was done can be done again."""

from __future__ import annotations

import collections
import importlib
import signal
import time

import psutil
import pytest

from dtq import DTQError, StoreError, TaskQueue, lab
from dtq.lab import Clock, FaultyStore
from dtq.lab.fault import Fault
from dtq.lab.fault import fault as lab_fault
from dtq.stores.memory.store import MemoryStore
from dtq.task.model import Task
from dtq.testing import conformance

WAIT = 30.0
HANDLERS = {"note": "queue_handlers:note", "sleep": "queue_handlers:sleep_if_asked"}


@pytest.fixture
def here():
    chapter = lab.start(0)
    yield chapter
    lab.hygiene._watches and lab.hygiene._watches.pop().end()


class Bench:
    """A queue that can be broken, the lab that breaks it, and the witness: a log that the handlers write."""

    def __init__(self, path, **options):
        self.store = FaultyStore(path / "q.db")
        self.queue = TaskQueue(self.store, HANDLERS, pool_size=2, clock=Clock(), **options).start()
        self.fault = lab_fault(self.queue, seed=1)
        self.log = path / "log"
        self.log.touch()

    def add(self, n, seconds=0.01, **options):
        payload = {"log": str(self.log), "seconds": seconds}
        options = {"max_attempts": 10, "retry_delay": 0, "timeout": WAIT} | options
        return self.queue.add_many({"type": "note", "payload": payload | {"n": i}, **options} for i in range(n))

    def wait_for_a_run(self):
        """The worker that is within a call: it has loaded the handler, which has written its line."""
        found = []
        wait_until(lambda: found.extend(w.id for w in self.queue.workers() if w.task_id in self.runs()) or found)
        return found[0]

    def wait_for_idle_workers(self):
        wait_until(lambda: [worker.state for worker in self.queue.workers()] == ["idle", "idle"])

    def runs(self):
        """How often each task has run."""
        return collections.Counter(line.split()[0] for line in self.log.read_text().splitlines())

    def require_all(self, handles):
        """At least once, nothing lost: each task is in the store, has completed, and has run."""
        self.queue.join(WAIT)
        tasks = [handle.task for handle in handles]
        assert [(task.status, task.result) for task in tasks] == [("completed", i) for i in range(len(tasks))]
        assert set(self.runs()) == {handle.id for handle in handles}
        return tasks

    def close(self):
        self.queue.shutdown(force=True)
        self.store.close()


@pytest.fixture
def bench(here):
    made = Bench(here.path)
    yield made
    made.close()
    lab.assert_clean()


def wait_until(condition, seconds=WAIT):
    give_up_at = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up_at, "it did not come to be"
        time.sleep(0.005)


# --- workers ---


def test_kills_cost_attempts_and_lose_nothing(bench):
    handles = bench.add(100)
    for _ in range(4):
        bench.wait_for_a_run()
        bench.fault.kill()
    tasks = bench.require_all(handles)
    deaths = [attempt for task in tasks for attempt in task.history]
    assert {(death.error.type, death.error.signal) for death in deaths} == {("WorkerDied", signal.SIGKILL)}
    assert [kind for _, kind, _ in bench.fault.log] == ["kill"] * 4


def test_a_frozen_worker_stands_still_until_it_thaws(bench):
    (handle,) = bench.add(1, seconds=0.3)
    bench.wait_for_a_run()
    victim = bench.fault.freeze()
    (worker,) = (worker for worker in bench.queue.workers() if worker.id == victim)
    wait_until(lambda: psutil.Process(worker.pid).status() == psutil.STATUS_STOPPED)
    with pytest.raises(TimeoutError):
        handle.result(0.4)
    bench.fault.thaw()
    (task,) = bench.require_all([handle])
    assert task.attempts == 1
    assert [kind for _, kind, *_ in bench.fault.log] == ["freeze", "thaw"]


def test_a_worker_that_stays_frozen_is_replaced_when_its_task_is_overdue(bench):
    handles = bench.add(6, seconds=0.3, timeout=0.6)
    bench.fault.freeze(bench.wait_for_a_run())
    tasks = bench.require_all(handles)
    assert [attempt.error.type for task in tasks for attempt in task.history] == ["Timeout"]
    bench.fault.thaw()  # whom it froze is gone by now


def test_a_worker_can_be_named(bench):
    assert bench.fault.kill("w2") == "w2"
    assert bench.fault.freeze("w1") == "w1"
    bench.fault.thaw()


def test_a_worker_that_is_not_there_is_not_hit(bench, monkeypatch):
    monkeypatch.setattr(importlib.import_module("dtq.lab.fault"), "WORKER_TIMEOUT", 0.1)
    with pytest.raises(DTQError, match=r"no worker w7 that kill could hit .*; workers: w1, w2"):
        bench.fault.kill("w7")
    assert bench.fault.log == []


def test_the_same_seed_hits_the_same_workers(bench):
    def victims(seed):
        fault = Fault(bench.queue, seed)
        return [fault._choose(None).id for _ in range(12)]

    bench.wait_for_idle_workers()
    assert victims(5) == victims(5)
    assert set(victims(5)) == {"w1", "w2"}


@pytest.mark.parametrize("executor", ["thread", "inline"])
def test_threads_of_this_process_are_never_hit(executor):
    with (
        TaskQueue("memory:", HANDLERS, executor=executor) as queue,
        pytest.raises(DTQError, match="threads of this process"),
    ):
        lab_fault(queue).kill()


# --- messages ---


def test_a_lost_answer_to_an_outcome_makes_no_second_run(bench):
    bench.fault.drop_ack("update")
    tasks = bench.require_all(bench.add(20))
    assert bench.store.to_lose == set()
    assert {task.attempts for task in tasks} == {1}
    assert set(bench.runs().values()) == {1}


def test_who_waits_for_a_task_whose_answer_was_lost_is_served(bench):
    bench.fault.drop_ack("update")
    (handle,) = bench.add(1)
    assert handle.result(5) == 0


def test_a_lost_answer_to_an_add_leaves_the_task_there_and_a_key_makes_trying_again_safe(bench):
    bench.fault.drop_ack("add")
    with pytest.raises(StoreError, match="the reply was lost"):
        bench.queue.add("sleep", 0, key="order-7")
    again = bench.queue.add("sleep", 0, key="order-7")
    assert again.result(WAIT) == 0
    assert bench.queue.stats().total == 1


def test_a_lost_answer_to_a_claim_is_healed_by_the_lease(here):
    bench = Bench(here.path, lease=1.0)
    bench.fault.drop_ack("claim")
    tasks = bench.require_all(bench.add(3))
    assert max(task.interruptions for task in tasks) == 1
    assert set(bench.runs().values()) == {1}
    bench.close()
    lab.assert_clean()


def test_a_task_that_is_delivered_twice_runs_twice_and_ends_once(bench):
    ended = []
    bench.queue.on("task:completed", lambda event: ended.append(event.task.id))
    bench.fault.deliver_twice("claim")
    (handle,) = bench.add(1)
    bench.require_all([handle])
    wait_until(lambda: bench.runs()[handle.id] == 2)
    wait_until(lambda: not any(worker.outstanding for worker in bench.queue.workers()))
    bench.queue.shutdown()
    assert ended == [handle.id]


@pytest.mark.parametrize("what", ["add", "update"])
def test_what_is_handed_in_twice_counts_once(bench, what, monkeypatch):
    calls, method = [], getattr(bench.store.store, what)
    monkeypatch.setattr(bench.store.store, what, lambda given: calls.append(given) or method(given))
    bench.fault.deliver_twice(what)
    tasks = bench.require_all(bench.add(20))
    assert calls[0] == calls[1]
    assert {(task.attempts, task.version) for task in tasks} == {(1, 3)}
    assert set(bench.runs().values()) == {1}


# --- disk and time ---


def test_a_slow_disk_slows_writes_down_and_loses_nothing(bench):
    bench.fault.slow_disk(0.2)
    began = time.monotonic()
    handles = bench.add(5)
    assert time.monotonic() - began >= 0.2
    bench.fault.slow_disk(0)
    bench.require_all(handles)


def test_a_full_disk_refuses_tasks_keeps_outcomes_and_goes_on_when_there_is_room(bench):
    handles = bench.add(5, seconds=0.3)
    bench.wait_for_a_run()
    bench.fault.full_disk()
    with pytest.raises(StoreError, match="the disk is full"):
        bench.add(1)
    wait_until(lambda: not any(worker.task_id for worker in bench.queue.workers()))
    assert bench.queue.stats().counts["completed"] == 0
    bench.fault.free_disk()
    tasks = bench.require_all(handles)
    assert {task.attempts for task in tasks} == {1}


@pytest.mark.parametrize("seconds", [3600.0, -3600.0])
def test_a_clock_that_leaps_costs_at_most_one_more_run_and_loses_nothing(bench, seconds):
    handles = bench.add(40)
    bench.wait_for_a_run()
    bench.fault.clock_step(seconds)
    assert bench.queue.clock() == pytest.approx(time.time() + seconds, abs=1)
    tasks = bench.require_all(handles)
    assert {task.attempts for task in tasks} == {1}
    assert max(bench.runs().values()) <= 2


# --- a node ---


@pytest.mark.parametrize(
    ("steps", "ran", "interruptions"), [(("claim", "run"), 1, 1), (("run", "update"), 2, 1), (("update", "ack"), 1, 0)]
)
def test_a_node_that_dies_between_two_steps_costs_at_most_one_more_run(here, steps, ran, interruptions):
    store = FaultyStore(here.path / "q.db")
    queue = TaskQueue(store, HANDLERS, pool_size=1)  # not started yet: the other node takes the task
    log = here.path / "log"
    handle = queue.add("note", {"log": str(log), "n": 7})
    fault = lab_fault(queue)
    fault.crash_between(*steps)
    with queue:
        assert handle.result(WAIT) == 7
        task = handle.task
    store.close()
    assert (len(log.read_text().splitlines()), task.interruptions, task.attempts) == (ran, interruptions, 1)
    assert fault.log[0][1:] == ("crash_between", *steps)
    lab.assert_clean()


def test_handlers_of_a_notebook_go_to_the_node_that_dies(here):
    store = FaultyStore(here.path / "q.db")
    queue = TaskQueue(store, {"shout": lambda payload, context: payload.upper()}, pool_size=1)
    handle = queue.add("shout", "hello")
    lab_fault(queue).crash_between("update", "ack")
    assert handle.task.result == "HELLO"
    queue.close()
    store.close()


def test_a_node_that_finds_nothing_to_die_over_says_so(bench, monkeypatch):
    monkeypatch.setattr(importlib.import_module("dtq.lab.crash"), "TIMEOUT", 0.5)
    with pytest.raises(DTQError, match="found no task within"):
        bench.fault.crash_between("claim", "run")


# --- log, script, buttons ---


def test_a_script_does_its_faults_at_their_times_and_the_log_says_so(bench):
    bench.wait_for_idle_workers()
    handles = bench.add(60)
    bench.fault.play([(0.2, "kill", "w1"), (0.0, "freeze", "w2"), (0.4, "thaw")]).wait(WAIT)
    bench.require_all(handles)
    assert [what for _, *what in bench.fault.log] == [["freeze", "w2"], ["kill", "w1"], ["thaw"]]
    times = [seconds for seconds, *_ in bench.fault.log]
    assert times == pytest.approx([times[0], times[0] + 0.2, times[0] + 0.4], abs=0.15)
    (first, *_) = bench.fault.marks()
    assert first == (times[0], "freeze w2")
    assert bench.fault.marks(since=bench.fault.began - 10)[0][0] == pytest.approx(times[0] + 10)


def test_a_log_can_be_played_again(bench):
    bench.fault.kill()
    bench.fault.slow_disk(0.01)
    bench.fault.clock_step(5.0)
    again = lab_fault(bench.queue, seed=2)
    again.play(bench.fault.log).wait(WAIT)
    assert [what for _, *what in again.log] == [what for _, *what in bench.fault.log]
    bench.require_all(bench.add(5))


def test_what_goes_wrong_in_a_script_is_told_to_whoever_waits(bench):
    with pytest.raises(DTQError, match="the fault is 'explode'; allowed: 'kill', 'freeze'"):
        bench.fault.play([(0, "explode")])
    with pytest.raises(DTQError, match="of is 'heartbeat'; allowed: 'add', 'claim', 'update'"):
        bench.fault.play([(0, "drop_ack", "heartbeat")]).wait(WAIT)
    with pytest.raises(TimeoutError, match=r"its last fault is due at 0.3 s"):
        (playing := bench.fault.play([(0.3, "thaw")])).wait(0.01)
    playing.wait(WAIT)


def buttons_of(fault, monkeypatch):
    shown, made = [], []
    module = importlib.import_module("dtq.lab.fault")
    monkeypatch.setattr(module, "display", lambda data, **options: shown.append(data))
    box = module.widgets.HBox
    monkeypatch.setattr(module.widgets, "HBox", lambda children, **options: made.append(children) or box(children))
    fault.buttons()
    return {button.description: button for button in made[0]}, shown[0]


def test_each_button_does_its_fault_and_writes_it_down(bench, monkeypatch):
    buttons, shown = buttons_of(bench.fault, monkeypatch)
    assert "Kill a worker, Freeze a worker, Thaw" in shown["text/html"]
    while len([worker for worker in bench.queue.workers() if worker.pid]) < 2:
        time.sleep(0.01)
    for button in buttons.values():
        button.click()
    kinds = [kind for _, kind, *_ in bench.fault.log]
    assert kinds == [
        "kill", "freeze", "thaw", "drop_ack", "deliver_twice", "slow_disk", "slow_disk", "full_disk", "free_disk",
        "clock_step",
    ]  # fmt: skip
    bench.require_all(bench.add(5))


def test_a_queue_shows_only_the_buttons_that_it_was_made_for(here, monkeypatch):
    with TaskQueue(here.path / "q.db", HANDLERS, pool_size=1) as queue:
        fault = lab_fault(queue)
        buttons, _ = buttons_of(fault, monkeypatch)
        assert list(buttons) == ["Kill a worker", "Freeze a worker", "Thaw"]
        with pytest.raises(DTQError, match=r"allowed: a FaultyStore, as in TaskQueue\(lab.FaultyStore"):
            fault.full_disk()
        with pytest.raises(DTQError, match="allowed: a Clock"):
            fault.clock_step(1)


# --- seams ---


def test_a_faulty_store_that_was_told_nothing_keeps_every_promise():
    results = conformance.run(lambda: FaultyStore(MemoryStore()))
    assert [result for result in results if result.status == "failed"] == []


def test_only_an_answer_that_says_something_can_be_lost():
    store = FaultyStore(MemoryStore())
    store.to_lose.add("claim")
    assert store.claim("w1", 1, 30, 1000, {"job"}) == []
    store.add([Task(id="a", type="job")])
    with pytest.raises(StoreError, match="the reply was lost"):
        store.claim("w1", 1, 30, 1000, {"job"})
    assert [task.worker for task in store.get(["a"])] == ["w1"]
    store.close()


def test_a_clock_is_wrong_by_what_it_is_told():
    clock = Clock()
    assert abs(clock() - time.time()) < 1
    clock.offset -= 100
    assert abs(clock() + 100 - time.time()) < 1


def test_a_button_never_blocks_and_is_grey_when_the_queue_has_ended(bench, monkeypatch):
    buttons, _ = buttons_of(bench.fault, monkeypatch)
    began = time.monotonic()
    assert "no worker w9" in bench.fault.press("kill", "w9")
    assert time.monotonic() - began < 2
    assert not any(button.disabled for button in buttons.values())
    bench.queue.shutdown()
    logged = list(bench.fault.log)
    buttons["Kill a worker"].click()
    assert buttons["Kill a worker"].disabled
    assert bench.fault.log == logged


def test_healing_ends_the_faults_that_last(bench):
    bench.fault.full_disk()
    bench.fault.freeze()
    bench.fault.heal()
    bench.require_all(bench.add(5))
