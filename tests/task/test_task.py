"""Task and its transitions: pure, checked, and every illegal one refused by name."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from dtq.errors import IllegalTransition, InvalidTask
from dtq.task.codec import encoded, to_json
from dtq.task.model import MAX_HISTORY, MAX_INTERRUPTIONS, STATE, TERMINAL, ErrorInfo, Status, Task, new_id
from dtq.task.transitions import backoff, cancel, end_doomed, fail, interrupt, prioritise, release, revive, succeed

ERROR = ErrorInfo("ValueError", "no")


def never() -> float:
    raise AssertionError("chance was asked for without need")


def running(**options: object) -> Task:
    given = {"attempts": 1, "started_at": 5.0, "worker": "n1", "version": 2, "status": Status.PROCESSING, **options}
    return Task(type="a", id="t", **given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("policy", "delays"),
    [("exponential", [2, 4, 8, 16]), ("linear", [2, 4, 6, 8]), ("constant", [2, 2, 2, 2])],
)
def test_a_retry_delay_of_2_gives_the_documented_delays(policy, delays):
    task = Task(type="a", retry_delay=2, retry_backoff=policy)
    assert [backoff(task, n) for n in (1, 2, 3, 4)] == delays


@given(st.integers(1, 10**6), st.floats(0, 1), st.floats(0, 1), st.sampled_from(["exponential", "linear", "constant"]))
def test_a_delay_is_never_over_its_cap_nor_shortened_by_more_than_its_jitter(attempt, jitter, chance, policy):
    task = Task(type="a", retry_delay=3, retry_backoff=policy, retry_jitter=jitter, retry_cap=100)
    full = backoff(replace(task, retry_jitter=0), attempt)
    assert full * (1 - jitter) - 1e-9 <= backoff(task, attempt, lambda: chance) <= full <= 100


def test_ids_are_ordered_by_time_and_unlike_each_other():
    ids = [new_id(t / 1000) for t in range(1_700_000_000_000, 1_700_000_001_000)]
    assert ids == sorted(ids)
    assert len({i[16:] for i in ids}) == 1000  # the 64 random bits


def test_a_process_that_was_forked_does_not_draw_the_ids_of_its_parent():
    program = (
        "from dtq.task.model import new_id; import os; "
        "new_id(0); os.fork(); os.write(1, new_id(0)[16:].encode() + b' ')"
    )
    drawn = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert len(drawn) == len(set(drawn)) == 2


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("type", ""), ("type", "a b"), ("type", 3), ("type", "x" * 201), ("queue", "../q"), ("id", "a\nb"),
        ("priority", 1001), ("priority", 1.5), ("priority", True), ("max_attempts", 0), ("max_attempts", 10**30),
        ("timeout", 0), ("timeout", -1), ("timeout", math.nan), ("timeout", math.inf), ("timeout", "30"),
        ("retry_delay", -0.1), ("retry_backoff", "random"), ("retry_jitter", 2), ("run_at", -5), ("run_at", math.inf),
        ("expires", math.nan), ("key", ""), ("key", "a\x00"), ("limit_key", None), ("after", ["x"]), ("webhook", "http://x"),
        ("on_parent_failure", "maybe"),
    ],
)  # fmt: skip
def test_an_option_out_of_bounds_is_refused_by_name_and_value(field, value):
    with pytest.raises(InvalidTask) as caught:
        Task(**{"type": "a", field: value})
    assert str(caught.value).startswith(f"{field} is {value!r}"[:60])
    assert "allowed: " in str(caught.value)


def test_success_keeps_the_result_and_ends_the_lease():
    done = succeed(running(lease_until=9.0), {"x": 1}, 7.0)
    assert (done.status, done.result, done.progress, done.finished_at, done.lease_until) == (
        "completed",
        {"x": 1},
        100,
        7.0,
        None,
    )


def test_a_failure_is_retried_after_its_backoff_until_the_attempts_are_used_up():
    task = running(max_attempts=2, retry_delay=3)
    again = fail(task, ERROR, 10.0, never)
    assert (again.status, again.run_at, again.error, again.finished_at) == ("retrying", 13.0, ERROR, None)
    last = fail(replace(again, status=Status.PROCESSING, attempts=2), ERROR, 20.0, never)
    assert (last.status, last.finished_at) == ("failed", 20.0)
    assert [(a.number, a.finished_at) for a in last.history] == [(1, 10.0), (2, 20.0)]


def test_a_final_failure_is_not_retried():
    assert fail(running(), ERROR, 10.0, never, final=True).status == "failed"


def test_history_keeps_the_latest_attempts_only():
    task = running(max_attempts=1000)
    for n in range(1, MAX_HISTORY + 10):
        task = replace(fail(replace(task, attempts=n), ERROR, n, never), status=Status.PROCESSING)
    assert [a.number for a in task.history] == list(range(10, MAX_HISTORY + 10))


def test_an_interruption_costs_no_attempt_until_the_task_is_suspect():
    task = running(max_attempts=1)
    for n in range(1, MAX_INTERRUPTIONS):
        task = interrupt(task, 10.0)
        assert (task.status, task.attempts, task.interruptions) == ("pending", 0, n)
        task = replace(task, status=Status.PROCESSING, attempts=1)
    parked = interrupt(task, 10.0)
    assert (parked.status, parked.error.type, parked.interruptions) == ("failed", "Interrupted", MAX_INTERRUPTIONS)


def test_a_released_task_is_as_it_was_before_the_claim():
    free = release(running(run_at=3.0))
    assert (free.status, free.attempts, free.worker, free.run_at, free.interruptions) == ("pending", 0, None, 3.0, 0)


def test_doomed_tasks_end_as_their_doom_says():
    assert end_doomed(running(doom="expired"), 9.0).status == "cancelled"
    orphan = end_doomed(running(doom="its parent p is failed"), 9.0)
    assert (orphan.status, orphan.error.type) == ("failed", "ParentFailed")


def test_a_revived_task_has_all_its_attempts_and_remembers_the_old_ones():
    failed = fail(running(max_attempts=1), ERROR, 10.0, never)
    again = revive(failed, 20.0)
    assert (again.status, again.attempts, again.run_at, again.error, len(again.history)) == (
        "pending",
        0,
        20.0,
        None,
        1,
    )


TRANSITIONS = {
    "succeed": lambda t: succeed(t, None, 1.0),
    "fail": lambda t: fail(t, ERROR, 1.0, lambda: 0.5),
    "release": release,
    "interrupt": lambda t: interrupt(t, 1.0),
    "cancel": lambda t: cancel(t, 1.0),
    "revive": lambda t: revive(t, 1.0),
    "prioritise": lambda t: prioritise(t, 7),
}
LEGAL = {
    "succeed": {"processing"}, "fail": {"processing"}, "release": {"processing"}, "interrupt": {"processing"},
    "cancel": {"blocked", "pending", "processing", "retrying"}, "revive": {"failed", "cancelled"},
    "prioritise": {"blocked", "pending", "retrying"},
}  # fmt: skip


@pytest.mark.parametrize("name", TRANSITIONS)
@pytest.mark.parametrize("status", list(Status))
def test_a_transition_is_legal_from_its_statuses_only_and_changes_nothing_but_state(name, status):
    task = running(status=status)
    if status not in LEGAL[name]:
        with pytest.raises(IllegalTransition) as caught:
            TRANSITIONS[name](task)
        assert f"is {status}: it " in str(caught.value)
        return
    after = TRANSITIONS[name](task)
    unchanged = set(Task.__struct_fields__) - set(STATE)
    assert all(getattr(after, field) == getattr(task, field) for field in unchanged)
    assert (after.finished_at is not None) == (after.status in TERMINAL)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(JSON)
def test_json_data_comes_back_as_it_went_in(value):
    assert Task(type="a", payload=encoded(value, 10**6, "payload")).payload == value


@pytest.mark.parametrize("value", [math.nan, {"a": [1, math.inf]}, object(), {(1, 2): 3}, "\ud800", {"x": object()}])
def test_what_json_cannot_carry_is_refused(value):
    with pytest.raises(InvalidTask):
        to_json(value)


def test_a_circle_in_the_payload_is_refused():
    circle: list[object] = []
    circle.append(circle)
    with pytest.raises(InvalidTask):
        to_json(circle)


def test_what_is_too_large_is_refused_with_both_sizes():
    with pytest.raises(InvalidTask, match=r"payload is 1,002 bytes of JSON, more than the limit of 1,000"):
        encoded("x" * 1000, 1000, "payload")
