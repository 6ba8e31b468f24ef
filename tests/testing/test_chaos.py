"""Runs of real processes under faults keep every promise; and each invariant notices a record that breaks it."""

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
from dtq.testing.chaos.invariants import INVARIANTS, Line, RunRecord, broken
from dtq.testing.chaos.plan import KILLS, ON_APIS, ON_SERVERS, WEIGHTS, draw, kinds

SEED = 1


@pytest.mark.long
@pytest.mark.parametrize("url", ["{}/queue.db", "file:{}/queue"])
def test_a_small_run_breaks_no_promise(url, tmp_path):
    result = run(url.format(tmp_path), SEED, PROFILES["small"])
    assert result.broken == {}, f"again: dtq chaos {url.format('.')} --seed {SEED}"
    assert sum(result.faults[kind] for kind in KILLS if kind in result.faults) == PROFILES["small"].kills
    assert len(result.record.tasks) >= PROFILES["small"].tasks
    assert list(result.record.of("taken over"))
    assert list(result.record.of("deleted"))
    line = record.of("file", result)
    record.append(tmp_path / "runs", line)
    record.append(tmp_path / "runs", line)
    assert f"| `file:` | {2 * line.tasks:,} | {2 * line.kills:,} |" in record.markdown(record.read(tmp_path / "runs"))


@pytest.mark.long
def test_a_small_run_breaks_no_promise_though_its_server_is_killed_and_frozen(tmp_path):
    port = servers.free_port()
    options = f"--port {port} --bind 127.0.0.1 --dir {tmp_path} --save '' --appendonly yes --appendfsync always"
    result = run(
        f"redis://127.0.0.1:{port}/0", 87, Profile(300, 12, nodes=2), server=f"{servers.program('valkey')} {options}"
    )
    assert result.broken == {}
    assert {"kill server", "freeze server", "kill api", "kill node"} <= result.faults.keys()
    assert len(result.record.tasks) >= 300


def test_a_server_that_cannot_be_started_is_named():
    with pytest.raises(DTQError, match=r"the server cannot be started by 'no-such-server --port 1': .*No such file"):
        run("redis://127.0.0.1:1/0", 1, PROFILES["small"], server="no-such-server --port 1")


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_process_outlives_a_run_that_is_ended_from_outside(number, tmp_path):
    port = servers.free_port()
    server = f"{servers.program('valkey')} --port {port} --bind 127.0.0.1 --dir {tmp_path} --save ''"
    command = [sys.executable, "-c", "from dtq.cli import app; app()", "chaos", f"redis://127.0.0.1:{port}/0"]
    place = {**os.environ, "TMPDIR": str(tmp_path)}  # a killed process leaves its files
    with subprocess.Popen([*command, "--server", server], stderr=subprocess.DEVNULL, env=place) as run_of_cli:
        freeze_a_node(run_of_cli.pid)
        members = psutil.Process(run_of_cli.pid).children(recursive=True)
        run_of_cli.send_signal(number)
        assert run_of_cli.wait(60) == (130 if number == signal.SIGINT else -number)
    _, left = psutil.wait_procs(members, timeout=10)
    assert left == []


def freeze_a_node(run_of_cli: int) -> None:
    """Freeze a node of this run. The run kills nodes too: try again where it was faster."""
    while True:
        with suppress(psutil.NoSuchProcess):
            wait_for_nodes(run_of_cli)[0].send_signal(signal.SIGSTOP)
            return


def wait_for_nodes(run_of_cli: int) -> list[psutil.Process]:
    """Return the two nodes of this run, once both have their workers."""
    give_up_at = time.monotonic() + 60
    while time.monotonic() < give_up_at:
        with suppress(psutil.Error):
            members = psutil.Process(run_of_cli).children()
            nodes = [member for member in members if len(member.children(recursive=True)) > 2]
            if len(nodes) == 2:
                return nodes
        time.sleep(0.01)
    raise AssertionError("no two nodes came up within 60 s")


def test_a_store_that_holds_tasks_is_refused(tmp_path):
    url = str(tmp_path / "queue.db")
    with QueueManager(url) as manager:
        manager.add("precious")
    with pytest.raises(DTQError, match="name an empty store"):
        run(url, SEED, PROFILES["small"])
    result = CliRunner().invoke(app, ["chaos", url])
    assert result.exit_code == 2


def test_a_single_simulated_schedule_is_printed_step_by_step():
    result = CliRunner().invoke(app, ["chaos", "memory:", "--seed", "7", "--schedules", "1"])
    assert result.exit_code == 0, result.output
    assert "the storm is over" in result.stdout
    assert "every promise was kept" in result.stdout


def test_a_seed_repeats_its_faults_and_every_kind_occurs():
    everything = kinds("sqlite:", has_server=True, has_api=True)
    plan = draw(5, 800, 5.0, everything, has_files=True)
    assert plan == draw(5, 800, 5.0, everything, has_files=True)
    assert plan != draw(6, 800, 5.0, everything, has_files=True)
    assert {fault.kind for fault in plan} == set(WEIGHTS)
    assert sum(fault.kind in KILLS for fault in plan) == 800


def test_a_plan_has_no_faults_of_what_a_run_does_not_have():
    assert set(kinds("redis://h/0", has_server=True, has_api=True)) == set(WEIGHTS) - {"slow disk", "full disk"}
    assert set(kinds("q.db", has_server=False, has_api=False)).isdisjoint((*ON_SERVERS, *ON_APIS))


def test_the_documentation_has_the_table_of_the_recorded_runs():
    here = Path(__file__).parents[1]
    table = record.markdown(record.read(here / "survived.jsonl"))
    assert table in (here.parent / "docs/proofs.md").read_text(), table


def test_seeds_are_printed_as_ranges():
    lines = [record.RunSummary("file", seed, 1, 1, 0, 0, 0, 0, 0, 0, 1.0, "", "c", "m", "p") for seed in (7, 1, 2, 3)]
    assert "| 1-3, 7 |" in record.markdown(lines)


# --- each promise can be broken -------------------------------------------------------------------------------------


def task(status="completed", **options) -> Task:
    return Task(**{"type": "work", "id": "t", "status": status, "version": 3, "attempts": 1, "result": "r", **options})


RAN = [
    Line("claimed", "t", 2, "n1"),
    Line("dispatched", "t", 2, "n1"),
    Line("began", "t", 1, "r"),
    Line("ended", "t", 1, "r"),
]
TOOK = Line("accepted", "t", 2, "n1")
DIED = Attempt(1, 0.0, 1.0, "n1", ErrorInfo("WorkerDied", signal=9))

BREAKS: list[tuple[str, list[Line], Task | None, dict]] = [
    ("nothing_acknowledged_is_lost", [Line("acknowledged", "t")], None, {}),
    ("every_task_ends", RAN, task("processing"), {}),
    ("completed_means_done", RAN[:3], task(), {}),
    ("completed_means_done", RAN, task(result="another"), {}),
    ("every_run_is_counted", [*RAN, *RAN[2:]], task(), {}),
    ("no_stale_write_is_accepted", [*RAN, Line("taken over", "t", 3, "n2"), TOOK], task(), {"n1": 1}),
    ("no_stale_write_is_accepted", [*RAN, TOOK, TOOK], task(), {}),
    ("only_accepted_outcomes_are_announced", [*RAN, Line("announced", "t", 3, "n1")], task(), {}),
    ("only_faulty_nodes_lose_tasks", [*RAN, Line("taken over", "t", 3, "n2")], task(), {"n2": 1}),
    ("a_dead_worker_costs_one_attempt", RAN, task(history=(DIED,)), {}),
    ("children_wait_for_their_parents", RAN, task(after=("p",)), {}),
    ("no_limit_is_exceeded", RAN, task(limit_key="none"), {}),
    ("every_failure_has_a_reason", RAN, task("failed", error=ErrorInfo("ValueError")), {}),
    ("every_failure_has_a_reason", RAN, task("failed", error=ErrorInfo("Interrupted"), interruptions=2), {}),
    ("cancelled_tasks_stay_cancelled", [*RAN, Line("cancelled", "t")], task(), {}),
    ("no_violation_was_seen", RAN, task(), {"violations": 1}),
]


@pytest.mark.parametrize(("promise", "lines", "found", "faults"), BREAKS, ids=[row[0] for row in BREAKS])
def test_a_broken_promise_is_found_and_no_other(promise, lines, found, faults):
    violations = ["3 tasks run under a limit of 2"] if "violations" in faults else []
    record = RunRecord(lines, {"t": found} if found else {}, Counter(faults), 0, violations, {"none": 0})
    assert list(broken(record)) == [promise]


def test_each_invariant_is_tested_and_holds_for_a_good_record():
    assert {row[0] for row in BREAKS} == {promise.__name__ for promise in INVARIANTS}
    assert broken(RunRecord([Line("acknowledged", "t"), *RAN, TOOK, Line("announced", "t", 3)], {"t": task()})) == {}


def test_a_line_cut_off_by_a_kill_spoils_no_other_line_of_the_history(tmp_path: Path):
    from dtq.testing.chaos.history_log import HistoryLog, read

    history = HistoryLog(str(tmp_path / "log"))
    history.write(*RAN)
    (tmp_path / "log").write_bytes((tmp_path / "log").read_bytes() + b"ended\tt")
    assert read(tmp_path / "log") == RAN
    history.close()
