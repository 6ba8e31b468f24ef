"""The loop, stepped by hand: a memory store, a scripted pool, and a clock that the test sets."""

from __future__ import annotations

import pytest
from msgspec.structs import replace
from stepped_loop import NOW, STORES, ScriptedPool, add, make, opened, status

from dtq.errors import StoreError
from dtq.queue.coalescer import Coalescer
from dtq.stores.memory.store import MemoryStore
from dtq.stores.shared.overlap import run_offered_work
from dtq.task.model import ErrorInfo
from dtq.task.transitions import cancel, revive, succeed


@pytest.fixture
def store():
    store = MemoryStore()
    yield store
    store.close()


@pytest.fixture
def pool():
    return ScriptedPool()


def test_a_turn_claims_what_the_workers_can_take_and_a_later_turn_ends_it(store, pool):
    loop = make(store, pool)
    add(store, "x", "y", "z")
    loop.turn(NOW)
    assert [task.id for task in pool.tasks] == ["x", "y"]
    pool.finish(pool.tasks[0], result=7)
    loop.turn(NOW + 1)
    assert status(store, "x", "y", "z") == ["completed", "processing", "processing"]
    assert store.get(["x"])[0].worker == f"{loop.id}/w1"


def test_an_idle_turn_returns_when_the_next_task_is_due(store, pool):
    loop = make(store, pool)
    add(store, "x", run_at=NOW + 0.25)
    assert loop.turn(NOW) == NOW + 0.25
    assert pool.tasks == []
    loop.turn(NOW + 0.25)
    assert [task.id for task in pool.tasks] == ["x"]


def test_a_failure_waits_for_its_backoff_with_the_given_chance(store, pool):
    loop = make(store, pool)
    add(store, "x", retry_delay=8, retry_jitter=0.5)
    loop.turn(NOW)
    pool.finish(pool.tasks[0], error=ErrorInfo("ValueError"))
    loop.turn(NOW + 1)
    assert status(store, "x") == ["retrying"]
    assert store.get(["x"])[0].run_at == NOW + 0.5 + 8 * 0.75


def test_a_task_that_comes_back_unstarted_costs_no_attempt(store, pool):
    loop = make(store, pool)
    add(store, "x", max_attempts=1)
    loop.turn(NOW)
    loop.drain()
    loop.turn(NOW + 1)
    task = store.get(["x"])[0]
    assert (task.status, task.attempts, loop.is_drained()) == ("pending", 0, True)


@pytest.mark.parametrize("fails", [False, True])
def test_reports_that_come_during_a_store_call_are_stored_in_the_next_turn_which_is_due_now(store, pool, fails):
    """Nothing is lost or announced twice if the store then fails."""
    loop = make(store, pool)
    add(store, "x", "y")
    loop.turn(NOW)
    x, y = pool.tasks
    pool.finish(x, result=1)
    update, times = store.update, 0

    def busy(outcomes):
        nonlocal times
        times += 1
        if times == 1:
            pool.finish(y, result=2)
            run_offered_work()
            if fails:
                raise StoreError("away")
        return update(outcomes)

    store.update = busy
    due = loop.turn(NOW + 0.5)
    assert status(store, "x", "y") == (["processing"] * 2 if fails else ["completed", "processing"])
    assert (due > NOW + 0.5) if fails else (due == NOW + 0.5)
    loop.turn(NOW + 0.7)
    assert [task.result for task in store.get(["x", "y"])] == [1, 2]
    assert times == 2


def test_a_heartbeat_renews_leases_and_a_lost_attempt_is_stopped_and_ignored(store, pool):
    loop = make(store, pool, lease=10)
    add(store, "x", "y")
    loop.turn(NOW)
    x, y = pool.tasks
    for second in range(1, 30):
        loop.turn(NOW + second)
    assert store.get(["x"])[0].lease_until == NOW + 29 + 10
    store.delete(["y"])
    (taken,) = store.reap("other", 1, 10, NOW + 40)
    loop.turn(NOW + 40)
    assert [task.id for task in pool.stopped] == [taken.id]
    pool.finish(x if taken.id == "x" else y, result=1)
    loop.turn(NOW + 41)
    assert status(store, taken.id) == ["processing"]
    assert store.get([taken.id])[0].worker == "other"


def test_a_task_claimed_before_a_freeze_goes_back_and_is_claimed_again(store, pool):
    seconds, claim = [0.0], store.claim

    def freeze_and_claim(worker, n, lease, now, types, *rest):
        seconds[0] += 20.0 if "a" in types else 0.0
        return claim(worker, n, lease, now, types, *rest)

    loop = make(store, pool, monotonic=lambda: seconds[0])
    loop.turn(NOW)
    add(store, "1")
    add(store, "2", expires=NOW + 0.5)
    store.claim = freeze_and_claim
    assert loop.turn(NOW + 1) == NOW + 1
    store.claim = claim
    assert pool.tasks == []
    assert store.get(["1"])[0].lease_until == NOW + 31
    loop.turn(NOW + 21)
    (task,) = pool.tasks
    assert (task.id, task.attempts, task.lease_until) == ("1", 1, NOW + 51)
    assert store.get(["2"])[0].status == "cancelled"


def test_a_claim_uses_the_current_time_however_long_the_commit_before_it_took(store, pool):
    """With an earlier time, a rate limit would let too many tasks start."""
    seconds, update = [0.0], store.update
    loop = make(store, pool, monotonic=lambda: seconds[0])
    store.set_lane(type="a", rate=1)
    add(store, *(f"{n}" for n in range(9)))

    def slowly(outcomes):
        seconds[0] += 4.0
        return update(outcomes)

    loop.turn(NOW)
    (first,) = pool.tasks
    pool.finish(first)
    store.update = slowly
    loop.turn(NOW + 0.5)  # it is NOW + 4.5 when the second may start
    store.update = update
    pool.finish(pool.tasks[0])
    loop.turn(NOW + 5)
    assert len(pool.tasks) == 0
    loop.turn(NOW + 5.5)
    assert len(pool.tasks) == 1


def test_a_dead_nodes_task_is_interrupted_three_times_and_then_parked(store, pool):
    clock = [NOW]
    loop = make(store, ScriptedPool(room=0), lambda: clock[0], lease=10)
    add(store, "x", max_attempts=1)
    for death in range(1, 4):
        now = NOW + 100 * death
        assert [task.id for task in store.claim("doomed node", 1, 10, now, {"a"})] == ["x"]
        clock[0] = now + 50
        loop.turn(now + 50)
        task = store.get(["x"])[0]
        assert (task.interruptions, task.status) == (death, "failed" if death == 3 else "pending")
    assert task.error.type == "Interrupted"


def test_an_outcome_is_committed_and_announced_although_its_lease_has_run_out(store, pool):
    """After a leap of the clock, or a freeze, a node must not reap a task that it has completed itself."""
    loop = make(store, pool, lease=10)
    add(store, "x")
    loop.turn(NOW)
    pool.finish(pool.tasks[0], result=7)
    announced = []
    loop._events.on("*", lambda event: announced.append((event.name, event.task and event.task.version)))
    loop.turn(NOW + 60)
    loop._events.close()
    (task,) = store.get(["x"])
    assert (task.status, task.result, task.interruptions) == ("completed", 7, 0)
    assert ("task:completed", task.version) in announced


def test_outcomes_are_kept_while_the_store_is_away_and_announced_once_when_it_is_back(store, pool, monkeypatch, caplog):
    loop = make(store, pool)
    add(store, "x")
    loop.turn(NOW)
    pool.finish(pool.tasks[0], result=1)
    received = []
    loop._events.on("task:completed", lambda event: received.append(event.task.id))

    def away(*_):
        raise StoreError("the disk is full")

    monkeypatch.setattr(store, "update", away)
    pauses = [loop.turn(NOW + n) - (NOW + n) for n in range(8)]
    assert pauses[:5] == pytest.approx([0.05, 0.1, 0.2, 0.4, 0.8])
    assert caplog.text.count("the disk is full") == 1
    monkeypatch.undo()
    loop.turn(NOW + 9)
    loop._events.close()
    assert (status(store, "x"), received) == (["completed"], ["x"])


def test_if_results_of_parents_cannot_be_read_all_claimed_tasks_come_back(store, pool, monkeypatch):
    """It costs no attempt, because nothing has run. The tasks are claimed again when the store answers."""
    loop = make(store, pool)
    add(store, "parent")
    loop.turn(NOW)
    pool.finish(pool.tasks[0], result=1)
    add(store, "child", after=("parent",))
    add(store, "other")

    def away(ids):
        raise StoreError("the disk is gone")

    monkeypatch.setattr(store, "get", away)
    loop.turn(NOW + 1)
    assert (pool.tasks, loop.claimed) == ([], {})
    monkeypatch.undo()
    loop.turn(NOW + 2)
    assert {(task.id, task.attempts) for task in pool.tasks} == {("child", 1), ("other", 1)}
    assert set(loop.claimed) == {"child", "other"}


@pytest.mark.parametrize("room", [2, 0])
def test_health_is_the_time_since_the_store_last_answered(store, room, monkeypatch):
    """Both with free workers and with busy ones."""
    clock = [NOW]
    loop = make(store, ScriptedPool(room), monotonic=lambda: clock[0])

    def turn(at):
        clock[0] = at
        loop.turn(at)
        return loop.health()

    def away(*_):
        raise StoreError("the server is gone")

    assert loop.health() == float("inf")
    assert turn(NOW) == 0
    clock[0] = NOW + 0.5
    assert loop.health() == 0.5
    for name in ("claim", "heartbeat"):
        monkeypatch.setattr(store, name, away)
    assert [turn(NOW + n) for n in (5, 5.1, 9)] == pytest.approx([5, 5.1, 9])
    monkeypatch.undo()
    assert turn(NOW + 12) == 0


def test_old_tasks_are_cleaned_up_by_age(store, pool):
    loop = make(store, pool, cleanup_age=100)
    add(store, "x")
    loop.turn(NOW)
    pool.finish(pool.tasks[0])
    loop.turn(NOW + 1)
    loop.turn(NOW + 90)
    assert status(store, "x") == ["completed"]
    loop.turn(NOW + 200)
    assert status(store, "x") == []


def test_many_old_tasks_are_removed_in_steps_over_several_turns(store, pool):
    loop = make(store, ScriptedPool(room=0), cleanup_age=100)
    add(store, *(f"t{n:05}" for n in range(12_000)))
    store.update([(succeed(task, None, NOW), ()) for task in store.claim("n", 12_000, 30, NOW, {"a"})])
    loop.turn(NOW + 200)
    assert store.stats().total == 2000
    loop.turn(NOW + 201)
    assert store.stats().total == 0


def test_a_clock_that_is_set_back_does_not_stop_the_heartbeat(store, pool):
    loop = make(store, pool, lease=10)
    add(store, "x")
    loop.turn(NOW)
    loop.turn(NOW - 3600)
    assert store.get(["x"])[0].lease_until == NOW - 3600 + 10


def test_a_post_during_a_turn_makes_the_next_turn_due_at_once(store, pool):
    loop = make(store, pool)
    done = []
    poll = pool.poll
    pool.poll = lambda: (loop.post(lambda: done.append(1)), setattr(pool, "poll", poll), [])[2]
    assert loop.turn(NOW) == NOW
    loop.turn(NOW)
    assert done == [1]


# --- parents that are deleted right after the claim of their child ---------------------------------------------------


def with_ended_parent(store, **options):
    """Add the parent p and its child c, and complete the parent."""
    add(store, "p")
    add(store, "c", after=("p",), max_attempts=1, **options)
    (parent,) = store.claim("other", 1, 30, NOW, {"a"})
    store.update([(succeed(parent, 1, NOW), ())])


def after_claim_of(store, task_id, action):
    """Call `action` once, right after the first claim that returns this task."""
    claim = store.claim

    def claim_and_act(*args):
        tasks = claim(*args)
        if task_id in [task.id for task in tasks]:
            store.claim = claim
            action()
        return tasks

    store.claim = claim_and_act


@pytest.mark.parametrize("kind", STORES)
def test_a_child_whose_parent_is_deleted_after_the_claim_does_not_run(kind, tmp_path):
    store, pool = opened(kind, tmp_path), ScriptedPool()
    loop = make(store, pool)
    with_ended_parent(store)
    add(store, "x")
    after_claim_of(store, "c", lambda: store.delete(["p"]))
    for turn in range(4):
        loop.turn(NOW + turn / 10)
    assert [task.id for task in pool.tasks] == ["x"]
    (child,) = store.get(["c"])
    assert (child.status, child.attempts, child.error.type) == ("failed", 0, "ParentFailed")
    store.close()


@pytest.mark.parametrize("kind", STORES)
def test_a_child_that_runs_regardless_runs_once_without_the_deleted_parent(kind, tmp_path):
    store, pool = opened(kind, tmp_path), ScriptedPool()
    loop = make(store, pool)
    with_ended_parent(store, on_parent_failure="run")
    after_claim_of(store, "c", lambda: store.delete(["p"]))
    loop.turn(NOW)
    pool.finish(pool.tasks[0], result=1)
    loop.turn(NOW + 0.1)
    assert (status(store, "c"), store.get(["c"])[0].attempts) == (["completed"], 1)
    store.close()


@pytest.mark.parametrize("kind", STORES)
def test_a_revived_child_runs_without_the_parents_that_were_deleted_before(kind, tmp_path):
    store, pool = opened(kind, tmp_path), ScriptedPool()
    loop = make(store, pool)
    with_ended_parent(store)
    (child,) = store.get(["c"])
    store.update([(cancel(child, NOW), ())])
    store.delete(["p"])
    store.update([(revive(store.get(["c"])[0], NOW), ())])
    loop.turn(NOW)
    assert [task.id for task in pool.tasks] == ["c"]
    store.close()


@pytest.mark.parametrize("change", ["cancel", "cancel and revive", "delete"])
def test_a_child_that_changed_while_its_parent_was_deleted_does_not_run_in_the_old_version(store, pool, change):
    loop = make(store, pool)
    with_ended_parent(store)

    def interfere():
        (child,) = store.get(["c"])
        store.update([(cancel(child, NOW), ())])
        store.delete(["p"])
        if change == "cancel and revive":
            store.update([(revive(store.get(["c"])[0], NOW), ())])
        elif change == "delete":
            store.delete(["c"])

    after_claim_of(store, "c", interfere)
    loop.turn(NOW)
    assert (pool.tasks, loop.claimed) == ([], {})
    loop.turn(NOW + 0.1)
    assert [task.version for task in pool.tasks] == ([6] if change == "cancel and revive" else [])


def test_if_the_child_of_a_deleted_parent_cannot_be_read_all_claimed_tasks_come_back(store, pool, monkeypatch):
    loop = make(store, pool)
    with_ended_parent(store)
    add(store, "x")
    after_claim_of(store, "c", lambda: store.delete(["p"]))
    get = store.get

    def away_for_children(ids, **options):
        if "c" in ids:
            raise StoreError("the disk is gone")
        return get(ids, **options)

    monkeypatch.setattr(store, "get", away_for_children)
    loop.turn(NOW)
    assert (pool.tasks, loop.claimed) == ([], {})
    monkeypatch.undo()
    for turn in range(1, 4):
        loop.turn(NOW + turn)
    assert [(task.id, task.attempts) for task in pool.tasks] == [("x", 1)]
    assert store.get(["c"])[0].error.type == "ParentFailed"


# --- clocks that leap -------------------------------------------------------------------------------------------------


class Machine:
    """A wall clock that leaps, and a monotonic clock that does not."""

    def __init__(self):
        self.wall, self.ticks = NOW, 0.0

    def pass_time(self, seconds):
        self.wall += seconds
        self.ticks += seconds

    def sleep(self, seconds):
        self.wall += seconds


def two_nodes(store, machine, lease=5.0):
    pools = ScriptedPool(1), ScriptedPool(1)
    return pools, [make(store, pool, lambda: machine.ticks, lease=lease) for pool in pools]


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("lease", [1.0, 5.0, 30.0])
@pytest.mark.parametrize("leap", [1.1, 6.0, 3600.0, 1e7])
def test_living_nodes_keep_their_tasks_when_the_machine_has_slept(store, first, lease, leap):
    """Whichever node wakes up first, three times in a row, with half a second between their turns."""
    machine = Machine()
    pools, loops = two_nodes(store, machine, lease)
    add(store, "x", "y", max_attempts=1)
    order = [loops[first], loops[not first]]
    for _ in range(3):
        for _ in range(8):
            for loop in order:
                loop.turn(machine.wall)
                machine.pass_time(0.1)
        machine.sleep(leap)
        for loop in order:
            loop.turn(machine.wall)
            machine.pass_time(0.5)
    for pool in pools:
        pool.finish(pool.tasks[0], result=1)
    for loop in order:
        loop.turn(machine.wall)
    assert [(task.status, task.interruptions) for task in store.get(["x", "y"])] == [("completed", 0)] * 2


def test_the_lease_of_a_stopped_node_ends_also_after_the_machine_has_slept(store):
    machine = Machine()
    pools, (stopped, other) = two_nodes(store, machine)
    add(store, "x")
    stopped.turn(machine.wall)
    other.turn(machine.wall)
    machine.sleep(3600)
    other.turn(machine.wall)
    assert status(store, "x") == ["processing"]
    for _ in range(5):
        machine.pass_time(1)
        other.turn(machine.wall)
    assert [task.id for task in pools[1].tasks] == ["x"]
    assert store.get(["x"])[0].interruptions == 1
    stopped.turn(machine.wall)
    assert [task.id for task in pools[0].stopped] == ["x"]


def test_without_a_leap_an_expired_lease_is_taken_over_at_the_next_heartbeat(store):
    machine = Machine()
    pools, (stopped, other) = two_nodes(store, machine)
    add(store, "x")
    stopped.turn(machine.wall)
    for _ in range(6):
        machine.pass_time(1)
        other.turn(machine.wall)
    assert [task.id for task in pools[1].tasks] == ["x"]


def test_a_clock_that_is_set_back_after_a_leap_does_not_stop_the_take_over(store):
    machine = Machine()
    _, (stopped, other) = two_nodes(store, machine)
    add(store, "x")
    stopped.turn(machine.wall)
    machine.sleep(3600)
    other.turn(machine.wall)
    machine.sleep(-3600)
    for _ in range(7):
        machine.pass_time(1)
        other.turn(machine.wall)
    assert store.get(["x"])[0].worker.startswith(other.id)


def cancel_and_revive(store, task):
    """Cancel and revive the task, as another thread would. Return the cancelled task."""
    cancelled = replace(task, version=task.version + 1)
    assert store.update([(cancel(task, NOW), ())]) == {task.id}
    assert store.update([(revive(store.get([task.id])[0], NOW), ())]) == {task.id}
    return cancelled


@pytest.mark.parametrize("is_told_first", [True, False])
def test_a_task_that_is_retried_right_after_its_cancel_keeps_its_new_attempt(store, pool, is_told_first):
    """The loop learns of the cancel before it has claimed the new attempt, or only after."""
    loop = make(store, pool)
    add(store, "x")
    loop.turn(NOW)
    (old,) = pool.tasks
    cancelled = cancel_and_revive(store, old)
    if is_told_first:
        loop.post(lambda: loop.end_by_request(cancelled))
    loop.turn(NOW + 0.1)
    if not is_told_first:
        loop.post(lambda: loop.end_by_request(cancelled))
        loop.turn(NOW + 0.2)
    new = pool.tasks[-1]
    assert (new.version, list(loop.claimed.values())) == (5, [new])
    assert pool.stopped == [old]
    pool.finish(old, result="old")
    pool.finish(new, result="new")
    loop.turn(NOW + 0.3)
    assert store.get(["x"])[0].result == "new"


def test_a_waiting_task_that_is_cancelled_and_retried_runs_once(store, pool):
    loop = make(store, pool)
    add(store, "x")
    cancelled = cancel_and_revive(store, store.get(["x"])[0])
    loop.turn(NOW)
    loop.post(lambda: loop.end_by_request(cancelled))
    loop.turn(NOW + 0.1)
    assert (pool.stopped, [task.version for task in pool.tasks]) == ([], [4])
    pool.finish(pool.tasks[0])
    loop.turn(NOW + 0.2)
    assert status(store, "x") == ["completed"]


def test_an_earlier_attempt_that_is_still_tracked_is_stopped_when_the_next_is_claimed(store, pool):
    loop = make(store, pool)
    add(store, "x")
    loop.turn(NOW)
    (old,) = pool.tasks
    cancel_and_revive(store, old)
    loop.turn(NOW + 0.1)  # before any heartbeat has reported the loss
    assert pool.stopped == [old]
    assert [task.version for task in pool.tasks] == [2, 5]


def test_a_task_that_was_deleted_and_added_again_is_not_ended_by_its_old_attempt(store, pool):
    loop = make(store, pool)
    add(store, "x")
    loop.turn(NOW)
    (old,) = pool.tasks
    store.update([(cancel(old, NOW), ())])
    store.delete(["x"])
    add(store, "x", payload="new")
    pool.finish(old, result="old")
    loop.turn(NOW + 0.1)
    (new,) = pool.tasks
    assert (new.payload, status(store, "x")) == ("new", ["processing"])
    pool.finish(new, result="new")
    loop.turn(NOW + 0.2)
    assert store.get(["x"])[0].result == "new"


def test_the_outcome_of_a_lost_attempt_is_not_announced(store, pool):
    loop = make(store, pool)
    announced = []
    loop._events.on("*", lambda event: announced.append(event.name))
    add(store, "x", "y")
    loop.turn(NOW)
    x, y = pool.tasks
    update = store.update

    def busy(outcomes):  # x ends while y is committed, and its lease is over by then
        store.update = update
        pool.finish(x, result=1)
        run_offered_work()
        return update(outcomes)

    pool.finish(y, result=2)
    loop._heartbeat(NOW + 29)
    loop._interval = 100.0
    store.update = busy
    loop._next_heartbeat = NOW + 60
    loop._collect(NOW + 60)
    loop._commit(NOW + 60)
    loop._reap(NOW + 60)
    loop._commit(NOW + 60)
    loop._events.close()
    assert status(store, "x", "y") == ["pending", "completed"]
    assert announced.count("task:completed") == 1


# --- pauses: see also test_coalescer.py


class AlwaysOn(Coalescer):
    is_on = True

    def pause(self, now, found, held):
        return 0.005


def test_in_a_stream_a_turn_stores_and_claims_in_one_transaction_and_then_pauses(store, pool):
    calls = []
    for name in ("update", "claim", "exchange"):
        monitored = getattr(store, name)
        setattr(store, name, lambda *args, name=name, call=monitored: calls.append(name) or call(*args))
    loop = make(store, pool, coalescer=AlwaysOn())
    add(store, "x")
    assert loop.turn(NOW) == NOW + 0.005
    assert loop.is_pausing
    add(store, "y")
    pool.finish(pool.tasks[0], result=7)
    calls.clear()
    assert loop.turn(NOW + 0.005) == NOW + 0.01
    assert calls == ["exchange"]
    assert status(store, "x", "y") == ["completed", "processing"]
    assert [task.id for task in pool.tasks] == ["y"]


def test_a_pause_ends_by_the_next_deadline(store, pool):
    loop = make(store, pool, coalescer=AlwaysOn())
    add(store, "x", run_at=NOW + 0.002)
    assert loop.turn(NOW) == NOW + 0.002
    assert loop.turn(NOW + 0.998) == NOW + 1.0
    pool.deadline = lambda: 0.001
    assert loop.turn(NOW + 1.0) == pytest.approx(NOW + 1.001)


def test_a_backlog_never_waits(store, pool):
    loop = make(store, pool, coalescer=AlwaysOn())
    add(store, "x", "y", "z")
    loop.turn(NOW)
    assert not loop.is_pausing


def test_an_exchange_that_fails_loses_neither_outcomes_nor_claims(store, pool):
    loop = make(store, pool, coalescer=AlwaysOn())
    add(store, "x")
    loop.turn(NOW)
    add(store, "y")
    pool.finish(pool.tasks[0], result=7)
    exchange, store.exchange = store.exchange, lambda *_: (_ for _ in ()).throw(StoreError("away"))
    loop.turn(NOW + 0.1)
    assert (status(store, "x", "y"), loop.is_pausing) == (["processing", "pending"], False)
    store.exchange = exchange
    loop.turn(NOW + 0.2)
    assert status(store, "x", "y") == ["completed", "processing"]
    assert [task.id for task in pool.tasks] == ["y"]


def test_a_store_without_exchange_gets_both_calls(store, pool):
    class Plain:
        def __getattr__(self, name):
            if name == "exchange":
                raise AttributeError(name)
            return getattr(store, name)

    loop = make(Plain(), pool, coalescer=AlwaysOn())
    add(store, "x")
    loop.turn(NOW)
    add(store, "y")
    pool.finish(pool.tasks[0])
    loop.turn(NOW + 0.1)
    assert status(store, "x", "y") == ["completed", "processing"]
