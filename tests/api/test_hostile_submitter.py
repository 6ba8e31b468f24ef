"""A token that may only submit tasks does no harm; see hostile_submitter.py, which can also be run by hand for longer.

DTQ_HOSTILE=20000 pytest tests/api/test_hostile_submitter.py    the long version
"""

from __future__ import annotations

import os
import random

import pytest

pytest.importorskip("litestar")
import hostile_submitter

REQUESTS = int(os.environ.get("DTQ_HOSTILE", "400"))


@pytest.mark.parametrize("store", ["sqlite", "file", "valkey"])
def test_a_hostile_submitter_harms_nobody(tmp_path, store):
    seed = random.randrange(1_000_000)
    url = hostile_submitter.url_of(store, tmp_path)
    assert hostile_submitter.perform(tmp_path, REQUESTS, seed, url, nodes=2, clients=2) == []
