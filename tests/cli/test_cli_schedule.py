"""`dtq schedule`, `dtq limit`, and webhooks on the command line."""

from __future__ import annotations

import json
import logging

import pytest
from typer.testing import CliRunner

import dtq
from dtq import QueueManager
from dtq.cli import app
from dtq.policy import cron
from dtq.queue.scheduler import Scheduler
from dtq.task.model import Task


def test_the_list_of_schedules_shows_their_problems(tmp_path):
    where = ["--store", str(tmp_path / "q.db")]
    with QueueManager(tmp_path / "q.db", clock=lambda: 1000.0) as manager:
        manager.schedule("s", type="b", every=10)
        tick = Task(
            type=cron.TYPE, queue=cron.QUEUE, id="dtq.schedule:evil", payload=5, created_at=1.0, run_at=1.0, expires=1.0
        )
        manager.store.add([tick, Task(type="other", id=cron.work_id("s", 1010.0), created_at=1.0, run_at=1.0)])
        manager.store.update(Scheduler(manager.store, "n", 30).turn(1010.0))
    result = CliRunner().invoke(app, ["schedule", "list", *where], env={"COLUMNS": "300"})
    assert result.exit_code == 0
    assert "NotAdded: s@1970-01-01T00:16:50Z: another task has this id" in result.stdout
    assert "cannot be read" in result.stdout
    assert CliRunner().invoke(app, ["schedule", "remove", "evil", *where]).exit_code == 0
    assert "evil" not in CliRunner().invoke(app, ["schedule", "list", *where]).stdout


def test_a_schedule_is_added_listed_paused_and_removed(tmp_path):
    where = ["--store", str(tmp_path / "q.db")]
    runner = CliRunner()

    def invoke(*arguments):
        result = runner.invoke(app, [*arguments, *where])
        return result.exit_code, result.stdout, result.stderr

    made = invoke("schedule", "add", "nightly", "report", '{"n": 1}', "--cron", "30 2 * * *", "--tz", "Europe/Berlin")
    assert (made[0], made[2]) == (0, "")
    assert "T02:30:00+0" in made[1]
    assert invoke("schedule", "add", "often", "sweep", "--every", "30")[0] == 0
    assert [json.loads(line)["name"] for line in invoke("schedule", "list", "--json")[1].splitlines()] == [
        "nightly", "often",
    ]  # fmt: skip
    assert "every 30 s" in invoke("schedule", "list")[1]
    assert len(invoke("schedule", "next", "nightly", "-n", "3")[1].splitlines()) == 3
    code, out, err = invoke("schedule", "pause", "often", "never")
    assert (code, out) == (1, "often\n")
    assert "'never'" in err
    assert "is paused" in invoke("schedule", "next", "often")[2]
    assert invoke("schedule", "resume", "often")[:2] == (0, "often\n")
    assert invoke("schedule", "remove", "nightly", "often")[:2] == (0, "nightly\noften\n")
    assert invoke("schedule", "list", "--json")[1] == ""
    assert invoke("schedule", "next", "nightly")[0] == 1
    assert invoke("schedule", "add", "bad", "report", "--cron", "61 * * * *")[0] == 2
    assert invoke("schedule", "add", "bad", "report")[0] == 2


def test_a_limit_is_set_listed_and_removed(tmp_path):
    where = ["--store", str(tmp_path / "q.db")]
    runner = CliRunner()
    QueueManager(tmp_path / "q.db").close()
    assert runner.invoke(app, ["limit", "set", "--type", "email", "--rate", "50", *where]).exit_code == 0
    (limit,) = json.loads(runner.invoke(app, ["limit", "list", "--json", *where]).stdout)
    assert (limit["type"], limit["rate"], limit["burst"]) == ("email", 50, 5)
    assert "email" in runner.invoke(app, ["limit", "list", *where]).stdout
    assert runner.invoke(app, ["limit", "set", "--type", "email", *where]).exit_code == 2
    assert runner.invoke(app, ["limit", "remove", "--type", "email", *where]).exit_code == 0
    assert json.loads(runner.invoke(app, ["limit", "list", "--json", *where]).stdout) == []


def test_a_webhook_is_given_with_the_name_of_its_secret(tmp_path):
    where = ["--store", str(tmp_path / "q.db")]
    arguments = ["add", "a", "--webhook", "https://example.org/hook", "--webhook-secret", "shop", *where]
    task_id = CliRunner().invoke(app, arguments).stdout.strip()
    with QueueManager(tmp_path / "q.db") as manager:
        assert manager.get(task_id).webhook == dtq.Webhook("https://example.org/hook", secret="shop")
    assert CliRunner().invoke(app, ["add", "a", "--webhook-secret", "shop", *where]).exit_code == 2


@pytest.mark.parametrize("given", ["shop=whsec_bm90IGEgdmFyaWFibGU", "=whsec_bm90IGEgdmFyaWFibGU", "whsec_bm90"])
def test_a_secret_given_in_place_of_its_variable_is_not_repeated(tmp_path, given):
    (tmp_path / "work.py").write_text("def execute(payload, context): pass")
    arguments = ["run", "--store", str(tmp_path / "q.db"), "--handler", f"a={tmp_path / 'work.py'}", "--secret", given]
    logging.getLogger().handlers.clear()
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert "secret" in result.stderr
    assert "whsec_" not in result.output
