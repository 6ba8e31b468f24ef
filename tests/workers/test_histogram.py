"""Histogram: compare its quantiles, sums and counts with those of the values themselves."""

from __future__ import annotations

import json
from math import floor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtq.workers.metrics.histogram import ERROR, HIGHEST, LOWEST, Histogram

SECONDS = st.floats(2**-20, 2**24)
MANY = st.lists(SECONDS, min_size=1, max_size=200)


def histogram(values):
    made = Histogram()
    for value in values:
        made.add(value)
    return made


@given(MANY, st.floats(0, 1))
def test_a_quantile_is_within_the_stated_error(values, q):
    exact = sorted(values)[floor(q * (len(values) - 1))]
    assert histogram(values).quantile(q) == pytest.approx(exact, rel=ERROR * 1.000001)


def test_the_stated_error_is_below_two_and_a_quarter_percent():
    assert 0.021 < ERROR < 0.0225


@given(MANY, MANY)
def test_merged_histograms_equal_one_histogram_of_all_values(some, others):
    merged, whole = histogram(some), histogram(some + others)
    merged.merge(histogram(others))
    assert (merged.counts, merged.sum) == (whole.counts, pytest.approx(whole.sum))
    assert merged.since(histogram(some)).counts == histogram(others).counts


@given(MANY, st.integers(-20, 24))
def test_counts_up_to_a_power_of_two_are_exact(values, bound):
    assert histogram(values).up_to([bound]) == [sum(value <= 2.0**bound for value in values)]


@given(MANY)
def test_a_histogram_survives_json(values):
    made = histogram(values)
    back = Histogram.from_json(json.loads(json.dumps(made.to_json())))
    assert (back.counts, back.sum) == (made.counts, made.sum)


def test_extreme_values_are_counted_in_the_outermost_buckets():
    assert histogram([0.0, -5.0, 1e-12]).counts == {LOWEST: 3}
    assert histogram([-3600.0, 2.0]).sum == 2.0
    assert histogram([1e12]).counts == {HIGHEST: 1}


def test_an_empty_histogram_has_no_mean_and_no_quantile():
    empty = Histogram.from_json(Histogram().to_json())
    assert (empty.count, empty.mean, empty.quantile(0.5), empty.up_to([0])) == (0, None, None, [0])
