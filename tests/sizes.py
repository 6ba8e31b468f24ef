"""One test in two sizes, each for the runs that have time for it."""

from __future__ import annotations

import pytest


def small_and_large(name: str, small: int, large: int) -> pytest.MarkDecorator:
    """Parametrize a test with `name` as the small number and, in hourly runs, as the large one."""
    return pytest.mark.parametrize(name, [small, pytest.param(large, marks=pytest.mark.hourly)])


def long_and_hourly(name: str, long: int, hourly: int) -> pytest.MarkDecorator:
    """Parametrize a test that is long even when it is small: `name` is `long` there, and `hourly` in hourly runs."""
    return pytest.mark.parametrize(
        name, [pytest.param(long, marks=pytest.mark.long), pytest.param(hourly, marks=pytest.mark.hourly)]
    )
