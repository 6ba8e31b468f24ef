"""A token that may only submit tasks does no harm; see hostile_submitter.py, which can also be run by hand for longer.

pytest -m hourly tests/api/test_hostile_submitter.py    the long version
"""

from __future__ import annotations

import random

import pytest

pytest.importorskip("starlette")
import hostile_submitter
from sizes import long_and_hourly


@long_and_hourly("requests", 400, 20_000)
@pytest.mark.parametrize("store", ["sqlite", "file", "valkey"])
def test_a_hostile_submitter_harms_nobody(tmp_path, store, requests):
    seed = random.randrange(1_000_000)
    url = hostile_submitter.url_of(store, tmp_path)
    assert hostile_submitter.perform(tmp_path, requests, seed, url, nodes=2, clients=2) == []
