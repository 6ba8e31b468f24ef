"""Flows: a graph in one call, results that go from parents to children, and a handle for the whole graph."""

from __future__ import annotations

import threading
import time

import pytest

from dtq import (
    InvalidTask,
    QueueManager,
    StoreError,
    TaskCancelled,
    TaskFailed,
    TaskQueue,
    UnknownTask,
    chain,
    chord,
    group,
    step,
)
from dtq.queue.events import Emitter
from dtq.queue.handle import Waiters
from dtq.queue.loop import Loop
from dtq.stores.memory.store import MemoryStore
from dtq.task.model import Task
from dtq.task.transitions import succeed
from dtq.workers.groups import Pool, WorkerGroup
from dtq.workers.run.parents import Parents

WAIT = 30.0
NAMES = ["value", "total", "total_async", "tell", "ask_for", "fail", "large", "sleep", "progress_and_wait",
         "wait_for_file"]  # fmt: skip
HANDLERS = {name: f"flow_handlers:{name}" for name in NAMES}
NOW = 1000.0


@pytest.fixture(params=["process", "thread", "inline"])
def any_queue(request, tmp_path):
    with TaskQueue(tmp_path / "q.db", HANDLERS, 2, executor=request.param) as queue:
        yield queue


@pytest.fixture(params=["memory:", "{}/q.db"])
def queue(request, tmp_path):
    with TaskQueue(request.param.format(tmp_path), HANDLERS, 2, executor="thread") as queue:
        yield queue


@pytest.fixture(params=["memory:", "{}/q.db"])
def manager(request, tmp_path):
    with QueueManager(request.param.format(tmp_path)) as manager:
        yield manager


# --- results go to the children


@pytest.mark.parametrize("type", ["total", "total_async"])
def test_a_chord_passes_all_results_to_its_last_task(any_queue, type):
    flow = any_queue.flow(chord((step("value", n) for n in range(20)), step(type)))
    assert flow.result(WAIT) == sum(range(20))
    assert (flow.status, flow.progress, flow.counts["completed"]) == ("completed", 100.0, 21)


def test_parents_have_the_order_in_which_the_child_names_them(any_queue):
    flow = any_queue.flow(
        {"z": step("value", {"n": 1}), "a": step("value", None), "both": step("tell", after=["z", "a"])}
    )
    assert list(flow.result(WAIT)["results"].items()) == [("z", {"n": 1}), ("a", None)]


def test_outside_a_flow_parents_are_named_by_their_ids(any_queue):
    parents = any_queue.add_many([{"type": "value", "payload": n} for n in range(2)])
    child = any_queue.add("tell", after=parents)
    assert child.result(WAIT) == {"results": {handle.id: n for n, handle in enumerate(parents)}, "missing": {}}


def test_a_task_without_parents_has_none(any_queue):
    assert any_queue.add("tell").result(WAIT) == {"results": {}, "missing": {}}


def test_every_attempt_of_a_child_gets_the_results_of_its_parents(any_queue):
    graph = chain(step("value", 5), step("total"), step("total"))
    assert any_queue.flow(graph).result(WAIT) == 5
    with pytest.raises(TaskFailed, match="no result of 'missing': there is no parent of this name; there are: 0"):
        any_queue.flow(chain(step("value", 5), step("ask_for", "missing", retry_delay=0))).result(WAIT)


def test_a_child_that_runs_regardless_learns_which_parent_failed(any_queue):
    flow = any_queue.flow(
        chord(
            [step("value", 1), step("fail", id="bad", max_attempts=1)],
            step("tell", on_parent_failure="run"),
        )
    )
    reason = flow.result(WAIT)
    assert reason == {"results": {"0": 1}, "missing": {"bad": "it is failed: ValueError: no"}}
    assert flow.status == "failed"


@pytest.mark.parametrize(
    ("on_parent_failure", "reason"), [("run", "no longer stored"), ("fail", "ParentFailed: its parent .* is cancelled")]
)
def test_a_missing_parent_is_reported_to_the_child(any_queue, on_parent_failure, reason):
    parents = any_queue.add_many([{"type": "value", "payload": n} for n in range(2)])
    any_queue.join(WAIT)
    options = {"max_attempts": 1, "on_parent_failure": on_parent_failure}
    child = any_queue.add("ask_for", parents[0].id, after=parents, delay=0.3, **options)
    if any_queue._inline:
        pytest.skip("it has run already")
    any_queue.delete(parents[0].id)
    with pytest.raises(TaskFailed, match=reason):
        child.result(WAIT)


def test_results_that_are_too_large_together_fail_the_child_with_advice(tmp_path):
    with TaskQueue(tmp_path / "q.db", HANDLERS, 2, executor="thread", max_parents=1000) as queue:
        fits = queue.flow(chord([step("large", 400) for _ in range(2)], step("tell")))
        assert len(fits.result(WAIT)["results"]) == 2
        flow = queue.flow(chord([step("large", 400) for _ in range(3)], step("tell")))
        with pytest.raises(TaskFailed, match="3 parents have more than 1,000 bytes"):
            flow.result(WAIT)
        assert flow["3"].task.attempts == 1


def test_a_store_failure_while_results_are_read_loses_no_task(monkeypatch):
    """Claimed tasks go back without costing an attempt, and run when the store is back."""

    class Scripted:
        def __init__(self):
            self.has = []

        def capacity(self):
            yield 9, frozenset({"a"})

        def dispatch(self, tasks, parents=None):
            self.has.append(([task.id for task in tasks], parents))

        def poll(self):
            return []

        def deadline(self):
            return None

        def workers(self):
            return []

    store, pool = MemoryStore(), Scripted()
    loop = Loop(store, [WorkerGroup(Pool(2), pool)], Emitter(), Waiters(), types=lambda: {"a"})
    store.add([Task(type="a", id="p"), Task(type="a", id="c", after=("p",)), Task(type="a", id="x", run_at=NOW)])
    (parent,) = store.claim("n", 1, 30, NOW - 1, {"a"})
    store.update([(succeed(parent, 7, NOW), ())])

    def away(ids):
        raise StoreError("away")

    monkeypatch.setattr(store, "get", away)
    loop.turn(NOW)
    monkeypatch.undo()
    assert pool.has == []
    assert not loop.claimed
    loop.turn(NOW + 1)
    ((ids, parents),) = pool.has
    assert sorted(ids) == ["c", "x"]
    assert list(parents) == ["c"]
    assert Parents.of(parents["c"]) == {"p": 7}
    assert {task.attempts for task in store.get(["c", "x"])} == {1}
    store.close()


# --- the whole of it


def test_unknown_parents_and_cycles_are_refused_at_add_and_nothing_is_stored(manager):
    with pytest.raises(InvalidTask, match="'typo'"):
        manager.flow({"a": step("value"), "b": step("value", after=["typo"])})
    with pytest.raises(InvalidTask, match="cycle"):
        manager.flow({"a": step("value", after=["b"]), "b": step("value", after=["a"])})
    assert manager.stats().total == 0


@pytest.mark.parametrize("wrong", ["a.b", "", "a b", "ü"])
def test_an_invalid_flow_id_is_refused(manager, wrong):
    with pytest.raises(InvalidTask, match="id"):
        manager.flow(group(step("value")), id=wrong)


def test_a_flow_is_found_again_by_its_id_and_only_its_tasks(manager):
    flows = [manager.flow(group(*[step("value")] * n), id=name) for n, name in ((3, "night"), (1500, "nighter"))]
    other = manager.add("value")
    for flow in flows:
        again = manager.get_flow(flow.id)
        assert (again.ids, len(again)) == (flow.ids, len(flow))
    assert other.id not in flows[0].ids
    with pytest.raises(UnknownTask, match="no flow has the id 'nigh'"):
        manager.get_flow("nigh")


def test_adding_a_flow_again_returns_the_existing_flow(manager):
    first = manager.flow(chain(step("value", 1), step("value", 2)), id="once")
    assert manager.flow(chain(step("value", 1), step("value", 2)), id="once").ids == first.ids
    assert manager.stats().total == 2


def test_a_failure_fails_all_descendants_and_result_raises_the_first_one(queue):
    flow = queue.flow(chain(step("value", 1), step("fail", max_attempts=1), step("total"), step("total")))
    with pytest.raises(TaskFailed, match="ValueError: no") as caught:
        flow.result(WAIT)
    assert caught.value.task.id == flow["1"].id
    assert (flow.status, flow.counts["failed"], flow.results()) == ("failed", 3, {"0": 1})


def test_a_flow_is_cancelled_as_a_whole(queue):
    flow = queue.flow(chain(group(*[step("sleep", 600) for _ in range(4)]), step("total"), step("total")))
    received = []
    queue.on("task:cancelled", lambda event: received.append(event.task.id))
    assert flow.status == "running"
    assert flow.cancel() == 6
    assert (flow.status, flow.cancel()) == ("cancelled", 0)
    with pytest.raises(TaskCancelled, match=flow.id):
        flow.result(WAIT)
    queue.events.catch_up()
    assert sorted(received) == sorted(flow.ids)


def test_retry_starts_the_failed_tasks_of_a_flow_and_their_descendants(queue):
    fixed = threading.Event()

    def sometimes(payload, context):
        if not fixed.is_set():
            raise OSError("not yet")
        return 3

    queue.register("sometimes", sometimes)
    flow = queue.flow(chain(step("value", 1), step("sometimes", max_attempts=1), step("total"), step("total")))
    assert flow.wait(WAIT) == "failed"
    fixed.set()
    assert flow.retry() == 3
    assert flow.result(WAIT) == 3
    assert flow["0"].task.attempts == 1  # what had completed did not run again


@pytest.mark.parametrize("executor", ["process", "thread"])
@pytest.mark.parametrize("runs", [False, True], ids=["new", "running"])
def test_a_flow_that_is_cancelled_and_at_once_retried_keeps_its_new_attempts(executor, runs, tmp_path):
    """On a new queue the loop usually claims the new attempts before it learns of the cancel."""
    steps = group(*[step("wait_for_file", str(tmp_path / "go")) for _ in range(2)])
    for _ in range(10 if executor == "thread" else 2):
        with TaskQueue("memory:", HANDLERS, 2, executor=executor) as queue:
            flow = queue.flow(chain(steps, step("tell")))
            while runs and flow.counts["processing"] < 2:
                time.sleep(0.005)
            assert (flow.cancel(), flow.retry()) == (3, 3)
            (tmp_path / "go").touch()
            assert flow.wait(WAIT) == "completed"
            assert [(task.attempts, task.interruptions) for task in flow.tasks()] == [(1, 0)] * 3
        (tmp_path / "go").unlink()


def test_progress_counts_ended_and_running_tasks(queue):
    flow = queue.flow(chain(step("value", 1), step("progress_and_wait", 600)))
    give_up_at = time.monotonic() + WAIT
    while flow.progress < 75:
        assert time.monotonic() < give_up_at
        time.sleep(0.01)
    with pytest.raises(TimeoutError, match="1 of 2 tasks"):
        flow.wait(0.01)
    flow.cancel()


def test_the_result_of_a_flow_with_several_last_tasks_is_a_list(queue):
    assert queue.flow(chain(step("value", 1), group(step("value", 2), step("value", 3)))).result(WAIT) == [2, 3]


def test_waiting_for_a_flow_survives_the_delete_of_a_task(queue):
    flow = queue.flow(group(step("value", 1), step("value", 2, delay=600)))
    threading.Timer(0.2, queue.delete, [flow["1"].id]).start()
    assert flow.wait(WAIT) == "completed"


def test_a_task_that_is_not_in_the_flow_is_refused_by_name(manager):
    flow = manager.flow(group(step("value")))
    with pytest.raises(UnknownTask, match="no task 'x'"):
        flow["x"]


@pytest.mark.long
def test_a_graph_of_ten_thousand_tasks_is_added_in_one_call_and_cancelled_in_one(tmp_path):
    with QueueManager(tmp_path / "q.db") as manager:
        layer = [step("value", n) for n in range(4999)]
        flow = manager.flow(chain(step("value"), group(*layer), step("total"), group(*layer)))
        assert (flow.counts["pending"], flow.counts["blocked"]) == (1, 9999)
        assert flow.cancel() == 10_000
