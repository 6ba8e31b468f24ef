"""Lanes: pauses, limits and fairness."""

from __future__ import annotations

from collections import Counter

from dtq.policy.limits import Limit
from dtq.stores.protocol import Store
from dtq.testing.conformance.kit import NOW, done, end, expect, ids, job, jobs, promise, reap, start, take, the


@promise("lanes")
def check_a_paused_lane_is_not_served(store: Store) -> None:
    """No task of a paused queue, type or key is claimed. Others are, and running tasks may end."""
    store.add([job("run", queue="q")])
    (running,) = start(store, "run")
    store.add([job("a", queue="q"), job("b", type="mail"), job("c", limit_key="t"), job("d")])
    for selector in ({"queue": "q"}, {"type": "mail"}, {"key": "t"}):
        store.set_lane(**selector, paused=True)  # type: ignore[arg-type]
    expect(ids(take(store, types={"job", "mail"})), ["d"], "claimed")
    expect(end(store, done(running)), {"run"}, "accepted from the paused queue")


@promise("lanes")
def check_a_resumed_lane_is_served_again(store: Store) -> None:
    """After a resume, the tasks of a paused lane are claimed, and waiting has cost no attempt."""
    store.set_lane(queue="default", paused=True)
    store.add([job("a"), job("b", priority=1)])
    expect(ids(take(store)), [], "claimed while paused")
    store.set_lane(queue="default", paused=False)
    expect([(task.id, task.attempts) for task in take(store)], [("b", 1), ("a", 1)], "ids and attempts")


@promise("lanes")
def check_a_pause_may_name_queue_and_type_together(store: Store) -> None:
    """A limit applies only to lanes that match everything it names."""
    store.set_lane(queue="q", type="mail", paused=True)
    store.add([job("a", queue="q"), job("b", type="mail"), job("c", queue="q", type="mail")])
    expect(sorted(ids(take(store, types={"job", "mail"}))), ["a", "b"], "claimed")


@promise("lanes")
def check_a_rate_spaces_the_starts(store: Store) -> None:
    """With a rate of 2 a second, a task starts every half second, however many a claim asks for."""
    store.set_lane(type="job", rate=2)
    store.add(jobs("a b c d"))
    got = [ids(take(store, now=NOW + t)) for t in (0, 0.3, 0.5, 0.9, 1.0)]
    expect(got, [["a"], [], ["b"], [], ["c"]], "claimed after 0, 0.3, 0.5, 0.9 and 1 s")


@promise("lanes")
def check_a_burst_is_exact_and_refills(store: Store) -> None:
    """After any quiet time, exactly `burst` tasks may start at once; then the rate applies."""
    store.set_lane(type="job", rate=3, burst=5)
    store.add([job(f"{n:02}") for n in range(20)])
    got = [len(take(store, now=NOW + t)) for t in (0, 0, 1, 1, 100, 100 + 1 / 3)]
    expect(got, [5, 0, 3, 0, 5, 1], "tasks claimed after 0, 0, 1, 1, 100 and 100.33 s")


@promise("lanes")
def check_a_rate_counts_from_when_a_task_was_due(store: Store) -> None:
    """A claim by a clock a moment behind counts for a rate from the due time; by one far behind, from the claim."""
    store.set_lane(type="job", rate=2, burst=2)
    store.add(jobs("a b c d e", run_at=NOW, created_at=NOW))
    got = [ids(take(store, now=NOW + t)) for t in (-100, -0.25, 0.25, 0.5)]
    expect(got, [["a", "b"], ["c", "d"], [], ["e"]], "claimed after -100, -0.25, 0.25 and 0.5 s")


@promise("lanes")
def check_a_new_rate_counts_at_once(store: Store) -> None:
    """A new rate starts without the debt of the old one."""
    store.set_lane(type="job", rate=0.001)
    store.add(jobs("a b c"))
    take(store)
    store.set_lane(type="job", rate=1)
    expect(ids(take(store, now=NOW + 1)), ["b"], "claimed a second later")
    store.set_lane(type="job", rate=0)
    expect(ids(take(store, now=NOW + 1)), ["c"], "claimed without a limit")


@promise("lanes")
def check_max_running_counts_over_all_its_lanes(store: Store) -> None:
    """A concurrency limit counts running tasks in all lanes that it names, and admits one more when one ends."""
    store.add([job("a", type="mail")])
    take(store, types={"mail"})
    store.set_lane(queue="default", max_running=3)
    store.add([*jobs("b c"), job("d", type="mail"), job("e", limit_key="t"), job("f", queue="q")])
    claimed = take(store, types={"job", "mail"})
    expect([len(claimed), "f" in ids(claimed)], [3, True], "number claimed, and whether the other queue was among them")
    end(store, done(the(store, "a")))
    expect(len(take(store, types={"job", "mail"})), 1, "number claimed when one has ended")


@promise("lanes")
def check_a_reaped_task_still_counts_as_running(store: Store) -> None:
    """A task that is taken over counts under a concurrency limit until it ends."""
    store.set_lane(type="job", max_running=1)
    store.add(jobs("a b"))
    take(store)
    (reaped,) = reap(store, "a", NOW + 50)
    expect(ids(take(store, now=NOW + 50)), [], "claimed")
    end(store, done(reaped))
    expect(ids(take(store, now=NOW + 50)), ["b"], "claimed when it has ended")


@promise("lanes")
def check_a_limit_for_each_key(store: Store) -> None:
    """A limit with the key "*" applies to each key on its own, and not to tasks without a key."""
    store.set_lane(key="*", max_running=1)
    store.add([job(f"{key or 'none'}{n}", limit_key=key) for key in ("x", "y", "") for n in (1, 2)])
    expect(sorted(ids(take(store))), ["none1", "none2", "x1", "y1"], "claimed")
    end(store, done(the(store, "y1")))
    expect(ids(take(store)), ["y2"], "claimed when the one of y has ended")


@promise("lanes")
def check_a_rate_for_each_key(store: Store) -> None:
    """A rate with the key "*" counts each key on its own."""
    store.set_lane(key="*", rate=1)
    store.add([job(f"{key}{n}", limit_key=key) for key in "xy" for n in (1, 2)])
    got = [sorted(ids(take(store, now=NOW + t))) for t in (0, 0.5, 1)]
    expect(got, [["x1", "y1"], [], ["x2", "y2"]], "claimed after 0, 0.5 and 1 s")


@promise("lanes")
def check_all_limits_of_a_lane_must_be_open(store: Store) -> None:
    """A lane under several limits is served only while all of them allow it."""
    store.set_lane(type="job", max_running=2)
    store.set_lane(queue="default", rate=1)
    store.set_lane(key="t", paused=True)
    store.add([*jobs("a b c"), job("t", limit_key="t", priority=9)])
    got = [ids(take(store, now=NOW + t)) for t in (0, 1, 2)]
    expect(got, [["a"], ["b"], []], "claimed after 0, 1 and 2 s")


@promise("lanes")
def check_waiting_for_a_limit_costs_nothing(store: Store) -> None:
    """Waiting for a limit costs a task no attempt and no version."""
    store.set_lane(type="job", max_running=1)
    store.add(jobs("a b"))
    before = the(store, "b")
    for t in range(3):
        take(store, now=NOW + t)
    expect(the(store, "b"), before, "the task that waits")


@promise("lanes")
def check_next_due_says_when_a_rate_opens(store: Store) -> None:
    """When a rate holds tasks back, next_due returns when the next one may start."""
    store.set_lane(type="job", rate=0.5)
    store.add(jobs("a b"))
    take(store)
    due = store.next_due(NOW)
    expect(due, NOW + 2, "next_due")
    expect(ids(take(store, now=NOW + 2)), ["b"], "claimed at that time")


@promise("lanes")
def check_limits_can_be_seen_and_taken_away(store: Store) -> None:
    """The statistics show every limit. Values that a call does not name stay, and 0 removes one."""
    store.set_lane(queue="q", rate=5, burst=2)
    store.set_lane(key="*", max_running=3)
    store.set_lane(queue="q", paused=True, max_running=1)
    shown = {limit.selector: limit for limit in store.stats().limits}
    wanted = [Limit("q", None, None, True, 5, 2, 1), Limit(None, None, "*", False, 0, 1, 3)]
    expect(shown, {limit.selector: limit for limit in wanted}, "limits")
    store.set_lane(queue="q", paused=False, rate=0, max_running=0)
    expect([limit.selector for limit in store.stats().limits], [(None, None, "*")], "limits that are left")


@promise("lanes")
def check_keys_are_served_in_turn(store: Store) -> None:
    """Two keys take turns, however many tasks one of them has waiting."""
    store.add([job(f"big{n:02}", limit_key="big") for n in range(20)])
    store.add([job(f"small{n}", limit_key="small") for n in range(3)])
    order = [task.limit_key for _ in range(3) for task in take(store, 2)]
    expect(
        [order[:2].count("small"), order[2:4].count("small"), order[4:].count("small")],
        [1, 1, 1],
        "small ones in each turn of 2",
    )
    expect(len(take(store)), 17, "claimed of the rest")


@promise("lanes")
def check_keys_are_served_in_turn_one_by_one(store: Store) -> None:
    """Keys take turns from claim to claim, not only within one."""
    store.add(
        [job(f"{key}{n}", limit_key=key, run_at=at) for key, at in (("x", 1), ("y", 2), ("z", 3)) for n in range(4)]
    )
    order = [task.limit_key for _ in range(9) for task in take(store, 1)]
    expect([sorted(order[i : i + 3]) for i in (0, 3, 6)], [["x", "y", "z"]] * 3, "keys served, by three")


@promise("lanes")
def check_an_idle_key_saves_nothing_up(store: Store) -> None:
    """A key that was idle for long gets its turn when it returns, but no turns that it missed."""
    store.add([job(f"{key}{n:02}", limit_key=key) for key in "xy" for n in range(20)])
    for _ in range(10):
        take(store, 2)
    store.add([job(f"z{n:02}", limit_key="z") for n in range(20)])
    turns = Counter(task.limit_key for _ in range(12) for task in take(store, 1))
    expect(turns["z"] <= 5, True, f"whether z got no more than its turn, of {dict(turns)}")


@promise("lanes")
def check_priority_goes_before_fairness(store: Store) -> None:
    """A higher priority goes first, even for a key that was served more often."""
    store.add([job(f"x{n}", limit_key="x", priority=1) for n in range(4)] + [job("y", limit_key="y")])
    expect([take(store, 1)[0].limit_key for _ in range(5)], ["x"] * 4 + ["y"], "keys served")
