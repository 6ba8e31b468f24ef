"""dtq doctor says plainly what can be lost."""

from __future__ import annotations

import msgspec
import pytest
import servers
from typer.testing import CliRunner

from dtq import QueueManager, open_store
from dtq.cli import app
from dtq.cli.checks import check_disk, check_server

GOOD = {
    "redis_version": "7.2.4", "aof_enabled": 1, "maxmemory_policy": "noeviction", "role": "master",
    "config": {"appendfsync": "always", "save": ""}, "ahead": 0.01,
}  # fmt: skip


def verdicts(**facts):
    return {finding.subject: (finding.verdict, finding.text) for finding in check_server({**GOOD, **facts})}


def test_a_server_that_loses_nothing_has_no_bad_finding():
    found = verdicts(connected_slaves=0)
    assert [subject for subject, (verdict, _) in found.items() if verdict == "bad"] == []
    assert found["persistence"] == (
        "ok", "append-only file, fsync always: nothing acknowledged is lost",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("facts", "subject", "verdict", "words"),
    [
        ({"config": {"appendfsync": "everysec"}}, "persistence", "note", "the last second"),
        ({"config": {"appendfsync": "no"}}, "persistence", "note", "half a minute"),
        ({"config": {}}, "persistence", "note", "setting is unknown"),
        ({"aof_last_write_status": "err"}, "persistence", "bad", "the last write"),
        ({"aof_enabled": 0, "config": {"save": "60 1"}}, "persistence", "bad", "all changes since the last one"),
        ({"aof_enabled": 0}, "persistence", "bad", "loses every task"),
        ({"maxmemory_policy": "allkeys-lru"}, "memory", "bad", "may drop tasks"),
        ({"redis_version": "6.2.1"}, "version", "bad", "too old"),
        ({"valkey_version": "9.1.0"}, "version", "ok", "Valkey 9.1.0"),
        ({"role": "slave"}, "replication", "bad", "replica"),
        ({"connected_slaves": 2}, "replication", "note", "what was not replicated yet"),
        ({"ahead": -90.0}, "clock", "note", "-90.0 s"),
        ({"cluster_enabled": 1}, "cluster", "ok", "one slot"),
    ],
)
def test_each_risk_has_its_finding(facts, subject, verdict, words):
    got, text = verdicts(**facts)[subject]
    assert got == verdict
    assert words in text


def test_a_disk_is_judged_by_the_chosen_durability():
    assert [finding.verdict for finding in check_disk("full") + check_disk("relaxed")] == ["ok", "note"]


@pytest.mark.parametrize("kind", [*servers.KINDS, "cluster"])
def test_the_command_checks_a_real_server(kind):
    done = CliRunner().invoke(app, ["doctor", servers.url_of(kind)])
    assert done.exit_code == 1  # the server of the tests keeps nothing
    assert "bad   persistence  none: a restart of the server loses every task" in done.stdout


def test_the_command_has_no_bad_finding_for_aof_always_and_for_sqlite(tmp_path):
    server = servers.Server("valkey", "--appendonly", "yes", "--appendfsync", "always")
    done = CliRunner().invoke(app, ["doctor", server.url, "--json"])
    server.remove()
    assert done.exit_code == 0, done.output
    assert {finding["verdict"] for finding in msgspec.json.decode(done.stdout)} == {"ok", "note"}
    url = f"sqlite:///{tmp_path}/queue.db?durability=relaxed"
    with QueueManager(url) as manager:
        manager.add("job")
    done = CliRunner().invoke(app, ["doctor", url])
    assert done.exit_code == 0
    assert done.stdout.startswith("note  disk         durability=relaxed: a power cut")


def test_a_store_returns_the_facts_that_the_checks_need():
    store = open_store(servers.url_of("valkey"))
    assert check_server(store.facts())[0].subject == "version"
    store.close()
