"""A chaos run of real processes, with the profile "small", finds the bugs that are planted in them."""

from __future__ import annotations

import os
import subprocess
import sys

import planted
import pytest

from dtq.testing.chaos import processes
from dtq.testing.chaos.harness import PROFILES, run

QUICK = "acknowledged_before_it_ran"
RUNS = 3  # in which a bug has to show: what the faults meet is a matter of chance; mostly one run is enough
NAMES = [pytest.param(name, marks=[pytest.mark.hourly] * (name != QUICK)) for name in planted.PLANTED]


def test_each_planted_bug_breaks_what_dtq_has():
    """A bug that patches a name which dtq no longer has would break nothing."""
    code = "import planted; [plant() for plant, *_ in planted.PLANTED.values()]"
    folder = os.path.dirname(planted.__file__)
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_planted_bug_whose_target_is_gone_is_refused():
    with pytest.raises(AttributeError, match=r"Loop has no _gone: this bug breaks nothing"):
        planted.patch(planted.Loop, "_gone", None)


@pytest.mark.parametrize("name", NAMES)
def test_a_bug_that_is_planted_in_every_process_is_found(name, tmp_path, monkeypatch):
    _, promise, seed = planted.PLANTED[name]
    monkeypatch.setattr(processes, "NODE", [sys.executable, planted.__file__, name])
    runs = (run(f"{tmp_path}/{n}.db", seed, PROFILES["small"]) for n in range(RUNS))
    assert any(promise in outcome.broken for outcome in runs), f"not in {RUNS} runs with seed {seed}"
