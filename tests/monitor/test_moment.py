"""The rate between two moments of a queue, and quantiles of a list."""

from __future__ import annotations

from dtq.monitor.moment import Moment, quantile
from dtq.task.model import Status


def moment(at, **counts):
    return Moment(at, dict.fromkeys(map(str, Status), 0) | counts)


def test_the_rate_counts_what_has_ended_in_any_way():
    before = moment(10.0, completed=5, pending=9)
    now = moment(12.0, completed=6, failed=2, cancelled=1, retrying=1, processing=3)
    assert now.rate_since(before) == 2.0
    assert (now.waiting, now.running, now.ended) == (1, 3, 9)


def test_the_rate_is_unknown_without_an_earlier_moment_or_after_a_clean_up():
    now = moment(12.0, completed=6)
    assert now.rate_since(None) is None
    assert now.rate_since(now) is None
    assert now.rate_since(moment(11.0, completed=7)) is None


def test_quantiles_are_values_of_the_list():
    assert [quantile([3.0, 1.0, 2.0], q) for q in (0.0, 0.5, 1.0)] == [1.0, 2.0, 3.0]
    assert quantile([], 0.5) is None
