"""How handlers and their registration control further attempts; deadlines; and tasks that crash workers."""

from __future__ import annotations

import time

import pytest

from dtq import HandlerError, Retry, TaskCancelled, TaskFailed, TaskQueue
from dtq.task.model import MAX_CRASHES, Attempt, ErrorInfo
from dtq.task.transitions import is_poison

WAIT = 30.0
EXECUTORS = ["process", "thread", "inline"]


@pytest.fixture(params=[("process", ""), ("process", "_async"), ("thread", ""), ("thread", "_async"), ("inline", "")])
def queue(request, tmp_path):
    executor, suffix = request.param
    names = ("again", "drop", "throw")
    handlers = {name: f"control_handlers:{name}{suffix}" for name in names}
    with TaskQueue(tmp_path / "q.db", handlers, 1, executor=executor) as queue:
        queue.suffix = suffix
        yield queue


def limit(queue, **rules):
    queue.register("throw", f"control_handlers:throw{queue.suffix}", **rules)


def ended(queue, *args, **options):
    return queue.wait_for(queue.add(*args, **{"retry_delay": 0, **options}).id, WAIT)


def test_a_handler_sets_the_time_of_the_next_attempt(queue):
    task = ended(queue, "again", 0.3, retry_delay=600)
    assert (task.status, task.result, task.attempts) == ("completed", 3, 3)
    assert [(a.error.type, a.error.message) for a in task.history] == [("Retry", "not yet")] * 2
    gap = task.history[1].started_at - task.history[0].finished_at
    assert gap >= 0.29 or queue._inline  # which leaps over the time


def test_a_retry_without_a_delay_waits_for_the_usual_backoff(queue):
    task = ended(queue, "again", None)
    assert (task.status, task.attempts) == ("completed", 3)


def test_a_retry_is_an_attempt_and_the_last_one_fails(queue):
    task = ended(queue, "again", 0, max_attempts=2)
    assert (task.status, task.error.type, task.attempts) == ("failed", "Retry", 2)


def test_a_discarded_task_is_cancelled_with_its_reason_and_not_tried_again(queue):
    handle = queue.add("drop", "the order is gone", max_attempts=5)
    with pytest.raises(TaskCancelled, match="the order is gone"):
        handle.result(WAIT)
    task = handle.task
    assert (task.error.type, task.attempts, task.log) == ("Discarded", 1, "the last line\n")


@pytest.mark.parametrize(
    ("raised", "attempts"), [("ValueError", 1), ("JSON", 1), ("Hiccup", 3)]
)  # a JSONDecodeError is a ValueError
def test_an_exception_in_give_up_on_ends_the_attempts(queue, raised, attempts):
    limit(queue, give_up_on=ValueError)
    assert ended(queue, "throw", raised).attempts == attempts


@pytest.mark.parametrize(("raised", "attempts"), [("Hiccup", 3), ("Deep", 3), ("ValueError", 1)])
def test_with_retry_on_all_other_exceptions_are_final(queue, raised, attempts):
    limit(queue, retry_on=("OSError", "control_handlers.Hiccup"))
    assert ended(queue, "throw", raised).attempts == attempts


def test_give_up_on_precedes_retry_on_and_a_bare_name_is_enough(queue):
    limit(queue, retry_on="Hiccup", give_up_on="Deep")
    assert [ended(queue, "throw", kind).attempts for kind in ("Hiccup", "Deep")] == [3, 1]


def test_retry_rules_do_not_change_what_the_handler_requests(tmp_path):
    with TaskQueue(tmp_path / "q.db", pool_size=1, executor="inline") as queue:
        queue.register("again", "control_handlers:again", retry_on=OSError)
        assert ended(queue, "again", 0).result == 3


@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_retry_keeps_its_cause(tmp_path, executor):
    handlers = {"again": "control_handlers:again_for_a_reason"}
    with TaskQueue(tmp_path / "q.db", handlers, 1, executor=executor) as queue:
        task = ended(queue, "again", max_attempts=2)
    assert (task.error.type, task.error.message) == ("Retry", "OSError: busy")


def test_an_exception_of_a_notebook_or_script_is_named_by_its_class(tmp_path):
    class Mine(Exception):
        pass

    with TaskQueue(tmp_path / "q.db", pool_size=1) as queue:

        @queue.handler("mine", give_up_on=Mine)
        def mine(payload, context):
            raise Mine

        assert ended(queue, "mine").attempts == 1


@pytest.mark.parametrize("wrong", [3, (ValueError, 3), int, "not a name", ("",)])
def test_a_retry_rule_that_is_no_exception_is_refused_at_registration(tmp_path, wrong):
    with TaskQueue(tmp_path / "q.db", executor="inline") as queue, pytest.raises(HandlerError, match="allowed"):
        queue.register("a", "control_handlers:echo", retry_on=wrong)


@pytest.mark.parametrize("wrong", [-1, True, 10**9, float("nan")])
def test_an_invalid_retry_delay_is_refused_where_it_is_raised(wrong):
    with pytest.raises(ValueError, match="delay is"):
        Retry(delay=wrong)


# --- deadlines


@pytest.mark.parametrize("executor", ["process", "thread"])
def test_a_task_past_its_deadline_is_dropped_with_an_event_of_its_own(tmp_path, executor):
    received = []
    with TaskQueue(tmp_path / "q.db", {"echo": "control_handlers:echo"}, 1, executor=executor) as queue:
        queue.on("*", lambda event: received.append((event.name, event.task and event.task.id)))
        stale = queue.add("echo", 1, delay=600, expires_in=0.2)
        began = time.monotonic()
        with pytest.raises(TaskCancelled, match="expired"):
            stale.result(WAIT)
        assert time.monotonic() - began < 5
        fresh = queue.add("echo", 2, expires_in=600)
        assert fresh.result(WAIT) == 2
        task = queue.get(stale.id)
        assert (task.status, task.error.type, task.attempts) == ("cancelled", "Expired", 0)
        queue.events.catch_up()
    assert [name for name, id in received if id == stale.id] == ["task:added", "task:expired", "task:cancelled"]
    assert "task:expired" not in [name for name, id in received if id == fresh.id]


# --- poison


def test_a_task_that_crashes_workers_fails_with_the_signal_even_with_attempts_left(tmp_path):
    handlers = {"kill": "control_handlers:kill_the_worker", "echo": "control_handlers:echo"}
    with TaskQueue(tmp_path / "q.db", handlers, 2) as queue:
        poison = queue.add("kill", max_attempts=1000, retry_delay=0)
        with pytest.raises(TaskFailed, match="SIGSEGV"):
            poison.result(WAIT)
        task = poison.task
        assert (task.attempts, task.error.type, task.error.signal) == (MAX_CRASHES, "WorkerDied", 11)
        assert [attempt.error.signal for attempt in task.history] == [11] * MAX_CRASHES
        assert queue.add("echo", 1).result(WAIT) == 1
        queue.retry(poison.id)  # it has all its attempts again
        with pytest.raises(TaskFailed):
            poison.result(WAIT)
        assert poison.task.attempts == MAX_CRASHES


def test_only_consecutive_crashes_count():
    def attempt(type):
        return Attempt(1, 0.0, 1.0, "w", ErrorInfo(type))

    crash, error = attempt("WorkerDied"), attempt("ValueError")
    assert is_poison((error, *[crash] * MAX_CRASHES))
    assert not is_poison((crash, *[crash] * (MAX_CRASHES - 2), error))
    assert not is_poison((*[crash] * (MAX_CRASHES - 1), error))
    assert not is_poison([crash] * (MAX_CRASHES - 1))
