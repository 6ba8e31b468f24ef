"""Prefetch: how many calls of a type a worker should hold."""

from hypothesis import given
from hypothesis import strategies as st

from dtq.workers.process.prefetch import FRAME, Prefetch


def learned(*durations, concurrency=1):
    prefetch = Prefetch()
    prefetch.define("t", concurrency)
    profile = prefetch.profile("t")
    for seconds in durations:
        prefetch.learn(profile, seconds)
    return profile


def test_unknown_and_slow_types_are_prefetched_one_by_one():
    assert learned().prefetch == 1
    assert learned(0.001).prefetch == 1
    assert learned(60.0).prefetch == 1


def test_fast_types_are_prefetched_in_frames_of_about_five_milliseconds():
    assert [learned(s).prefetch for s in (0.0, 1e-6, 5e-5, 2e-4, 9e-4)] == [256, 256, 64, 16, 4]


@given(st.floats(1e-9, 0.000999))
def test_a_prefetch_never_holds_more_than_a_frame_of_work(seconds):
    assert learned(seconds).prefetch * seconds <= FRAME


def test_the_estimate_rises_at_once_and_sinks_slowly():
    assert learned(1e-6, 0.5).prefetch == 1
    assert learned(0.5, 1e-6).prefetch == 1
    assert learned(0.5, *[1e-6] * 100).prefetch == 256


def test_the_prefetch_of_an_async_type_is_its_concurrency():
    assert learned(1e-6, 5.0, concurrency=10).prefetch == 10


def test_steps_ascend_and_each_has_all_types_with_at_least_its_prefetch():
    prefetch = Prefetch()
    for type, concurrency in (("slow", 1), ("fast", 1), ("async", 8)):
        prefetch.define(type, concurrency)
    assert prefetch.steps() == [(1, False, {"slow", "fast"}), (8, True, {"async"})]
    prefetch.learn(prefetch.profile("fast"), 1e-6)
    assert prefetch.steps() == [(1, False, {"slow", "fast"}), (256, False, {"fast"}), (8, True, {"async"})]
    prefetch.define("fast", 1)  # a new handler: its duration is unknown
    assert prefetch.steps() == [(1, False, {"slow", "fast"}), (8, True, {"async"})]
