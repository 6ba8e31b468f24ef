"""The sketch: what it says of quantiles, sums and counts, against the values themselves."""

from __future__ import annotations

import json
from math import floor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtq.workers.metrics.histogram import ERROR, HIGHEST, LOWEST, Histogram

SECONDS = st.floats(2**-20, 2**24)
MANY = st.lists(SECONDS, min_size=1, max_size=200)


def sketch(values):
    made = Histogram()
    for value in values:
        made.add(value)
    return made


@given(MANY, st.floats(0, 1))
def test_a_quantile_is_within_the_stated_error(values, q):
    exact = sorted(values)[floor(q * (len(values) - 1))]
    assert sketch(values).quantile(q) == pytest.approx(exact, rel=ERROR * 1.000001)


def test_the_stated_error_is_below_two_and_a_quarter_percent():
    assert 0.021 < ERROR < 0.0225


@given(MANY, MANY)
def test_merged_sketches_say_what_one_sketch_of_all_would(some, others):
    merged, whole = sketch(some), sketch(some + others)
    merged.merge(sketch(others))
    assert (merged.counts, merged.sum) == (whole.counts, pytest.approx(whole.sum))
    assert merged.since(sketch(some)).counts == sketch(others).counts


@given(MANY, st.integers(-20, 24))
def test_how_many_are_up_to_a_power_of_two_is_exact(values, bound):
    assert sketch(values).up_to([bound]) == [sum(value <= 2.0**bound for value in values)]


@given(MANY)
def test_a_sketch_survives_json(values):
    made = sketch(values)
    back = Histogram.from_json(json.loads(json.dumps(made.to_json())))
    assert (back.counts, back.sum) == (made.counts, made.sum)


def test_values_that_no_task_should_take_are_kept_in_the_outermost_buckets():
    assert sketch([0.0, -5.0, 1e-12]).counts == {LOWEST: 3}
    assert sketch([-3600.0, 2.0]).sum == 2.0
    assert sketch([1e12]).counts == {HIGHEST: 1}


def test_an_empty_sketch_knows_nothing():
    empty = Histogram.from_json(Histogram().to_json())
    assert (empty.count, empty.mean, empty.quantile(0.5), empty.up_to([0])) == (0, None, None, [0])
