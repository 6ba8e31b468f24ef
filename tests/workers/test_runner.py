"""Running one call: its messages, its result or error, its output, its timeout, and loading its handler."""

from __future__ import annotations

import asyncio
import contextvars
import signal
import sys
import threading
import time
from contextlib import contextmanager

import pytest

from dtq.errors import HandlerError, Retry
from dtq.task.codec import from_json, to_json
from dtq.workers import wire
from dtq.workers.run.context import BURST, MAX_LOG
from dtq.workers.run.runner import (
    MAX_MESSAGE,
    MAX_TRACEBACK,
    Handlers,
    Stopped,
    TimedOut,
    is_async,
    perform,
    perform_async,
)


def define(function, concurrency=1):
    handlers = Handlers()
    handlers.define("work", wire.Source("value", "test", concurrency=concurrency), function)
    return handlers


def call(payload=None, type="work", timeout=30.0, number=7):
    return wire.Call(number, "t1", type, to_json(payload), 2, timeout)


def run(function, payload=None, **options):
    """Run one call. Return its report and the messages that were sent before it."""
    sent = []
    handlers = define(function)
    handlers.load("work")
    return perform(handlers, call(payload), "w1", sent.append, **options), sent


def error_of(function, payload=None, **options):
    done, _ = run(function, payload, **options)
    assert done.result == b"null"
    return done.error


def source(tmp_path, code):
    path = tmp_path / "handler.py"
    path.write_text(code)
    handlers = Handlers()
    handlers.define("work", wire.Source("path", str(path)))
    return handlers


# --- results ----------------------------------------------------------------------------------------------------------


def test_the_result_is_what_the_function_returns():
    done, sent = run(lambda payload, context: 2 * payload["n"], {"n": 21})
    assert from_json(done.result) == 42
    assert (done.number, done.error, done.log, done.final) == (7, None, "", False)
    assert [type(message) for message in sent] == [wire.Started]


def test_the_context_names_the_task_the_worker_and_the_attempt():
    done, _ = run(lambda payload, context: [context.task_id, context.worker_id, context.attempt, context.cancelled])
    assert from_json(done.result) == ["t1", "w1", 2, False]


def test_the_report_has_the_start_and_the_duration():
    before = time.time()
    done, sent = run(lambda payload, context: None)
    assert before <= done.started_at <= time.time()
    assert sent == [wire.Started(7, done.started_at)]
    assert 0 <= done.seconds < 1


@pytest.mark.parametrize("value", [object(), float("nan"), {"a": [1, print]}, "\udcff"])
def test_a_result_that_json_cannot_carry_is_a_final_error(value):
    done, _ = run(lambda payload, context: value)
    assert done.error.type == "ResultError"
    assert done.final


def test_a_result_over_the_limit_is_a_final_error_with_size_and_limit():
    done, _ = run(lambda payload, context: "x" * 98, max_result=99)
    assert (
        done.error.message == "the result is 100 bytes of JSON, more than the limit of 99: return a path or a key to it"
    )
    assert done.final
    done, _ = run(lambda payload, context: "x" * 97, max_result=99)
    assert done.error is None


def test_the_error_of_a_generator_result_says_what_to_do():
    error = error_of(lambda payload, context: (n for n in range(3)))
    assert "generator" in error.message
    assert "collect it in a list" in error.message


def test_the_error_of_a_coroutine_result_says_what_to_do():
    async def later():
        return 1

    error = error_of(lambda payload, context: later())
    assert "coroutine" in error.message
    assert "async def" in error.message


# --- errors -----------------------------------------------------------------------------------------------------------


def test_an_exception_becomes_its_class_its_message_and_the_handlers_traceback():
    def explode(payload, context):
        raise ValueError("no such luck")

    error = error_of(explode)
    assert (error.type, error.message) == ("ValueError", "no such luck")
    assert "in explode" in error.traceback
    assert "dtq/workers/run/runner.py" not in error.traceback


def test_the_cause_of_an_exception_is_in_its_traceback():
    def explode(payload, context):
        try:
            raise KeyError("inner")
        except KeyError as error:
            raise ValueError("outer") from error

    traceback = error_of(explode).traceback
    assert "KeyError: 'inner'" in traceback
    assert "direct cause" in traceback


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, MemoryError, RecursionError])
def test_an_exception_that_would_end_a_program_is_an_ordinary_failure(kind):
    def explode(payload, context):
        raise kind("enough")

    done, _ = run(explode)
    assert done.error.type == kind.__name__
    assert "enough" in done.error.message
    assert not done.final


def test_endless_recursion_is_an_ordinary_failure():
    def recurse(payload, context):
        return recurse(payload, context)

    assert error_of(recurse).type == "RecursionError"


def test_an_exception_whose_str_raises_is_reported():
    class Shy(Exception):
        def __str__(self):
            raise RuntimeError("not me")

    def explode(payload, context):
        raise Shy

    error = error_of(explode)
    assert error.type == "Shy"
    assert "RuntimeError" in error.message


def test_long_messages_and_tracebacks_are_cut():
    def explode(payload, context):
        raise ValueError("x" * 100_000)

    error = error_of(explode)
    assert len(error.message) == MAX_MESSAGE
    assert len(error.traceback) == MAX_TRACEBACK


def test_lone_surrogates_are_escaped():
    def explode(payload, context):
        context.progress(1, "\udcff")
        print("\udcff")
        raise ValueError("\udcff")

    done, sent = run(explode)
    assert done.error.message == "\\udcff"
    assert done.log == "\\udcff\n"
    for message in [done, *sent]:
        wire.frame(message)


@pytest.mark.parametrize(
    ("kind", "type", "message"),
    [(TimedOut, "Timeout", "ran longer than its timeout of 30 s"), (Stopped, "Cancelled", "stopped while it ran")],
)
def test_except_exception_does_not_catch_an_interruption(kind, type, message):
    def stubborn(payload, context):
        try:
            raise kind
        except Exception:
            return "swallowed"

    error = error_of(stubborn)
    assert (error.type, error.message) == (type, message)


def test_only_the_handler_is_interruptible():
    steps = []

    @contextmanager
    def interruptible(context):
        steps.append("enter")
        yield
        steps.append("exit")

    run(lambda payload, context: steps.append("handler"), interruptible=interruptible)
    assert steps == ["enter", "handler", "exit"]


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no interval timer here")
def test_a_signal_can_interrupt_the_handler():
    def raise_timed_out(signum, frame):
        raise TimedOut

    @contextmanager
    def interruptible(context):
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

    before = signal.signal(signal.SIGALRM, raise_timed_out)
    try:
        assert error_of(lambda payload, context: time.sleep(30), interruptible=interruptible).type == "Timeout"
    finally:
        signal.signal(signal.SIGALRM, before)


# --- output -----------------------------------------------------------------------------------------------------------


def test_a_printed_line_becomes_the_tasks_log(capsys):
    def chat(payload, context):
        print("to the log")
        print("also", file=sys.stderr)
        sys.stdout.writelines(["and\n", "these\n"])
        context.log("n =", 1)

    done, sent = run(chat)
    assert done.log == "to the log\nalso\nand\nthese\nn = 1\n"
    assert "".join(message.text for message in sent if isinstance(message, wire.Log)) == done.log
    assert capsys.readouterr() == ("", "")


def test_output_outside_a_call_goes_to_the_original_stream(capsys):
    run(lambda payload, context: None)
    print("hello")
    assert capsys.readouterr().out == "hello\n"


def test_a_printed_line_is_sent_at_once():
    sent = []

    def chat(payload, context):
        print("first")
        assert [message.text for message in sent if isinstance(message, wire.Log)] == ["first\n"]

    assert perform(define(chat), call(), "w1", sent.append).error is None


def test_the_report_carries_the_end_of_a_long_log():
    done, sent = run(lambda payload, context: [print(n) for n in range(10_000)] and None)
    assert len(done.log) == MAX_LOG
    assert done.log.endswith("9998\n9999\n")
    assert len(sent) < 50


def test_a_failed_call_keeps_its_log():
    def explode(payload, context):
        print("so far", end="")
        raise ValueError

    assert run(explode)[0].log == "so far"


def test_calls_in_threads_do_not_mix_their_logs():
    barrier = threading.Barrier(8)
    logs = {}

    def chat(payload, context):
        for _ in range(50):
            barrier.wait(10)
            print(payload)

    def work(n):
        logs[n] = perform(define(chat), call(n), "w", lambda message: None).log

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert logs == {n: f"{n}\n" * 50 for n in range(8)}


# --- progress ---------------------------------------------------------------------------------------------------------


def test_progress_is_sent():
    _, sent = run(lambda payload, context: context.progress(50, "half"))
    assert sent[1:] == [wire.Progress(7, 50.0, "half")]


@pytest.mark.parametrize("value", [-1, 101, float("nan"), "50", None, [1]])
def test_progress_takes_only_a_number_from_0_to_100(value):
    error = error_of(lambda payload, context: context.progress(value))
    assert error.type == "ValueError"
    assert repr(value) in error.message


def test_frequent_progress_is_throttled_and_the_last_one_is_always_sent():
    done, sent = run(lambda payload, context: [context.progress(n / 1000) for n in range(100_000)] and None)
    said = [message.percent for message in sent if isinstance(message, wire.Progress)]
    assert said[-1] == 99.999
    assert len(said) <= BURST + 3 + 20 * done.seconds


# --- loading ----------------------------------------------------------------------------------------------------------


def test_only_the_first_call_loads_the_handler(tmp_path):
    handlers = source(tmp_path, "print('imported')\ndef setup(): print('set up')\ndef execute(p, c): return p")
    sent = []
    assert not handlers.is_loaded("work")
    first = perform(handlers, call(1), "w", sent.append)
    assert [message.loading for message in sent if isinstance(message, wire.Started)] == [True, False]
    assert first.log == "imported\nset up\n"
    second = perform(handlers, call(2), "w", sent.append)
    assert (second.result, second.log) == (b"2", "")


def test_a_module_is_torn_down_once(tmp_path):
    handlers = source(tmp_path, "calls = []\ndef teardown(): calls.append(1)\ndef execute(p, c): return calls")
    calls = handlers.load("work").function(None, None)
    assert handlers.teardown() == []
    assert handlers.teardown() == []
    assert calls == [1]


def test_an_error_in_teardown_is_returned_as_a_message(tmp_path):
    handlers = source(tmp_path, "def teardown(): 1 / 0\ndef execute(p, c): pass")
    handlers.load("work")
    [problem] = handlers.teardown()
    assert "ZeroDivisionError" in problem


def test_a_handler_that_cannot_be_loaded_fails_the_task_with_the_reason(tmp_path):
    done = perform(source(tmp_path, "import no_such_module"), call(), "w", lambda message: None)
    assert done.error.type == "HandlerError"
    assert "no_such_module" in done.error.message
    assert "handler.py" in done.error.traceback


@pytest.mark.parametrize("code", ["def execute(:", "def setup(): 1 / 0\ndef execute(p, c): pass", "exit(1)", "x = 1"])
def test_a_broken_module_is_a_handler_error(tmp_path, code):
    with pytest.raises(HandlerError, match=r"handler\.py"):
        source(tmp_path, code).load("work")


def test_a_failed_load_is_retried_after_a_pause(tmp_path, monkeypatch):
    handlers = source(tmp_path, "1 / 0")
    now = [100.0]
    monkeypatch.setattr("dtq.workers.run.loader.monotonic", lambda: now[0])
    with pytest.raises(HandlerError):
        handlers.load("work")
    (tmp_path / "handler.py").write_text("def execute(p, c): return 1")
    with pytest.raises(HandlerError):
        handlers.load("work")
    now[0] += 1
    assert handlers.load("work").function(None, None) == 1


def test_an_edited_file_is_loaded_again(tmp_path):
    handlers = source(tmp_path, "def execute(p, c): return 1")
    assert handlers.load("work").function(None, None) == 1
    (tmp_path / "handler.py").write_text("def execute(p, c): return 2")  # the same size, within the same second
    handlers.define("work", wire.Source("path", str(tmp_path / "handler.py")))
    assert handlers.load("work").function(None, None) == 2


def test_a_handler_file_hides_no_module_and_leaves_sys_path_alone(tmp_path):
    (tmp_path / "json.py").write_text("def execute(p, c): return 'mine'")
    handlers = Handlers()
    handlers.define("work", wire.Source("path", str(tmp_path / "json.py")))
    path = list(sys.path)
    assert handlers.load("work").function(None, None) == "mine"
    assert sys.path == path
    assert hasattr(sys.modules.get("json", to_json), "loads") or "json" not in sys.modules


def test_a_named_handler_is_imported():
    handlers = Handlers()
    handlers.define("work", wire.Source("name", "operator:methodcaller"))
    handlers.define("deep", wire.Source("name", "dtq.task.model:Task.is_terminal.fget"))
    assert handlers.load("work").function.__name__ == "methodcaller"
    assert callable(handlers.load("deep").function)


def test_an_unknown_type_names_the_known_ones():
    done = perform(define(print), call(type="other"), "w", lambda message: None)
    assert done.error.type == "HandlerError"
    assert "'other'" in done.error.message
    assert "work" in done.error.message


# --- async ------------------------------------------------------------------------------------------------------------


def run_async(function, payload=None, timeout=30.0):
    sent = []
    done = asyncio.run(perform_async(define(function), call(payload, timeout=timeout), "w", sent.append))
    return done, sent


def test_an_async_handler_runs_like_a_sync_one():
    async def double(payload, context):
        context.progress(50)
        print("hello")
        await asyncio.sleep(0)
        return 2 * payload

    done, sent = run_async(double, 21)
    assert (done.result, done.log) == (b"42", "hello\n")
    assert [type(message) for message in sent] == [wire.Started, wire.Started, wire.Progress, wire.Log]


def test_functions_and_callable_objects_are_recognised_as_async():
    class Callable:
        async def __call__(self, payload, context): ...

    async def function(payload, context): ...

    for handler, expected in [(function, True), (Callable(), True), (print, False)]:
        assert is_async(define(handler), call(), lambda message: None) is expected


def test_a_handler_that_cannot_be_loaded_counts_as_sync(tmp_path):
    assert not is_async(source(tmp_path, "1 / 0"), call(), lambda message: None)


def test_a_handler_that_changed_between_sync_and_async_is_retried():
    async def later(payload, context): ...

    done = perform(define(later), call(), "w", lambda message: None)
    assert (done.error.type, done.final) == ("HandlerError", False)
    done = asyncio.run(perform_async(define(print), call(), "w", lambda message: None))
    assert (done.error.type, done.final) == ("HandlerError", False)


def test_an_async_handler_is_timed_out():
    async def slow(payload, context):
        await asyncio.sleep(30)

    done, _ = run_async(slow, timeout=0.01)
    assert (done.error.type, done.error.message) == ("Timeout", "ran longer than its timeout of 0.01 s")
    assert "in slow" in done.error.traceback


def test_a_timeout_inside_the_handler_is_an_ordinary_failure():
    async def impatient(payload, context):
        async with asyncio.timeout(0.001):
            await asyncio.sleep(30)

    assert run_async(impatient)[0].error.type == "TimeoutError"


@pytest.mark.parametrize(("asked", "type"), [(True, "Cancelled"), (False, "CancelledError")])
def test_an_async_handler_is_stopped_by_cancelling_its_task(asked, type):
    async def main():
        running = asyncio.Event()
        contexts = []

        async def slow(payload, context):
            contexts.append(context)
            running.set()
            await asyncio.sleep(30)

        task = asyncio.create_task(perform_async(define(slow), call(), "w", lambda message: None))
        await running.wait()
        contexts[0].cancelled = asked
        task.cancel()
        return await task

    assert asyncio.run(main()).error.type == type


def test_concurrent_async_calls_mix_neither_logs_nor_context_variables():
    mark = contextvars.ContextVar("mark")

    async def chat(payload, context):
        mark.set(payload)
        for _ in range(20):
            await asyncio.sleep(0)
            print(mark.get())
        await asyncio.to_thread(print, "from a thread")

    async def main():
        handlers = define(chat)
        calls = [perform_async(handlers, call(n), "w", lambda message: None) for n in range(20)]
        return await asyncio.gather(*calls)

    for n, done in enumerate(asyncio.run(main())):
        assert done.log == f"{n}\n" * 20 + "from a thread\n"


@pytest.mark.parametrize("delay", [float("nan"), float("inf"), -1, "soon", [1], True, 1e300])
def test_a_retry_with_an_invalid_delay_uses_the_usual_backoff(delay):
    def later(payload, context):
        error = Retry("later")
        error.delay = delay
        raise error

    done, _ = run(later)
    assert (done.delay, done.error.type) == (None, "Retry")


def test_a_result_deeper_than_the_limit_is_an_error():
    def nested(depth, context):
        value = []
        for _ in range(depth - 1):
            value = [value]
        return value

    assert run(nested, 64)[0].error is None
    for depth in (65, 987, 3_000, 100_000):
        assert error_of(nested, depth).type == "ResultError"
        assert "more than 64 levels of nested arrays and objects" in error_of(nested, depth).message
