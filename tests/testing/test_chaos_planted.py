"""What a siege of real processes is good for: bugs that are planted in them are found by the profile "small"."""

from __future__ import annotations

import os
import sys

import planted
import pytest

from dtq.testing.chaos import members
from dtq.testing.chaos.harness import PROFILES, run

QUICK = "acknowledged_before_it_ran"
SIEGES = 3  # in which a bug has to show: what the faults meet is a matter of chance; mostly one is enough
long = pytest.mark.skipif("DTQ_LONG" not in os.environ, reason="takes long: set DTQ_LONG=1")


@pytest.mark.parametrize("name", [pytest.param(name, marks=[long] * (name != QUICK)) for name in planted.PLANTED])
def test_a_bug_that_is_planted_in_every_process_is_found(name, tmp_path, monkeypatch):
    _, promise, seed = planted.PLANTED[name]
    monkeypatch.setattr(members, "NODE", [sys.executable, planted.__file__, name])
    sieges = (run(f"{tmp_path}/{n}.db", seed, PROFILES["small"]) for n in range(SIEGES))
    assert any(promise in siege.broken for siege in sieges), f"not in {SIEGES} sieges with seed {seed}"
