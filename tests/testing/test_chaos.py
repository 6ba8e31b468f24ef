"""Real processes under faults keep every promise; and each promise is seen broken by evidence that breaks it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import servers
from typer.testing import CliRunner

from dtq import QueueManager
from dtq.cli import app
from dtq.errors import DTQError
from dtq.task.model import Attempt, ErrorInfo, Task
from dtq.testing.chaos import record
from dtq.testing.chaos.harness import PROFILES, Profile, run
from dtq.testing.chaos.invariants import PROMISES, Line, RunRecord, broken
from dtq.testing.chaos.plan import KILLS, ON_APIS, ON_SERVERS, WEIGHTS, draw, kinds

SEED = 1


@pytest.mark.parametrize("url", ["{}/queue.db", pytest.param("file:{}/queue", marks=pytest.mark.long)])
def test_a_small_siege_breaks_no_promise(url, tmp_path):
    outcome = run(url.format(tmp_path), SEED, PROFILES["small"])
    assert outcome.broken == {}, f"again: dtq chaos {url.format('.')} --seed {SEED}"
    assert sum(outcome.faults[kind] for kind in KILLS if kind in outcome.faults) == PROFILES["small"].kills
    assert len(outcome.evidence.tasks) >= PROFILES["small"].tasks
    assert list(outcome.evidence.of("taken over"))
    line = record.of("file", outcome)
    record.append(tmp_path / "runs", line)
    record.append(tmp_path / "runs", line)
    assert f"| `file:` | {2 * line.tasks:,} | {2 * line.kills:,} |" in record.markdown(record.read(tmp_path / "runs"))


@pytest.mark.long
def test_a_small_siege_of_a_server_that_is_killed_and_frozen_too_breaks_no_promise(tmp_path):
    port = servers.free_port()
    options = f"--port {port} --bind 127.0.0.1 --dir {tmp_path} --save '' --appendonly yes --appendfsync always"
    outcome = run(
        f"redis://127.0.0.1:{port}/0", 87, Profile(300, 12, nodes=2), server=f"{servers.program('valkey')} {options}"
    )
    assert outcome.broken == {}
    assert {"kill server", "freeze server", "kill api", "kill node"} <= outcome.faults.keys()
    assert len(outcome.evidence.tasks) >= 300


def test_a_server_that_cannot_be_started_is_named():
    with pytest.raises(DTQError, match=r"the server cannot be started by 'no-such-server --port 1': .*No such file"):
        run("redis://127.0.0.1:1/0", 1, PROFILES["small"], server="no-such-server --port 1")


@pytest.mark.parametrize(
    "number", [signal.SIGKILL, *(pytest.param(s, marks=pytest.mark.long) for s in (signal.SIGTERM, signal.SIGINT))]
)
def test_nobody_outlives_a_siege_that_is_ended_from_outside(number, tmp_path):
    port = servers.free_port()
    server = f"{servers.program('valkey')} --port {port} --bind 127.0.0.1 --dir {tmp_path} --save ''"
    command = [sys.executable, "-c", "from dtq.cli import app; app()", "chaos", f"redis://127.0.0.1:{port}/0"]
    place = {**os.environ, "TMPDIR": str(tmp_path)}  # who is killed leaves its files
    with subprocess.Popen([*command, "--server", server], stderr=subprocess.DEVNULL, env=place) as siege:
        nodes = wait_for_nodes(siege.pid)
        nodes[0].send_signal(signal.SIGSTOP)
        members = psutil.Process(siege.pid).children(recursive=True)
        siege.send_signal(number)
        assert siege.wait(60) == (130 if number == signal.SIGINT else -number)
    _, left = psutil.wait_procs(members, timeout=10)
    assert left == []


def wait_for_nodes(siege: int) -> list[psutil.Process]:
    """Those of a siege that is in full swing: two, whose workers are there."""
    give_up_at = time.monotonic() + 60
    while time.monotonic() < give_up_at:
        with suppress(psutil.Error):
            members = psutil.Process(siege).children()
            nodes = [member for member in members if len(member.children(recursive=True)) > 2]
            if len(nodes) == 2:
                return nodes
        time.sleep(0.01)
    raise AssertionError("there are no nodes")


def test_a_store_with_something_in_it_is_left_alone(tmp_path):
    url = str(tmp_path / "queue.db")
    with QueueManager(url) as manager:
        manager.add("precious")
    with pytest.raises(DTQError, match="name an empty store"):
        run(url, SEED, PROFILES["small"])
    result = CliRunner().invoke(app, ["chaos", url])
    assert result.exit_code == 2


def test_simulated_schedules_are_run_and_one_is_told_step_by_step():
    result = CliRunner().invoke(app, ["chaos", "memory:", "--seed", "7", "--schedules", "1"])
    assert result.exit_code == 0, result.output
    assert "the storm is over" in result.stdout
    assert "every promise was kept" in result.stdout


def test_a_seed_gives_the_same_faults_and_all_kinds_come():
    everything = kinds("sqlite:", has_server=True, has_api=True)
    plan = draw(5, 800, 5.0, everything, has_files=True)
    assert plan == draw(5, 800, 5.0, everything, has_files=True)
    assert plan != draw(6, 800, 5.0, everything, has_files=True)
    assert {fault.kind for fault in plan} == set(WEIGHTS)
    assert sum(fault.kind in KILLS for fault in plan) == 800


def test_what_is_not_there_is_not_harmed():
    assert set(kinds("redis://h/0", has_server=True, has_api=True)) == set(WEIGHTS) - {"slow disk", "full disk"}
    assert set(kinds("q.db", has_server=False, has_api=False)).isdisjoint((*ON_SERVERS, *ON_APIS))


def test_the_readme_says_what_the_recorded_runs_have_shown():
    here = Path(__file__).parents[1]
    table = record.markdown(record.read(here / "survived.jsonl"))
    assert table in (here.parent / "README.md").read_text(), table


def test_seeds_are_told_as_ranges():
    lines = [record.Record("file", seed, 1, 1, 0, 0, 0, 0, 0, 0, 1.0, "", "c", "m", "p") for seed in (7, 1, 2, 3)]
    assert "| 1-3, 7 |" in record.markdown(lines)


# --- each promise can be broken -------------------------------------------------------------------------------------


def task(status="completed", **options) -> Task:
    return Task(**{"type": "work", "id": "t", "status": status, "version": 3, "attempts": 1, "result": "r", **options})


RAN = [
    Line("claimed", "t", 2, "n1"),
    Line("given", "t", 2, "n1"),
    Line("began", "t", 1, "r"),
    Line("ended", "t", 1, "r"),
]
TOOK = Line("accepted", "t", 2, "n1")
DIED = Attempt(1, 0.0, 1.0, "n1", ErrorInfo("WorkerDied", signal=9))

BREAKS: list[tuple[str, list[Line], Task | None, dict]] = [
    ("nothing_acknowledged_is_lost", [Line("acknowledged", "t")], None, {}),
    ("everything_ends", RAN, task("processing"), {}),
    ("completed_means_done", RAN[:3], task(), {}),
    ("completed_means_done", RAN, task(result="another"), {}),
    ("runs_are_paid_for", [*RAN, *RAN[2:]], task(), {}),
    ("no_stale_write_is_accepted", [*RAN, Line("taken over", "t", 3, "n2"), TOOK], task(), {"n1": 1}),
    ("no_stale_write_is_accepted", [*RAN, TOOK, TOOK], task(), {}),
    ("only_what_was_accepted_is_told", [*RAN, Line("told", "t", 3, "n1")], task(), {}),
    ("only_the_faulty_lose_their_tasks", [*RAN, Line("taken over", "t", 3, "n2")], task(), {"n2": 1}),
    ("a_dead_worker_costs_one_attempt", RAN, task(history=(DIED,)), {}),
    ("children_wait_for_their_parents", RAN, task(after=("p",)), {}),
    ("no_limit_is_exceeded", RAN, task(limit_key="none"), {}),
    ("a_failure_has_its_reason", RAN, task("failed", error=ErrorInfo("ValueError")), {}),
    ("a_failure_has_its_reason", RAN, task("failed", error=ErrorInfo("Interrupted"), interruptions=2), {}),
    ("what_was_cancelled_stays_so", [*RAN, Line("cancelled", "t")], task(), {}),
    ("nothing_was_seen_broken", RAN, task(), {"seen": 1}),
]


@pytest.mark.parametrize(("promise", "lines", "found", "faults"), BREAKS, ids=[row[0] for row in BREAKS])
def test_a_broken_promise_is_seen_and_no_other(promise, lines, found, faults):
    seen = ["3 tasks run under a limit of 2"] if "seen" in faults else []
    evidence = RunRecord(lines, {"t": found} if found else {}, Counter(faults), 0, seen, {"none": 0})
    assert list(broken(evidence)) == [promise]


def test_every_promise_is_among_them_and_kept_where_all_is_well():
    assert {row[0] for row in BREAKS} == {promise.__name__ for promise in PROMISES}
    assert broken(RunRecord([Line("acknowledged", "t"), *RAN, TOOK, Line("told", "t", 3)], {"t": task()})) == {}


def test_a_witness_that_was_killed_in_the_middle_of_a_line_spoils_no_other(tmp_path: Path):
    from dtq.testing.chaos.history_log import Witness, read

    witness = Witness(str(tmp_path / "log"))
    witness.write(*RAN)
    (tmp_path / "log").write_bytes((tmp_path / "log").read_bytes() + b"ended\tt")
    assert read(tmp_path / "log") == RAN
    witness.close()
