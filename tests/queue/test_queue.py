"""TaskQueue: the loop, its workers, and everything that a user does with them, with every executor where it matters."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path

import pytest

from dtq import Pool, QueueManager, TaskQueue
from dtq.errors import DTQError, HandlerError, TaskCancelled, TaskFailed, UnknownType
from dtq.stores.memory.store import MemoryStore
from dtq.task.model import Status

FILE = Path(__file__).parents[1].joinpath("queue_handlers.py")
NAMES = [
    "nothing", "note", "fail", "spin", "wait", "sleep_if_asked", "die", "leave", "talk", "too_much", "no_json",
    "hold_the_interpreter", "ignore_signals", "swallow",
]  # fmt: skip
HANDLERS = {"echo": FILE, **{name: f"queue_handlers:{name}" for name in NAMES}}
WAIT = 20.0  # seconds that anything may take here before it is called stuck


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "queue.db")


@pytest.fixture
def queue(path):
    with TaskQueue(path, HANDLERS, pool_size=2) as queue:
        yield queue


@pytest.fixture(params=["process", "thread", "inline"])
def any_queue(request, path):
    with TaskQueue(path, HANDLERS, pool_size=2, executor=request.param) as queue:
        yield queue


def wait_until(condition, seconds=WAIT):
    """Wait for a condition that emits no event."""
    give_up_at = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up_at, "the condition was not met in time"
        time.sleep(0.005)


def test_a_task_returns_its_result(any_queue):
    handle = any_queue.add("echo", {"n": [1, 2.5, None, "ü"]})
    assert handle.result(WAIT) == {"n": [1, 2.5, None, "ü"]}
    task = handle.task
    assert (task.status, task.attempts, task.progress) == ("completed", 1, 100)
    assert task.created_at <= task.started_at <= task.finished_at
    assert task.worker.startswith(any_queue.node + "/")


def test_many_tasks_end_and_are_counted(any_queue):
    handles = any_queue.add_many({"type": "echo", "payload": n} for n in range(300))
    any_queue.join(WAIT)
    assert [handle.result(0.1) for handle in handles] == list(range(300))
    assert any_queue.stats().counts["completed"] == 300


def test_a_failing_task_is_retried_and_then_fails_with_its_history(any_queue):
    handle = any_queue.add("fail", max_attempts=3, retry_delay=0.01)
    with pytest.raises(TaskFailed, match="ValueError: no") as caught:
        handle.result(WAIT)
    assert "in fail" in caught.value.error.traceback
    assert [attempt.number for attempt in handle.task.history] == [1, 2, 3]
    assert all(attempt.started_at <= attempt.finished_at for attempt in handle.task.history)


def test_the_output_of_a_task_becomes_its_log(any_queue, capfd):
    handle = any_queue.add("talk")
    handle.result(WAIT)
    assert handle.task.log.split() == ["out", "err", "log"]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("name", "words"), [("too_much", "more than the limit of 1,048,576"), ("no_json", "object")])
def test_a_result_that_cannot_be_stored_fails_the_task_and_not_the_worker(queue, name, words):
    wait_until(lambda: all(worker.state == "idle" for worker in queue.workers()))
    workers = {worker.pid for worker in queue.workers()}
    with pytest.raises(TaskFailed, match=words):
        queue.add(name, max_attempts=3).result(WAIT)
    assert queue.add("echo", 1).result(WAIT) == 1
    assert {worker.pid for worker in queue.workers()} == workers


@pytest.mark.parametrize(("name", "payload", "signal", "code"), [("die", None, 9, None), ("leave", 3, None, 3)])
def test_a_worker_that_dies_fails_its_task_with_the_signal_or_the_exit_code(queue, name, payload, signal, code):
    with pytest.raises(TaskFailed) as caught:
        queue.add(name, payload, max_attempts=2, retry_delay=0).result(WAIT)
    error = caught.value.error
    assert (error.type, error.signal, error.exit_code) == ("WorkerDied", signal, code)
    assert queue.add("echo", 1).result(WAIT) == 1


@pytest.mark.parametrize("executor", ["process", "thread", "inline"])
def test_functions_cells_and_closures_are_handlers(path, executor):
    factor = 3

    def times(payload, context):
        return factor * payload

    with TaskQueue(path, {"times": times, "plus": lambda payload, context: payload + 1}, 1, executor=executor) as queue:

        @queue.handler("minus")
        async def minus(payload, context):
            return payload - 1

        assert [queue.add(name, 5).result(WAIT) for name in ("times", "plus", "minus")] == [15, 6, 4]


def test_a_handler_that_is_registered_again_replaces_the_old_one(queue):
    queue.register("version", lambda payload, context: 1)
    assert queue.add("version").result(WAIT) == 1
    queue.register("version", lambda payload, context: 2)
    assert queue.add("version").result(WAIT) == 2


def test_async_handlers_run_many_at_once(path):
    with TaskQueue(path, pool_size=1) as queue:
        queue.register("wait", "queue_handlers:wait", concurrency=50)
        queue.add("wait", 0).result(WAIT)
        began = time.monotonic()
        queue.add_many({"type": "wait", "payload": 0.3} for _ in range(50))
        queue.join(WAIT)
        assert time.monotonic() - began < 50 * 0.3 / 5


@pytest.mark.parametrize(
    ("handler", "words"),
    [("missing/file.py", "missing/file.py"), ("no handler", "path of a .py file"), (3, "3"), (lambda: 1, "payload")],
)
def test_an_invalid_handler_is_refused_at_once(path, handler, words):
    with pytest.raises(HandlerError, match=words):
        TaskQueue(path, {"a": handler})
    assert not Path(path).exists()


@pytest.mark.parametrize(
    "code", ["1 / 0", "import no_such_module", "def execute(: pass", "x = 1", "import os; os._exit(5)"]
)
def test_a_handler_file_that_breaks_fails_its_tasks_and_nothing_else(queue, tmp_path, code):
    (tmp_path / "broken.py").write_text(code)
    queue.register("broken", tmp_path / "broken.py")
    with pytest.raises(TaskFailed, match=r"broken|exit code 5"):
        queue.add("broken", max_attempts=1).result(WAIT)
    assert queue.add("echo", 1).result(WAIT) == 1


def test_an_unknown_type_is_refused_with_the_known_ones(queue):
    with pytest.raises(UnknownType, match=r"'ecko'.*echo"):
        queue.add("ecko")
    assert queue.stats().total == 0


def test_two_nodes_run_only_the_types_that_they_handle(path):
    with (
        TaskQueue(path, {"a": lambda payload, context: "left"}, 1) as left,
        TaskQueue(path, {"b": lambda payload, context: "right"}, 1) as right,
    ):
        wait_until(lambda: {type for node in left.stats().nodes for type in node.types} == {"a", "b"})
        handles = left.add_many({"type": "ab"[n % 2]} for n in range(40))
        right.join(WAIT)
        assert [handle.result(WAIT) for handle in handles] == ["left", "right"] * 20


def test_a_manager_on_the_same_store_gets_the_result(queue, path):
    with QueueManager(path) as manager:
        assert manager.add("echo", 5).result(WAIT) == 5


def test_a_handle_can_be_awaited(queue):
    async def all_of_them():
        return await asyncio.wait_for(asyncio.gather(*(queue.add("echo", n) for n in range(20))), WAIT)

    assert asyncio.run(all_of_them()) == list(range(20))


def test_tasks_run_by_priority_then_by_time(path, tmp_path):
    log = tmp_path / "log"
    with TaskQueue(path, HANDLERS, pool_size=1) as queue:
        queue.pause()
        handles = [queue.add("note", {"log": str(log)}, priority=n % 3) for n in range(9)]
        queue.resume()
        queue.join(WAIT)
    expected = [handles[n].id for n in (2, 5, 8, 1, 4, 7, 0, 3, 6)]
    assert [line.split()[0] for line in log.read_text().splitlines()] == expected


def test_a_delayed_task_waits_without_polling(queue):
    began = time.time()
    handle = queue.add("echo", 1, delay=0.3)
    handle.result(WAIT)
    assert handle.task.started_at - began >= 0.3


def test_an_expired_task_is_cancelled_and_a_child_of_a_failed_one_fails(queue):
    late = queue.add("echo", delay=0.2, expires_in=0.05)
    with pytest.raises(TaskCancelled, match="expired"):
        late.result(WAIT)
    parent = queue.add("fail", max_attempts=1)
    child, stubborn = queue.add("echo", after=[parent]), queue.add("echo", 7, after=[parent], on_parent_failure="run")
    with pytest.raises(TaskFailed, match=f"parent {parent.id} is failed"):
        child.result(WAIT)
    assert stubborn.result(WAIT) == 7


def test_a_paused_queue_starts_nothing_while_others_continue(queue):
    queue.pause("slow")
    handle = queue.add("echo", 1, queue="slow")
    assert queue.add("echo", 2).result(WAIT) == 2
    assert handle.status == "pending"
    queue.resume("slow")
    assert handle.result(WAIT) == 1


def test_cancelling_a_running_task_stops_that_attempt_only(queue):
    handle = queue.add("spin", timeout=60)
    other = queue.add("sleep_if_asked", 0.5, timeout=60)
    wait_until(lambda: handle.status == "processing" and any(w.task_id == handle.id for w in queue.workers()))
    handle.cancel()
    with pytest.raises(TaskCancelled):
        handle.result(WAIT)
    assert other.result(WAIT) == 0.5
    wait_until(lambda: [worker.state for worker in queue.workers()] == ["idle", "idle"])
    assert handle.status == "cancelled"


def test_a_task_that_is_cancelled_elsewhere_is_stopped_here(queue, path):
    handle = queue.add("spin", timeout=60)
    wait_until(lambda: any(worker.task_id == handle.id for worker in queue.workers()))
    with QueueManager(path) as manager:
        manager.cancel(handle.id)
    wait_until(lambda: all(worker.state == "idle" for worker in queue.workers()))
    assert handle.status == "cancelled"


def test_events_follow_the_life_of_a_task(queue):
    received, ended = [], threading.Event()
    queue.on("*", lambda event: received.append((event.name, event.task.id if event.task else None)))
    queue.on("task:failed", lambda event: ended.set())
    handle = queue.add("fail", max_attempts=2, retry_delay=0)
    assert ended.wait(WAIT)
    life = [name for name, task_id in received if task_id == handle.id]
    assert life[0] == "task:added"
    assert life.count("task:started") == 2
    assert [name for name in life if name not in ("task:started", "task:added")] == ["task:retrying", "task:failed"]


def test_a_listener_that_sleeps_adds_or_waits_stalls_nothing(queue):
    results, release = [], threading.Event()
    queue.on("task:completed", lambda event: release.wait(WAIT))
    queue.once("task:added", lambda event: results.append(queue.add("echo", "from a listener").result(WAIT)))
    began = time.monotonic()
    handles = queue.add_many({"type": "echo", "payload": n} for n in range(500))
    assert [handle.result(WAIT) for handle in handles] == list(range(500))
    assert time.monotonic() - began < WAIT / 2
    wait_until(lambda: results == ["from a listener"])
    release.set()


def test_each_idle_period_emits_one_event(queue):
    idle = threading.Semaphore(0)
    queue.on("queue:idle", lambda event: idle.release())
    for _ in range(2):
        queue.add("echo").result(WAIT)
        assert idle.acquire(timeout=WAIT)
    assert not idle.acquire(timeout=0.05)


def test_progress_is_visible_while_the_task_runs(queue):
    def step(payload, context):
        context.progress(40, "nearly half")
        time.sleep(0.5)

    queue.register("step", step)
    handle = queue.add("step")
    wait_until(lambda: handle.progress == 40)
    assert (handle.status, handle.task.note) == ("processing", "nearly half")


def test_shutdown_lets_running_tasks_end_and_keeps_the_others(path):
    queue = TaskQueue(path, HANDLERS, pool_size=1).start()
    running, waiting = queue.add("sleep_if_asked", 0.3), queue.add("sleep_if_asked", 0.3)
    wait_until(lambda: any(worker.task_id == running.id for worker in queue.workers()))
    queue.shutdown(timeout=WAIT)
    with QueueManager(path) as manager:
        assert manager.get(running.id).status == "completed"
        assert (manager.get(waiting.id).status, manager.get(waiting.id).attempts) == ("pending", 0)
        assert manager.stats().nodes == []


def test_a_forced_shutdown_gives_back_running_tasks_and_counts_no_attempt(path):
    queue = TaskQueue(path, HANDLERS, pool_size=1).start()
    handle = queue.add("sleep_if_asked", 60, timeout=90)
    wait_until(lambda: handle.status == "processing" and any(w.task_id for w in queue.workers()))
    began = time.monotonic()
    queue.shutdown(force=True)
    assert time.monotonic() - began < 2
    with QueueManager(path) as manager:
        task = manager.get(handle.id)
        assert (task.status, task.attempts, task.interruptions) == (Status.PENDING, 0, 0)


def test_an_interrupt_in_the_block_does_not_wait_for_running_tasks(path):
    def work():
        with TaskQueue(path, HANDLERS, pool_size=1) as queue:
            handle = queue.add("sleep_if_asked", 60, timeout=90)
            wait_until(lambda: any(worker.task_id == handle.id for worker in queue.workers()))
            raise KeyboardInterrupt

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        work()
    assert time.monotonic() - began < 5
    with QueueManager(path) as manager:
        assert [(task.status, task.attempts) for task in manager.find()] == [("pending", 0)]


def test_each_pool_runs_only_its_priorities(path):
    pools = {"urgent": Pool(1, min_priority=5), "rest": Pool(1)}
    with TaskQueue(path, HANDLERS, pools=pools) as queue:
        slow = [queue.add("sleep_if_asked", 0.3) for _ in range(3)]
        wait_until(lambda: slow[0].status == "processing")
        urgent = queue.add("echo", priority=5)
        urgent.result(WAIT)
        assert urgent.task.worker.startswith(f"{queue.node}/urgent")
        assert slow[2].status == "pending"
        queue.join(WAIT)
        assert {handle.task.worker.partition("/")[2][:4] for handle in slow} == {"rest"}


def test_the_pool_grows_and_shrinks(queue):
    queue.resize(4)
    wait_until(lambda: len(queue.workers()) == 4)
    queue.resize(1)
    wait_until(lambda: len(queue.workers()) == 1)
    assert queue.add("echo", 1).result(WAIT) == 1


@pytest.mark.parametrize("size", ["3", -1, 1001, 2.0, True, None])
def test_an_invalid_size_is_refused_where_resize_is_called(queue, size):
    with pytest.raises(DTQError, match="allowed: a whole number from 0 to 1,000"):
        queue.resize(size)
    assert queue.add("echo", 1).result(WAIT) == 1


@pytest.mark.parametrize("pool", [1, -1, "urgent", None, True, 0.0])
def test_resize_refuses_a_pool_that_does_not_exist(queue, pool):
    with pytest.raises(DTQError, match=r"there is no pool .*; allowed: 'w', or a position from 0 to 0"):
        queue.resize(3, pool=pool)
    assert queue.add("echo", 1).result(WAIT) == 1


def test_a_pool_is_resized_by_its_name(path):
    with TaskQueue(path, HANDLERS, pools={"urgent": Pool(1, min_priority=5), "rest": Pool(1)}) as queue:
        queue.resize(3, pool="rest")
        queue.resize(2, 0)
        wait_until(lambda: sorted(worker.id[:4] for worker in queue.workers()) == ["rest"] * 3 + ["urge"] * 2)
    with pytest.raises(DTQError, match="shut down"):
        queue.resize(1)


def test_a_failing_resize_raises_in_its_caller(queue, monkeypatch):
    monkeypatch.setattr(queue._groups[0].pool, "resize", lambda size: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        queue.resize(2)
    monkeypatch.undo()
    assert queue.add("echo", 1).result(WAIT) == 1


def test_a_worker_is_replaced_after_its_tasks(path):
    with TaskQueue(path, HANDLERS, pool_size=1, max_tasks_per_worker=5) as queue:
        pids = set()
        queue.on("worker:ready", lambda event: pids.add(event.data["pid"]))
        queue.add_many({"type": "echo"} for _ in range(22))
        queue.join(WAIT)
        queue.events.close()
    assert len(pids) >= 4


@pytest.mark.parametrize("executor", ["process", "thread", "inline"])
def test_closing_a_queue_that_was_never_started_releases_everything(path, executor):
    queue = TaskQueue(path, HANDLERS, executor=executor)
    queue.add("echo") if executor != "inline" else None
    queue.close()
    with pytest.raises(DTQError, match="started once"):
        queue.start()


def test_a_sync_handler_cannot_run_several_calls_at_once(queue):
    with pytest.raises(HandlerError, match="is not async"):
        queue.register("a", lambda payload, context: None, concurrency=5)


@pytest.mark.parametrize("make", [TaskQueue, QueueManager])
def test_waiters_get_an_error_when_the_queue_is_closed(path, make):
    queue = make(path)
    if make is TaskQueue:
        queue.register("echo", FILE)
        queue.start()
    handle = queue.add("echo", delay=60)
    waiting = threading.Thread(target=lambda: errors.append(_error_of(handle.result)))
    errors = []
    waiting.start()
    wait_until(lambda: queue._waiters)
    queue.close()
    waiting.join(WAIT)
    assert "had not ended when the queue was closed" in str(errors[0])


def _error_of(call):
    try:
        return call()
    except DTQError as error:
        return error


def test_a_listener_may_shut_the_queue_down(path):
    queue = TaskQueue(path, {"echo": FILE}, pool_size=1).start()
    down = threading.Event()
    queue.once("task:completed", lambda event: (queue.shutdown(), down.set()))
    queue.add("echo")
    assert down.wait(WAIT)


def test_a_timeout_of_join_counts_the_unfinished_tasks(queue):
    queue.add("echo", delay=60)
    with pytest.raises(TimeoutError, match=r"1 tasks have not ended after 0\.1 s: 1 pending"):
        queue.join(0.1)


def test_a_queue_starts_once_and_may_be_closed_repeatedly(path):
    queue = TaskQueue(path, HANDLERS, pool_size=1)
    queue.add("echo")
    with pytest.raises(DTQError, match="start the queue first"):
        queue.join(0.1)
    with queue:
        queue.join(WAIT)
        with pytest.raises(DTQError, match="started once"):
            queue.start()
    queue.shutdown()
    queue.close()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"pool_size": -1}, "0 to 1,000 workers"), ({"pool_size": "4"}, "0 to 1,000"), ({"lease": 0}, "lease is 0"),
        ({"executor": "fibre"}, "executor is 'fibre'; allowed: 'process'"), ({"pools": {"a": 3}}, "pool 'a' is 3"),
    ],
)  # fmt: skip
def test_an_invalid_option_is_refused_by_name(path, options, words):
    with pytest.raises(DTQError, match=words):
        TaskQueue(path, **options)


def test_an_inline_queue_skips_the_time_between_retries(path):
    with TaskQueue(path, HANDLERS, executor="inline") as queue:
        began = time.monotonic()
        handle = queue.add("fail", max_attempts=3, retry_delay=3600)
        assert handle.status == "failed"
        assert time.monotonic() - began < 2


def test_workers_returns_also_while_the_queue_ends(monkeypatch):
    """The loop may end between the check whether it is alive and the question."""
    queue = TaskQueue("memory:", {"nothing": "queue_handlers:nothing"}, 1).start()
    post = queue._post

    def too_late(action):
        monkeypatch.undo()
        queue.shutdown()
        post(action)

    monkeypatch.setattr(queue, "_post", too_late)
    assert queue.workers() == []


# --- clocks -----------------------------------------------------------------------------------------------------------


SLEEPING = {"sleep": lambda seconds, context: time.sleep(seconds)}


def test_attempts_have_times_of_the_given_clock(path):
    with TaskQueue(path, HANDLERS, pool_size=1, clock=lambda: time.time() - 1e6) as queue:
        queue.add("echo", 1).result(WAIT)
        (task,) = queue.find()
    assert task.created_at <= task.started_at <= task.finished_at <= time.time() - 1e6


@pytest.mark.parametrize("executor", ["process", "thread"])
def test_nodes_keep_their_tasks_when_the_clock_leaps_for_all_of_them(path, executor):
    """As after a sleep of the machine, three times in a row."""
    ahead = [0.0]
    options = {"pool_size": 1, "lease": 3.0, "executor": executor, "clock": lambda: time.time() + ahead[0]}
    with TaskQueue(path, SLEEPING, **options) as one, TaskQueue(path, SLEEPING, **options) as other:
        handles = one.add_many({"type": "sleep", "payload": 4.0, "max_attempts": 1} for _ in range(2))
        wait_until(lambda: one.stats().running == 2)
        for _ in range(3):
            ahead[0] += 3600
            time.sleep(0.7)
        for handle in handles:
            handle.result(WAIT)
        assert [handle.task.interruptions for handle in handles] == [0, 0]
        assert {handle.task.worker.partition("/")[0] for handle in handles} == {one.node, other.node}


def test_nodes_keep_their_tasks_when_the_clock_of_their_server_leaps():
    """A store whose clock is its server's, and is ahead of this machine's."""
    store = MemoryStore()
    store.ahead = 0.0
    store.clock = lambda: time.time() + store.ahead
    options = {"pool_size": 1, "lease": 3.0, "executor": "thread"}
    with TaskQueue(store, SLEEPING, **options) as one, TaskQueue(store, SLEEPING, **options):
        handles = one.add_many({"type": "sleep", "payload": 2.0, "max_attempts": 1} for _ in range(2))
        wait_until(lambda: one.stats().running == 2)
        store.ahead += 3600
        for handle in handles:
            handle.result(WAIT)
        assert [handle.task.interruptions for handle in handles] == [0, 0]
    store.close()


@pytest.mark.parametrize("executor", ["process", "thread"])
def test_a_retry_right_after_a_cancel_runs_at_once(executor):
    """On new queues the loop usually claims the new attempt before it learns of the cancel."""
    for _ in range(15):
        with TaskQueue("memory:", HANDLERS, pool_size=1, executor=executor) as queue:
            handle = queue.add("echo", "again")
            queue.cancel(handle.id)
            queue.retry(handle.id)
            assert handle.result(WAIT) == "again"
            assert handle.task.interruptions == 0
