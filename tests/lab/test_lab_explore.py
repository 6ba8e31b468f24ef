"""The explorer finds the shortest way to break a promise, or shows that there is none; and draws it."""

from __future__ import annotations

import importlib
import random
import time

import pytest
from matplotlib import pyplot as plt

from dtq.lab.explore import CRASHES, _key, explore, time_passes
from dtq.lab.trace import describe, trace
from dtq.stores.memory.store import MemoryStore
from dtq.task.model import Task
from dtq.task.transitions import succeed

LEASE = 30


class TaskFiles:
    """A store with the one task t1. Each method is one step."""

    def __init__(self) -> None:
        self.status, self.worker, self.version = "pending", "", 0
        self.lease_until = self.now = 0
        self.result = ""
        self.runs: list[str] = []

    def select(self):
        """Return whether there is work, and take none."""
        return self.status == "pending" or (self.status == "processing" and self.now >= self.lease_until)

    def take(self, me, lease=LEASE):
        """Assign the task to this worker, whichever worker had it before."""
        self.status, self.worker, self.lease_until = "processing", me, self.now + lease
        self.version += 1

    def claim(self, me, lease=LEASE):
        """Select and take in one step. Return the version, or None."""
        if not self.select():
            return None
        self.take(me, lease)
        return self.version

    def run(self, me):
        self.runs.append(me)

    def end(self, me, version=None):
        """Writes the result; with a version, only over that version."""
        if version in (None, self.version):
            self.status, self.result = "completed", me
            self.version += 1


def select_then_update(store, me):
    found = store.select()
    yield f"{me} selects {'t1' if found else 'nothing'}"
    if found:
        store.take(me)
        yield f"{me} updates t1"
        store.run(me)
        yield f"{me} runs t1"


def claim_at_once(store, me):
    if store.claim(me) is not None:
        yield f"{me} claims t1"
        store.run(me)
        yield f"{me} runs t1"
        store.end(me)
        yield f"{me} submits"


def claim_for_ever(store, me):
    yield lambda: store.status != "processing"
    if store.claim(me, lease=float("inf")) is not None:
        yield f"{me} claims t1"
        store.end(me)
        yield f"{me} submits"


def claim_with_lease(store, me):
    yield lambda: store.status == "completed" or store.select()
    if store.claim(me) is not None:
        yield f"{me} claims t1"
        store.end(me)
        yield f"{me} submits"


def late_writer(store, me):
    if store.claim(me) is not None:
        yield f"{me} claims t1"
        store.end(me)
        yield f"{me} submits"


def fenced_writer(store, me):
    if (version := store.claim(me)) is not None:
        yield f"{me} claims t1 as version {version}"
        store.end(me, version)
        yield f"{me} submits version {version}"


def runs_once(store):
    assert len(store.runs) <= 1, f"t1 ran on {' and on '.join(store.runs)}"


def is_not_lost(store):
    """t1 is lost: no worker will ever run it"""
    return store.status == "completed"


def has_an_owner(store):
    """Whoever wrote the result had the task when it was written."""
    if store.result and store.result != store.worker:
        return f"the result is of {store.result}, the task was of {store.worker}"
    return None


def trail(found):
    return [f"{process} {label}" for process, label in found.steps]


def both(process):
    return {"A": process, "B": process}


# --- the promises of a store ---


def test_select_then_update_lets_two_workers_run_one_task():
    found = explore(TaskFiles, both(select_then_update), runs_once)
    assert trail(found) == [
        "A selects t1", "B selects t1", "A updates t1", "A runs t1", "B updates t1", "B runs t1",
    ]  # fmt: skip
    assert found.broken == "t1 ran on A and on B"


def test_the_shortest_trace_of_two_owners_has_four_steps():
    def one_owner(store):
        assert store.version <= 1, "A and B both have t1"

    assert len(explore(TaskFiles, both(select_then_update), one_owner).steps) == 4


def test_an_atomic_claim_runs_a_task_once_whoever_crashes():
    found = explore(TaskFiles, dict.fromkeys("ABC", claim_at_once), runs_once, crashes=2)
    assert (found.broken, found.steps, found.complete) == (None, (), True)
    assert str(found) == f"No counterexample: what was promised holds in all {found.states} states."


def test_a_claim_without_a_lease_is_lost_in_a_crash():
    found = explore(TaskFiles, both(claim_for_ever), at_end=is_not_lost, crashes=1)
    assert trail(found) == ["A claims t1", "A crashes"]
    assert found.broken == "t1 is lost: no worker will ever run it"
    assert explore(TaskFiles, both(claim_for_ever), at_end=is_not_lost).broken is None


def test_a_lease_saves_the_task_of_one_that_crashed():
    clock = {"clock": time_passes(LEASE, when=lambda store: store.status == "processing" and not store.select())}
    options = {"at_end": is_not_lost, "world": clock, "crashes": 1}
    assert explore(TaskFiles, both(claim_with_lease), **options).broken is None
    assert explore(TaskFiles, both(claim_with_lease), **options | {"crashes": 2}).broken
    assert explore(TaskFiles, both(claim_with_lease), **options | {"world": {}}).broken


def test_a_late_result_overwrites_a_newer_owner_unless_versions_are_compared():
    world = {"clock": time_passes(LEASE)}
    found = explore(TaskFiles, both(late_writer), has_an_owner, world=world)
    assert trail(found) == ["A claims t1", "clock 30 s pass", "B claims t1", "A submits"]
    assert found.broken == "the result is of A, the task was of B"
    assert explore(TaskFiles, both(fenced_writer), has_an_owner, world=world).broken is None


def test_a_message_that_comes_twice_is_a_process_of_the_world():
    def again(store, me):
        yield lambda: store.status == "completed"
        store.end(store.result)
        yield "the outcome comes again"

    def ends_once(store):
        return store.version <= 2

    found = explore(TaskFiles, {"A": claim_at_once}, ends_once, world={"net": again})
    assert trail(found) == ["A claims t1", "A runs t1", "A submits", "net the outcome comes again"]
    assert found.broken == "ends once"


class World:
    """The package's own store, and the time."""

    def __init__(self):
        self.store, self.now, self.runs = MemoryStore(), 1000, []
        self.store.add([Task(id="t1", type="job")])
        self.close = self.store.close


def real_worker(world, me):
    for task in world.store.claim(me, 1, LEASE, world.now, {"job"}):
        yield f"{me} claims {task.id}"
        world.runs.append(world.store.update([(succeed(task, me, world.now), ())]))
        yield f"{me} submits"


def real_reaper(world, me):
    yield lambda: world.now > 1000
    for task in world.store.reap(me, 1, LEASE, world.now):
        yield f"{me} takes over {task.id}"
        world.runs.append(world.store.update([(succeed(task, me, world.now), ())]))
        yield f"{me} submits"


def test_the_memory_store_itself_accepts_one_outcome_in_every_order():
    def accepts_once(world):
        return sum(map(len, world.runs)) <= 1

    def ends(world):
        return world.store.get(["t1"])[0].status == "completed"

    found = explore(
        World, {"A": real_worker, "B": real_worker, "C": real_reaper}, accepts_once, at_end=ends,
        world={"clock": time_passes(LEASE + 1)}, crashes=0, key=lambda world: (world.now, str(world.store.find())),
    )  # fmt: skip
    assert found.broken is None
    assert found.complete


# --- the explorer itself ---


def test_it_is_quick_with_three_processes_of_four_steps_and_a_crash():
    def busy(store, me):
        for step in range(4):
            store.runs.append(me)
            yield f"{me} does {step}"

    began = time.perf_counter()
    assert explore(TaskFiles, dict.fromkeys("ABC", select_then_update), crashes=1).broken is None
    assert explore(TaskFiles, both(busy), crashes=1).states > 500
    assert time.perf_counter() - began < 2


def test_states_that_are_the_same_are_followed_once():
    def tick(store, me):
        for step in range(4):
            store.now += 1
            yield f"{me} ticks {step}"

    assert explore(TaskFiles, both(tick)).states == 6 * 6  # 0 to 4 ticks, and the end, of each


def test_two_lists_of_the_same_content_are_not_one_list_with_two_names():
    one = []
    assert _key(one, one) != _key([], [])
    assert _key({"a": [1, {2}], "b": TaskFiles()}) == _key({"a": [1, {2}], "b": TaskFiles()})
    assert _key([[1], 2]) != _key([[1, 2]])
    assert _key(bytearray(b"a")) != _key(bytearray(b"a"))  # without a hash, nothing counts as equal


def test_a_crashed_process_never_goes_on():
    found = explore(TaskFiles, {"A": select_then_update}, at_end=lambda store: store.runs == ["A"], crashes=1)
    assert trail(found) == ["A crashes"]
    later = explore(TaskFiles, {"A": select_then_update}, at_end=lambda store: store.status == "pending", crashes=1)
    assert trail(later)[:2] == ["A selects t1", "A updates t1"]
    assert len(later.steps) == 3


def test_time_cannot_crash():
    world = {"clock": time_passes(LEASE)}
    found = explore(TaskFiles, both(claim_at_once), at_end=lambda store: store.now == LEASE, world=world, crashes=2)
    assert (found.broken, found.complete) == (None, True)


def test_a_process_that_raises_breaks_a_promise():
    def clumsy(store, me):
        yield f"{me} looks"
        {}["t1"]
        yield f"{me} never comes here"

    found = explore(TaskFiles, {"A": clumsy})
    assert (trail(found), found.broken) == (["A looks", "A raises KeyError"], "A raised KeyError: 't1'")


def test_what_does_not_end_is_cut_and_says_so():
    def forever(store, me):
        while True:
            store.now += 1
            yield f"{me} goes on"

    found = explore(TaskFiles, {"A": forever}, max_steps=5)
    assert (found.states, found.complete) == (6, False)
    assert "there are more" in str(found)


def test_state_outside_the_model_is_found_out():
    outside = random.Random(0)

    def secretive(store, me):
        yield f"{me} draws {outside.random()}"
        yield f"{me} goes on"

    with pytest.raises(RuntimeError, match="keep everything that processes share in the model"):
        explore(TaskFiles, {"A": secretive})


@pytest.mark.parametrize(
    ("process", "message"),
    [
        (lambda store, me: None, "process A has no yield; allowed: a generator function"),
        (lambda store, me: (n for n in (1,)), "process A yields 1; allowed: a text"),
    ],
)
def test_what_is_no_process_is_refused(process, message):
    with pytest.raises(TypeError, match=message):
        explore(TaskFiles, {"A": process})


# --- the picture ---


@pytest.fixture
def shown(monkeypatch):
    """What the pictures that were shown say to those who cannot see them."""
    told = []
    module = importlib.import_module("dtq.lab.trace")
    draw = module.show_figure
    monkeypatch.setattr(module, "show_figure", lambda figure, alt, *rest: told.append(alt) or draw(figure, alt, *rest))
    return told


def test_the_picture_has_a_lane_for_each_process_a_dot_for_each_step_and_a_cross_where_one_crashed(shown, capsys):
    found = explore(TaskFiles, both(claim_for_ever), at_end=is_not_lost, crashes=1)
    axes = trace(found)
    words = [text.get_text() for text in axes.texts]
    assert words == ["A", "1  claims t1", "2  crashes", "B", f"broken: {found.broken}"]
    assert [line.get_marker() for line in axes.lines if len(line.get_xdata()) == 1] == ["o", "X"]
    assert capsys.readouterr().out.endswith(f"{found}\n")
    assert plt.get_fignums() == []


def test_the_picture_tells_its_story_in_words(shown):
    found = explore(TaskFiles, both(claim_for_ever), at_end=is_not_lost, crashes=1)
    trace(found)
    story = (
        "Space-time diagram of A, B. 1. A claims t1; 2. A crashes. "
        "Then the promise is broken: t1 is lost: no worker will ever run it."
    )
    assert describe(found) == story
    assert shown == [story]
    assert found.steps[-1] == ("A", CRASHES)


def test_where_nothing_is_broken_the_picture_says_so(shown, capsys):
    assert trace(explore(TaskFiles, both(claim_at_once), runs_once)) is None
    assert "No counterexample" in capsys.readouterr().out
    assert shown == []
