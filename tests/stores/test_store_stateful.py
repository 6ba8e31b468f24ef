"""SQLiteStore, FileStore and RedisStore do what MemoryStore does, whatever is done: hypothesis drives both, and
compares answers.

The store under test is open twice, as in two processes that take turns; one of them may be killed and opened again at
any moment. `pytest -m hourly` looks for longer, and makes a failure small before it shows it.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest
import servers
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from msgspec.structs import replace

from dtq.errors import InvalidTask
from dtq.stores.file import replica
from dtq.stores.file.store import FileStore
from dtq.stores.memory.store import MemoryStore
from dtq.stores.open import open_store
from dtq.stores.protocol import ClaimRequest, Node, Store
from dtq.stores.sqlite.store import SQLiteStore
from dtq.task.model import WAITING, ErrorInfo, Status, Task
from dtq.task.transitions import cancel, end_doomed, fail, interrupt, release, revive, succeed

LEASE = 30.0
TYPES = ("a", "b")
QUEUES = ("q", "r")
KEYS = ("", "x", "y")  # of limits
WORKERS = ("w0", "w1", "w2")

AFTER_AN_ATTEMPT = (
    lambda task, now: succeed(task, {"version": task.version}, now),
    lambda task, now: fail(task, ErrorInfo("E", "again"), now, lambda: 0.5),
    lambda task, now: fail(task, ErrorInfo("E", "for good"), now, lambda: 0.5, final=True),
    lambda task, now: release(task),
    interrupt,
    cancel,
    end_doomed,
)
WHILE_IT_WAITS = (
    cancel,
    lambda task, now: replace(task, priority=1 - task.priority),
    lambda task, now: replace(task, run_at=now + 3),
    lambda task, now: replace(task, expires=now + 5),
)

tasks = st.fixed_dictionaries(
    {
        "type": st.sampled_from(TYPES),
        "queue": st.sampled_from(QUEUES),
        "limit_key": st.sampled_from(KEYS),
        "priority": st.integers(-1, 1),
        "run_at": st.sampled_from([-5.0, 0.0, 0.0, 3.0, 10.0]),  # from now
        "expires": st.sampled_from([None, None, None, 0.0, 5.0, 20.0]),  # from now
        "key": st.sampled_from([None, None, None, "k0", "k1"]),
        "max_attempts": st.integers(1, 3),
        "on_parent_failure": st.sampled_from(["fail", "run"]),
        "payload": st.sampled_from([None, 0, {"text": "ü", "list": [1, None]}]),
    }
)
selectors = st.fixed_dictionaries(
    {
        "queue": st.sampled_from([None, *QUEUES]),
        "type": st.sampled_from([None, *TYPES]),
        "key": st.sampled_from([None, "*", "x"]),
    }
)
changes = st.fixed_dictionaries(
    {},
    optional={
        "paused": st.booleans(),
        "rate": st.sampled_from([0.0, 0.5, 2.0]),
        "burst": st.integers(1, 3),
        "max_running": st.integers(0, 2),
    },
)


class StoresAgree(RuleBasedStateMachine):
    """`model` is the specification, `stores` are two views of the data under test."""

    def open(self) -> Store:
        raise NotImplementedError

    def crash(self, store: Store) -> None:
        raise NotImplementedError

    @initialize()
    def begin(self):
        self.model = MemoryStore()
        self.stores = [self.open(), self.open()]
        self.turn = 0
        self.now = 1000.0
        self.ids = []
        self.added = 0
        self.task_of = {}  # id and version -> which of the tasks that had this id
        self.deleted = set()  # ids, whether or not there was such a task
        self.ended = set()  # tasks that came to an end once
        self.held = []  # every task as it was once claimed
        self.seen = []  # and as it was once looked at
        self.nodes = {}

    def both(self, method: str, *args, as_set: bool = False, **options):
        """The answer of both, which must be the same."""
        self.turn += 1
        answers = [_answer(store, method, args, options) for store in (self.model, self.stores[self.turn % 2])]
        wanted, got = ([_by_id(answer) for answer in answers]) if as_set else answers
        assert got == wanted, f"{method}{args} {options}: expected {wanted}, got {got}"
        return answers[0]

    # --- what is done

    @rule(data=st.data(), batch=st.lists(tasks, min_size=1, max_size=4))
    def add(self, data, batch):
        new = [f"t{len(self.ids) + n:04}" for n in range(len(batch))]
        parents = st.lists(st.sampled_from([*self.ids[-8:], *new]), max_size=2)
        wanted = []
        for number, options in enumerate(batch):
            after = [id for id in data.draw(parents, label="after") if id != new[number]]
            wanted.append(self.task(options, id=new[number], after=tuple(after)))
        self.ids += new
        self.both("add", wanted)

    def task(self, options, **more) -> Task:
        """Return a new task with a unique `retry_cap`, which distinguishes it from an older task with the same id."""
        self.added += 1
        expires = None if options["expires"] is None else self.now + options["expires"]
        at = {"run_at": self.now + options["run_at"], "expires": expires, "created_at": self.now}
        return Task(**{**options, **at, "retry_cap": 1000.0 + self.added, **more})

    @precondition(lambda self: self.ids)
    @rule(data=st.data(), options=tasks)
    def add_again(self, data, options):
        self.both("add", [self.task(options, id=data.draw(st.sampled_from(self.ids)))])

    @precondition(lambda self: self.held)
    @rule(data=st.data(), options=tasks, by=st.sampled_from(["delete", "purge"]))
    def remove_and_add_again(self, data, options, by):
        """A task that was claimed once is ended, removed, and added again, while that claim is still out."""
        claim = data.draw(st.sampled_from(self.held[-10:]), label="claim")
        if running := [task for task in self.both("get", [claim.id]) if not task.is_terminal]:
            self.both("update", [(cancel(running[0], self.now), [])])
        if by == "delete":
            self.delete_both([claim.id])
        else:
            self.both("purge", self.now + 1, set(Status))
        self.both("add", [self.task(options, id=claim.id)])

    @rule(
        worker=st.sampled_from(WORKERS),
        n=st.integers(1, 5),  # a claim of 0 tasks may mark expired tasks, or not
        types=st.sampled_from([TYPES, TYPES, TYPES[:1], TYPES[1:]]),
        queues=st.sampled_from([(), (), QUEUES[:1]]),
        min_priority=st.sampled_from([None, None, 0, 1]),
    )
    def claim(self, worker, n, types, queues, min_priority):
        doomed = self.doomed(types, queues)  # in no particular order: so all of them
        claimed = self.both_claim(worker, doomed + n, self.now, types, queues, min_priority)
        self.held += claimed

    def doomed(self, types, queues) -> int:
        waiting = (
            t
            for t in self.everything()
            if t.type in types and (not queues or t.queue in queues) and t.status in WAITING
        )
        return sum(bool(task.doom) or (task.expires is not None and task.expires <= self.now) for task in waiting)

    def both_claim(self, worker, n, now, *selection):
        self.turn += 1
        answers = [store.claim(worker, n, LEASE, now, *selection) for store in (self.model, self.stores[self.turn % 2])]
        wanted, got = [_doomed_sorted(answer) for answer in answers]
        assert got == wanted, f"claim({worker}, {n}, {now}, {selection}): expected {wanted}, got {got}"
        return answers[0]

    @precondition(lambda self: self.held)
    @rule(data=st.data(), n=st.integers(1, 4))
    def update_attempts(self, data, n):
        self.both("update", self.outcomes(data, n))

    @precondition(lambda self: self.held)
    @rule(data=st.data(), n=st.integers(1, 4), worker=st.sampled_from(WORKERS))
    def exchange(self, data, n, worker):
        arguments = self.outcomes(data, n), ClaimRequest(worker, 1000, LEASE, self.now, TYPES)
        self.turn += 1
        answers = [_answer(store, "exchange", arguments, {}) for store in (self.model, self.stores[self.turn % 2])]
        wanted, got = [
            answer if isinstance(answer, str) else (answer[0], _doomed_sorted(answer[1])) for answer in answers
        ]
        assert got == wanted, f"exchange{arguments}: expected {wanted}, got {got}"
        self.held += [] if isinstance(answers[0], str) else answers[0][1]

    def outcomes(self, data, n):
        outcomes = []
        for _ in range(n):
            task = data.draw(st.sampled_from(self.held[-10:]), label="task")
            change = data.draw(st.sampled_from(AFTER_AN_ATTEMPT), label="transition")
            successors = data.draw(st.lists(tasks, max_size=2), label="successors") if n < 3 else []
            planted = [self.successor(task, number, options) for number, options in enumerate(successors)]
            outcomes.append((change(task, self.now), planted))
        return outcomes

    def successor(self, task: Task, number: int, options) -> Task:
        """Return a successor named after its parent, so that it often exists already; sometimes it waits for an unknown
        task."""
        after = {0: (task.id,), 1: (), 2: ("missing",)}[(task.version + number) % 3 if options["priority"] else 1]
        id = f"{task.id}:{number}"
        if id not in self.ids:
            self.ids.append(id)
        heir = {"key": task.key} if task.key and task.version % 2 else {}
        return self.task({**options, **heir}, id=id, after=after)

    @precondition(lambda self: self.seen)
    @rule(data=st.data(), n=st.integers(1, 3))
    def update_others(self, data, n):
        outcomes = []
        for _ in range(n):
            task = data.draw(st.sampled_from(self.seen[-20:]), label="task")
            if task.status in (Status.FAILED, Status.CANCELLED):
                outcomes.append((revive(task, self.now), []))
            elif task.status in WAITING:
                outcomes.append((data.draw(st.sampled_from(WHILE_IT_WAITS))(task, self.now), []))
            elif task.status == Status.PROCESSING:
                outcomes.append((cancel(task, self.now), []))
        self.both("update", outcomes)

    @precondition(lambda self: self.ids)
    @rule(data=st.data())
    def look(self, data):
        wanted = data.draw(st.lists(st.sampled_from([*self.ids, "missing"]), unique=True, min_size=1, max_size=5))
        self.seen += self.both("get", wanted)

    @rule(data=st.data(), worker=st.sampled_from(WORKERS), busy=st.integers(0, 2))
    def heartbeat(self, data, worker, busy):
        self.nodes[worker] = Node(worker, workers=2, busy=busy)
        held = data.draw(st.lists(st.sampled_from(self.held[-10:]), max_size=4)) if self.held else []
        held = [replace(task, progress=float(busy), note="n") for task in {task.id: task for task in held}.values()]
        self.both("heartbeat", self.nodes[worker], held, LEASE, self.now)

    @precondition(lambda self: self.nodes)
    @rule(data=st.data())
    def leave(self, data):
        """A node that leaves has handed everything in."""
        busy = {task.worker for task in self.everything() if task.status == Status.PROCESSING}
        if idle := sorted(self.nodes.keys() - busy):
            node = self.nodes.pop(data.draw(st.sampled_from(idle)))
            self.both("heartbeat", node, [], 0, self.now)

    @rule(worker=st.sampled_from(WORKERS))
    def reap(self, worker):
        self.held += self.both("reap", worker, 1000, LEASE, self.now, as_set=True)

    @precondition(lambda self: self.ids)
    @rule(data=st.data())
    def delete(self, data):
        self.delete_both(data.draw(st.lists(st.sampled_from([*self.ids, "missing"]), max_size=4)))

    def delete_both(self, ids):
        self.deleted.update(ids)
        self.both("delete", ids)

    @rule(age=st.sampled_from([0, 10, 60]), statuses=st.sets(st.sampled_from(list(Status)), min_size=1))
    def purge(self, age, statuses):
        self.both("purge", self.now - age, statuses)

    @rule(selector=selectors, changes=changes)
    def set_lane(self, selector, changes):
        self.both("set_lane", **selector, **changes)

    @rule(seconds=st.sampled_from([0.5, 1.0, 5.0, 20.0, 40.0]))
    def time_passes(self, seconds):
        self.go_on(self.now + seconds)

    def go_on(self, now):
        self.now = now

    @rule(worker=st.sampled_from(WORKERS))
    def nothing_is_found_before_next_due(self, worker):
        """Once all is claimed, both stores say when there may be more, and are right. From there time goes on: whether
        an idle claim forgets what is no longer owed to a rate shows only to a clock that is set back."""
        self.held += self.both_claim(worker, 1000, self.now, TYPES)
        looked_until = []
        for store in (self.model, self.stores[self.turn % 2]):
            due = min(self.now + 50.0, store.next_due(self.now) or 1e9)
            quiet = self.now + 0.9 * (due - self.now)
            assert store.claim(worker, 1000, LEASE, quiet, TYPES) == [], f"next_due({self.now}) was {due}"
            looked_until.append(due)
        self.go_on(max(looked_until))

    @rule(which=st.integers(0, 1))
    def crash_and_reopen(self, which):
        """Nothing is lost; the nodes report again, as those of a process that was started again."""
        self.crash(self.stores[which])
        self.stores[which] = self.open()
        self.turn = which + 1
        for node in self.nodes.values():
            self.turn = which + 1
            self.both("heartbeat", node, [], LEASE, self.now)

    # --- what always holds

    def everything(self) -> list[Task]:
        return self.model.find(limit=10_000)

    @invariant()
    def the_same_tasks(self):
        wanted, got = self.everything(), self.stores[self.turn % 2].find(limit=10_000)
        assert got == wanted, [(a, b) for a, b in zip(wanted, got, strict=False) if a != b]

    @invariant()
    def no_version_of_an_id_comes_twice(self):
        """Each version of an id belongs to one task, however often the id is removed and added again."""
        for task in self.everything():
            assert self.task_of.setdefault((task.id, task.version), task.retry_cap) == task.retry_cap, task

    @invariant()
    def the_clean_up_keeps_what_is_needed(self):
        """Until a task ends, each parent that it names is there, unless a user deleted it."""
        tasks = self.everything()
        self.ended |= {task.retry_cap for task in tasks if task.is_terminal}
        there = {task.id for task in tasks} | self.deleted
        for task in tasks:
            assert task.retry_cap in self.ended or there.issuperset(task.after), task

    @invariant()
    def the_same_statistics(self):
        wanted, got = (_comparable(store.stats()) for store in (self.model, self.stores[self.turn % 2]))
        assert got == wanted

    @invariant()
    def the_counters_equal_a_recount(self):
        counts = {str(name): n for name, n in self.model.stats().counts.items()}
        assert counts == {str(status): sum(t.status == status for t in self.everything()) for status in Status}

    def teardown(self):
        for store in [self.model, *self.stores] if hasattr(self, "model") else []:
            store.close()


def _answer(store, method, args, options):
    """What the method gives, or the error that it raises."""
    try:
        return getattr(store, method)(*args, **options)
    except InvalidTask as error:
        return f"InvalidTask: {error}"


def _by_id(answer):
    return sorted(answer, key=lambda task: task.id)


def _doomed_sorted(claimed):
    """The doomed come first, in whatever order; the others as they are."""
    doomed = [task for task in claimed if task.doom]
    assert claimed[: len(doomed)] == doomed
    return _by_id(doomed) + claimed[len(doomed) :]


def _comparable(stats):
    """Counters without zeros, and nodes without the time of their last heartbeat (which may be unwritten)."""

    def filled(table):
        return {str(name): n for name, n in table.items() if n}

    def all_filled(tables):
        return {name: counts for name, table in tables.items() if (counts := filled(table))}

    return {
        "counts": filled(stats.counts),
        "queues": all_filled(stats.queues),
        "types": all_filled(stats.types),
        "oldest": stats.oldest,
        "nodes": sorted((replace(node, seen_at=0.0) for node in stats.nodes), key=lambda node: node.id),
        "limits": sorted(stats.limits, key=lambda limit: str(limit.selector)),
    }


class SQLiteAgrees(StoresAgree):
    def open(self):
        if not hasattr(self, "directory"):
            self.directory = tempfile.TemporaryDirectory()
        return SQLiteStore(Path(self.directory.name) / "queue.db", durability="relaxed")

    def crash(self, store):
        store.abandon()

    def teardown(self):
        super().teardown()
        if hasattr(self, "directory"):
            self.directory.cleanup()


class FileAgrees(StoresAgree):
    """Its files are brought up to date at any moment, and never by themselves. All ended tasks in them are evicted."""

    def open(self):
        if not hasattr(self, "directory"):
            self.directory = tempfile.TemporaryDirectory()
            self.patch = pytest.MonkeyPatch()
            self.patch.setattr(replica, "LARGE", 0)
        return FileStore(self.directory.name, durability="relaxed", persistence_interval=86400)

    def crash(self, store):
        store.abandon()

    @rule(which=st.integers(0, 1))
    def persist(self, which):
        self.stores[which].checkpoint()

    def teardown(self):
        super().teardown()
        if hasattr(self, "directory"):
            self.patch.undo()
            self.directory.cleanup()


class RedisAgrees(StoresAgree):
    """Its nodes live by their heartbeats: when time passes, each sends one."""

    kind = "valkey"

    def open(self):
        self.url = self.__dict__.get("url") or servers.url_of(self.kind)
        return open_store(self.url)

    def crash(self, store):
        store.abandon()

    def go_on(self, now):
        super().go_on(now)
        for node in self.nodes.values():
            self.both("heartbeat", node, [], LEASE, self.now)


class DebianRedisAgrees(RedisAgrees):
    kind = "redis"


class MemoryAgrees(StoresAgree):
    """The machine itself is right: the specification agrees with itself."""

    def open(self):
        self.data = self.__dict__.get("data") or MemoryStore()
        return self.data

    def crash(self, store):
        pass


USUAL = settings(
    max_examples=60,
    phases=[phase for phase in Phase if phase is not Phase.shrink],
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
LARGE = settings(USUAL, max_examples=2000, phases=list(Phase), stateful_step_count=50)

TestSQLiteAgrees = SQLiteAgrees.TestCase
TestSQLiteAgrees.settings = USUAL
TestFileAgrees = FileAgrees.TestCase
TestFileAgrees.settings = USUAL
TestValkeyAgrees = RedisAgrees.TestCase
TestValkeyAgrees.settings = USUAL
TestMemoryAgrees = MemoryAgrees.TestCase
TestMemoryAgrees.settings = settings(USUAL, max_examples=20)
if shutil.which("redis-server"):
    TestDebianRedisAgrees = DebianRedisAgrees.TestCase
    TestDebianRedisAgrees.settings = settings(USUAL, max_examples=20)


@pytest.mark.hourly
class TestSQLiteAgreesForLong(SQLiteAgrees.TestCase):
    settings = LARGE


@pytest.mark.hourly
class TestFileAgreesForLong(FileAgrees.TestCase):
    settings = LARGE


@pytest.mark.hourly
class TestValkeyAgreesForLong(RedisAgrees.TestCase):
    settings = LARGE


@pytest.mark.hourly
class TestMemoryAgreesForLong(MemoryAgrees.TestCase):
    settings = LARGE
