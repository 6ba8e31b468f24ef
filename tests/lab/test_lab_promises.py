"""Conformance tables: a reader sees which promises his store breaks, and the calls that show it."""

from __future__ import annotations

import re
import sys
import threading

import pytest
from msgspec.structs import replace

from dtq.lab.promises import promises
from dtq.stores.memory.store import MemoryStore
from dtq.stores.sqlite.store import SQLiteStore
from dtq.testing import conformance
from dtq.testing.conformance import Subject

module = sys.modules["dtq.lab.promises"]  # `dtq.lab.promises` is the function


class ClaimsTwice(MemoryStore):
    """Returns a claimed task but leaves it claimable."""

    def claim(self, *args, **options):
        taken = super().claim(*args, **options)
        for task in taken:
            self._put(replace(task, status="pending"))
        return taken


class IgnoresKeys(MemoryStore):
    def add(self, tasks):
        return super().add([replace(task, key=None) for task in tasks])


class Unfinished(MemoryStore):
    def add(self, tasks):
        raise NotImplementedError("add")


class Hangs(MemoryStore):
    def add(self, tasks):
        while True:
            pass


class Exits(MemoryStore):
    def claim(self, *args, **options):
        raise SystemExit(3)


@pytest.fixture
def shown(monkeypatch):
    pages = []
    monkeypatch.setattr(module, "display", pages.append)
    return pages


def checks(*names):
    return [check for check in conformance.CHECKS if check.name in names]


TWICE = checks("ids_come_back_in_order", "no_task_is_given_twice", "limits_survive_a_crash")


def test_the_table_tells_the_promises_and_the_calls_that_show_a_broken_one(shown):
    findings = promises(ClaimsTwice, TWICE)
    assert (
        shown[0].text
        == """\
1 of 3 promises kept, 1 broken, 1 not asked.
  passed   add returns the ids of the tasks, in the order of its argument.
  failed   A claimed task is not claimed again by any other worker.
  skipped  After a kill -9, pauses, rates and the next opening of a rate are the same. (this store cannot crash)

Broken: A claimed task is not claimed again by any other worker.
  second claim:
    expected  ['c']
    got       ['a', 'b']
  after these calls on a new store:
    add([a, b, c]) -> ['a', 'b', 'c']
    claim('w1', 2) -> [a, b]
    claim('w2', 2) -> [a, b]"""
    )
    assert repr(shown[0]) == shown[0].text
    assert [result.status for result in findings] == ["passed", "failed", "skipped"]
    assert findings[1].detail == "second claim: expected ['c'], got ['a', 'b']"
    assert not findings.kept


def test_the_page_is_a_table_in_words_and_colours_with_everything_escaped(shown):
    promises(ClaimsTwice, TWICE)
    page = shown[0].html
    assert re.findall(r"<strong[^>]*>(\w+)</strong></td>", page) == ["passed", "failed", "skipped"]
    assert page.count("<th scope=") == 2
    assert "claim(&#x27;w2&#x27;, 2) -&gt; [a, b]" in page
    assert " -> " not in page


def test_a_store_that_keeps_its_promises_is_told_so(shown):
    findings = promises(MemoryStore, conformance.group("add", "claim"))
    assert findings.kept
    assert shown[0].text.startswith(f"{len(findings)} of {len(findings)} promises kept, 0 broken.\n  passed ")
    assert "Broken" not in shown[0].text


def test_many_kept_promises_are_folded_away_and_a_broken_one_stays_in_sight(shown):
    class Broken(IgnoresKeys):
        """Keeps most of its promises."""

    findings = promises(Broken, conformance.group("add", "claim"))
    before, _, folded = shown[0].html.partition("<details>")
    words = [re.findall(r"<strong[^>]*>(\w+)</strong></td>", part) for part in (before, folded)]
    assert set(words[0]) == {"failed"}
    assert set(words[1]) == {"passed"}
    assert sum(map(len, words)) == len(findings)
    assert "A task can be claimed from its <code>run_at</code> on" in folded


def test_the_shortest_failures_are_explained_and_no_more_than_three(shown):
    findings = promises(ClaimsTwice, conformance.group("claim", "update"))
    assert sum(result.status == "failed" for result in findings) > 3
    explained = shown[0].text.split("Broken: ")[1:]
    lengths = [len(text.partition("new store:\n")[2].strip().splitlines()) for text in explained]
    assert len(explained) == 3
    assert lengths == [3, 3, 3]


def test_options_of_tasks_and_times_are_written_as_a_reader_would(shown):
    class Broken(IgnoresKeys):
        def claim(self, worker, n, lease, now, types, *more, **options):
            return super().claim(worker, n, lease, now + 30, types, *more, **options)

    promises(Broken, checks("a_taken_key_gives_the_task_that_has_it", "nothing_before_it_is_due"))
    assert "add([b(key='order-1'), c(key='order-2')]) -> ['b', 'c']" in shown[0].text
    assert "add([a(run_at=NOW+10), b(run_at=NOW-10)]) -> ['a', 'b']\n    claim('w1', 100) -> [b, a]" in shown[0].text


@pytest.mark.parametrize(
    ("check", "line"),
    [
        ("an_outcome_is_accepted_once", "update([a completed v2]) -> {'a'}"),
        ("successors_are_added_with_an_accepted_outcome", "update([a completed v2 + [b(after=('a',)), c(payload='x'"),
        ("a_family_may_be_deleted_together", "add([p, c(after=('p',)), d(after=('p',), on_parent_failure='run'), e"),
        ("a_child_waits_for_its_parent", "get(['p', 'c']) -> [p retrying v3, c blocked v1]"),
        ("an_expired_task_is_claimed_only_to_be_ended", "claim('w1', 100, now=NOW+1) -> [a(doomed), b]"),
        ("only_an_expired_lease_is_reaped", "reap('w2', 10, now=NOW+29.99) -> []"),
        ("a_heartbeat_extends_the_lease", "heartbeat(w1, [a], now=NOW+20) -> set()"),
        ("a_paused_lane_is_not_served", "set_lane(queue='q', paused=True)"),
        ("an_unknown_parent_is_refused_and_nothing_stored", "add([a(key='k'), b(after=('missing',))]) raises InvalidT"),
        ("purge_removes_what_ended_long_ago", "purge(before=NOW+5, statuses=['completed', 'cancelled']) -> 3"),
        ("the_statistics_name_every_status", "stats() -> Stats(blocked 1, processing 1, retrying 1, completed 1, fa"),
        ("next_due_says_when_to_look_again", "next_due() -> None"),
        ("eight_threads_claim_each_task_once", "add([t000, t001, t002, t003, t004, and 495 more]) -> ['t000', "),
    ],
)
def test_each_kind_of_call_is_one_short_line(check, line):
    log = module.Log()
    conformance.run(module.recorded(MemoryStore, log), checks(check))
    assert [text for text in log.lines() if text.startswith(line)], log.lines()


def test_a_store_without_a_method_is_told_which(shown):
    class Half:
        def add(self, tasks):
            return [task.id for task in tasks]

        def close(self):
            pass

    (finding,) = promises(Half, checks("no_task_is_given_twice"))
    assert finding.detail == "raised AttributeError: 'Half' object has no attribute 'claim'"
    assert "after these calls on a new store:\n    add([a, b, c]) -> ['a', 'b', 'c']" in shown[0].text


def test_an_error_is_told_with_the_call_that_raised_it(shown):
    promises(Unfinished, checks("ids_come_back_in_order"))
    assert shown[0].text.endswith("add([c, a, b]) raises NotImplementedError: add")


def test_a_store_that_hangs_is_stopped_and_after_three_checks_asked_no_more(shown):
    findings = promises(Hangs, conformance.group("add"), seconds=0.2)
    details = [result.detail for result in findings]
    assert details[:3] == ["took longer than 0.2 s"] * 3
    assert set(details[3:]) == {"not asked: 3 checks before took too long"}
    assert "after these calls on a new store:\n    add([c, a, b]) -> no answer" in shown[0].text
    assert [thread for thread in threading.enumerate() if thread.name == "trial"] == []


def test_a_store_that_exits_takes_nobody_with_it(shown):
    (finding,) = promises(Exits, checks("no_task_is_given_twice"))
    assert finding.detail == "raised SystemExit: 3"


def test_calls_on_several_stores_and_crashes_are_told_apart(shown, tmp_path):
    log = module.Log()
    subject = Subject(lambda: SQLiteStore(tmp_path / "q.db"), SQLiteStore.abandon)
    (result,) = conformance.run(module.recorded(lambda: subject, log), checks("limits_survive_a_crash"))
    assert result.status == "passed"
    crash = log.lines().index("kill -9")
    assert log.lines()[crash - 1] == "claim('w1', 100, types={'job', 'mail'}) -> [a]"
    assert log.lines()[crash + 1].startswith("store2.claim('w1', 100, now=NOW+1")


def test_the_same_call_many_times_is_one_line_and_only_the_last_lines_are_shown(shown):
    class AlwaysRings(MemoryStore):
        def wait(self, timeout):
            return True

    class DeletesNothing(MemoryStore):
        def delete(self, ids):
            return 0

        def find(self, **options):
            return super().find(**options)[::-1]

    promises(AlwaysRings, checks("wait_hears_of_an_add"))
    assert shown[0].text.endswith("wait(0) -> True  (100 times)")
    promises(DeletesNothing, checks("pages_stay_stable_while_tasks_come_and_go"))
    assert re.search(r"new store:\n    \.\.\. \d+ before these\n(    .*\n?){12}$", shown[1].text)


def test_every_store_is_closed_after_its_check(shown):
    opened = []

    class Counted(MemoryStore):
        def __init__(self):
            super().__init__()
            opened.append(self)

        def close(self):
            super().close()
            if self in opened:
                opened.remove(self)

    promises(Counted, conformance.group("add", "leases"))
    assert opened == []


def test_no_checks_are_refused_with_the_groups_there_are():
    with pytest.raises(ValueError, match="there are no checks to ask; groups: add, claim, dependencies"):
        promises(MemoryStore, conformance.group("adding"))
