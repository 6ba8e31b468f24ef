"""Long tests have a mark, and something runs every mark."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_workflow_runs_the_hourly_tests_of_every_room():
    text = {path: path.read_text() for path in (ROOT / "tests").glob("*/test_*.py")}
    rooms = {
        path.parent.name
        for path, code in text.items()
        if re.search(r"mark\.hourly|@small_and_large|@long_and_hourly", code)
    }
    workflow = (ROOT / ".github/workflows/ci.yml").read_text()
    (listed,) = re.findall(r"^ +room: \[(.+)\]$", workflow, re.M)
    assert set(listed.split(", ")) == rooms


def test_a_plain_run_leaves_long_tests_out_and_the_ci_script_runs_those_up_to_long():
    assert '"-m not long and not hourly"' in (ROOT / "pyproject.toml").read_text()
    script = (ROOT / ".ci/run").read_text()
    plain, long = re.findall(r"^step pytest (.+)$", script, re.M)
    assert plain == "-q --durations=10 -n 2 --dist loadfile"
    assert long == "-q --durations=10 -m long -n 2"
