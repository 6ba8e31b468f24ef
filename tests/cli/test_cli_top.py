"""`dtq top` on a queue that works."""

from __future__ import annotations

import signal

import pytest
from commands import WAIT, run, start
from monitor_node import obey

from dtq import TaskQueue


@pytest.fixture
def busy(tmp_path):
    """A store on which two workers are busy for a while."""
    path = tmp_path / "queue.db"
    with TaskQueue(path, {"obey": obey}, 2) as queue:
        queue.add_many({"type": "obey", "payload": {"seconds": 0.05}} for _ in range(400))
        yield path


def test_top_shows_throughput_times_types_and_nodes(busy):
    code, out, err = run("top", "--store", str(busy), "--every", "2.5", "--looks", "2")
    assert (code, err) == (0, "")
    second = out[out.rindex("tasks/s over") :]
    assert "2 workers on 1 node," in second
    (line,) = [line for line in second.splitlines() if line.startswith("│ obey")]
    assert "5" in line
    assert "ms" in line  # the execution times
    assert "█" in second


@pytest.mark.parametrize("environment", [{}, {"FORCE_COLOR": "1", "TERM": "xterm"}], ids=["pipe", "terminal"])
def test_top_repeats_until_ctrl_c_which_is_no_error(busy, environment):
    process = start("top", "--store", str(busy), "--every", "0.1", **environment)
    updates = 0
    while updates < 3:
        line = process.stdout.readline()
        assert line, process.stderr.read()
        updates += "2 workers on 1 node" in line
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=WAIT)
    assert (process.returncode, err) == (0, "")


def test_top_creates_no_queue(tmp_path):
    code, out, err = run("top", "--store", str(tmp_path / "none.db"), "--looks", "1")
    assert (code, out) == (2, "")
    assert "there is no queue at" in err
