"""How many calls of a type a worker should have."""

from hypothesis import given
from hypothesis import strategies as st

from dtq.workers.process.prefetch import FRAME, Prefetch


def learnt(*durations, concurrency=1):
    prefetch = Prefetch()
    prefetch.define("t", concurrency)
    profile = prefetch.profile("t")
    for seconds in durations:
        prefetch.learn(profile, seconds)
    return profile


def test_types_that_nobody_knows_and_slow_ones_come_one_by_one():
    assert learnt().prefetch == 1
    assert learnt(0.001).prefetch == 1
    assert learnt(60.0).prefetch == 1


def test_fast_types_come_in_frames_of_about_five_milliseconds():
    assert [learnt(s).prefetch for s in (0.0, 1e-6, 5e-5, 2e-4, 9e-4)] == [256, 256, 64, 16, 4]


@given(st.floats(1e-9, 0.000999))
def test_a_window_never_holds_more_than_its_time(seconds):
    assert learnt(seconds).prefetch * seconds <= FRAME


def test_the_estimate_rises_at_once_and_sinks_slowly():
    assert learnt(1e-6, 0.5).prefetch == 1
    assert learnt(0.5, 1e-6).prefetch == 1
    assert learnt(0.5, *[1e-6] * 100).prefetch == 256


def test_async_types_have_their_concurrency_as_their_window_whatever_they_take():
    assert learnt(1e-6, 5.0, concurrency=10).prefetch == 10


def test_steps_go_from_small_windows_to_large_ones_each_with_all_types_that_may_have_so_many():
    prefetch = Prefetch()
    for type, concurrency in (("slow", 1), ("fast", 1), ("async", 8)):
        prefetch.define(type, concurrency)
    assert prefetch.steps() == [(1, False, {"slow", "fast"}), (8, True, {"async"})]
    prefetch.learn(prefetch.profile("fast"), 1e-6)
    assert prefetch.steps() == [(1, False, {"slow", "fast"}), (256, False, {"fast"}), (8, True, {"async"})]
    prefetch.define("fast", 1)  # a new handler: its duration is not known
    assert prefetch.steps() == [(1, False, {"slow", "fast"}), (8, True, {"async"})]
