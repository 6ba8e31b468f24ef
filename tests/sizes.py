"""One test in two sizes: the small one runs by default, and the large one has the mark `hourly`."""

from __future__ import annotations

import pytest


def small_and_large(name: str, small: int, large: int) -> pytest.MarkDecorator:
    """Parametrize a test with `name` as the small number and, in hourly runs, as the large one."""
    return pytest.mark.parametrize(name, [small, pytest.param(large, marks=pytest.mark.hourly)])
