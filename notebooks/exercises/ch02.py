"""Chapter 02: what a store of the lesson need not do yet, and the exercises with their solutions.

in_a_child, die_after, crash_matrix, opened, write_and_flush, race, Overheard ---> what its experiments need around them
Table <--- MyStore                                 the part of a store that has nothing to do with who gets which task
LATER ---> the conformance checks that need what the lesson's store does not build
lesson, subjects ---> the checks that it must keep, and fresh stores to ask
stories(MyStore) ---> the explorer, on a real store
save, claim, reap, read ---> SAVE, CLAIM, REAP, READ: show, hint, check      reading on to their solutions spoils them
killed, unplugged, waiting, held, journal ---> something to try an answer on
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sqlite3
import statistics
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from itertools import count
from math import inf
from pathlib import Path
from tempfile import TemporaryDirectory
from zlib import crc32

import cloudpickle
import msgspec
from msgspec.structs import replace

from dtq import Task
from dtq.errors import InvalidTask, StoreError
from dtq.lab import Experiment, checked_by, exercise, explore, time_passes
from dtq.stores.protocol import Stats, sum_counts
from dtq.sync.waits import Wakeup
from dtq.task.model import STATE
from dtq.task.transitions import brief_of, release, succeed
from dtq.testing import conformance
from dtq.testing.conformance import expect

# --- around the experiments -------------------------------------------------------------------------------------------

CHILD = "import sys, cloudpickle; cloudpickle.load(sys.stdin.buffer)()"


def in_a_child(work):
    """Run the function in its own process. Return its exit code (-9 after SIGKILL) and what it printed."""
    command = [sys.executable, "-c", CHILD]
    done = subprocess.run(command, input=cloudpickle.dumps(work), stdout=subprocess.PIPE)
    return done.returncode, done.stdout.decode()


def die_after(steps, save, *what):
    """Run this many steps of a save in a child process, which then kills itself. Return how that ended."""

    def work():
        for done, _ in enumerate(save(*what), 1):
            if done == steps:
                os.kill(os.getpid(), signal.SIGKILL)

    return in_a_child(work)


def _tasks_in(path):
    try:
        return f"{len(json.loads(path.read_text()))} tasks"
    except ValueError:
        return "broken"


def crash_matrix(path, old, new, *saves):
    """A row for each step of each save: killed after it, what does a reader find in the file that said `old`?"""
    for save in saves:
        for steps, name in enumerate(list(save(path, new)), 1):
            path.write_text(old)
            die_after(steps, save, path, new)
            yield {"save": save.__name__, "killed when": name, "a reader finds": _tasks_in(path)}


@contextmanager
def opened(path):
    """The descriptor of a new, empty file."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        yield file
    finally:
        os.close(file)


LINE = b'{"type": "email", "payload": {"to": "ada@example.org"}}\n'


def write_and_flush(path):
    """How long it takes to write a line, and to flush it: the medians of a hundred, one at a time, in seconds."""
    writes, flushes = [], []
    with opened(path) as file:
        for _ in range(100):
            began = time.perf_counter()
            os.write(file, LINE)
            written = time.perf_counter()
            os.fsync(file)
            writes.append(written - began)
            flushes.append(time.perf_counter() - written)
    return statistics.median(writes), statistics.median(flushes)


def write_down(every, file, flushes):
    """Write lines and flush them in groups. Return how many were written a second."""
    began, n = time.perf_counter(), flushes * min(every, 100)
    for task in range(1, n + 1):
        os.write(file, LINE)
        if task % every == 0:
            os.fsync(file)
    return n / (time.perf_counter() - began)


def flushing(every, folder, flushes):
    """Measure the lines written a second for each arm: {arm: lines in each flush}."""
    return Experiment(
        "flush", [*every], lambda arm, file: write_down(every[arm], file, flushes),
        x="flush every", y="throughput", fresh=lambda arm: opened(folder / "durable"),
    ).start()  # fmt: skip


FREE = "SELECT id FROM task WHERE worker IS NULL LIMIT 1"


def race(claim, claimers, tasks, folder):
    """So many claimers, each on a thread with a connection of its own, empty a table of so many tasks; gives how many
    tasks were given out again though somebody had them."""
    path, start = folder / f"race-{time.perf_counter_ns()}.db", threading.Barrier(claimers)

    def work(me):
        with closing(sqlite3.connect(path, isolation_level=None)) as db:
            start.wait()
            return sum(1 for _ in iter(lambda: claim(db, me), None))

    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.executescript("PRAGMA journal_mode = WAL; CREATE TABLE task (id INTEGER PRIMARY KEY, worker TEXT)")
        db.execute("INSERT INTO task (id) SELECT value FROM json_each(?)", [json.dumps([*range(tasks)])])
    with ThreadPoolExecutor(claimers) as threads:
        return sum(threads.map(work, range(claimers))) - tasks


def racing(ways, fresh, repeats):
    """Let 1, 2, 4 and 8 claimers race for 50 tasks in each of these ways, and count the duplicates."""
    return Experiment(
        "race", [(way, claimers) for way in ways for claimers in (1, 2, 4, 8)],
        lambda arm: race(ways[arm[0]], arm[1], 50, fresh()), x=("way", "claimers"), y="duplicates", repeats=repeats,
    ).start()  # fmt: skip


class Overheard(logging.Handler):
    """Collects the records of a logger in `said` until it is closed, in place of the notebook's output."""

    def __init__(self, logger):
        super().__init__()
        self.said, self._logger = [], logging.getLogger(logger)
        self._logger.addHandler(self)

    def emit(self, record):
        self.said.append(record.getMessage())

    def close(self):
        self._logger.removeHandler(self)
        super().close()


# --- the front of a store ---------------------------------------------------------------------------------------------

COLUMNS = (
    "id", "key", "type", "queue", "status", "priority", "run_at", "worker", "version", "lease_until", "finished_at"
)  # fmt: skip
COMPUTED = ", ".join(f"{name} AS (json_extract(CAST(body AS TEXT), '$.{name}'))" for name in COLUMNS)
WAITS = "status IN ('pending', 'retrying')"
SCHEMA = f"""PRAGMA journal_mode = WAL;
PRAGMA synchronous = FULL;
CREATE TABLE IF NOT EXISTS task (seq INTEGER PRIMARY KEY, body NOT NULL, {COMPUTED}, UNIQUE (id), UNIQUE (key));
CREATE INDEX IF NOT EXISTS waiting ON task (priority DESC, run_at, seq) WHERE {WAITS};"""


class Table:
    """What any store has that keeps a task as a JSON document, in SQLite: it opens, looks, counts, removes and wakes.

    Who gets which task is left to `add`, `claim`, `update`, `heartbeat` and `reap`; what makes a method one step, to
    `step`. `synchronous = FULL` flushes at each commit.
    """

    def __init__(self, path=":memory:"):
        self.db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self.db.executescript(SCHEMA)
        self.lock, self.wakeup, self._nodes = threading.RLock(), Wakeup(), {}

    def select(self, where, **values):
        """The tasks of which this is true."""
        return [msgspec.json.decode(body, type=Task) for (body,) in self._rows("body", where, values)]

    def _rows(self, columns, where, values):
        with self.lock:
            return self.db.execute(f"SELECT {columns} FROM task WHERE {where}", values).fetchall()

    # --- looks and counts

    def get(self, ids, *, brief=False):
        tasks = [task for id in ids for task in self.select("id = :id", id=id)]
        return [*map(brief_of, tasks)] if brief else tasks

    def find(self, *, status=None, queue=None, type=None, finished_after=None, after="", limit=100, brief=False):
        tasks = self.select(
            """id > :after AND status = ifnull(:status, status) AND queue = ifnull(:queue, queue)
            AND type = ifnull(:type, type) AND ifnull(finished_at, 0) > ifnull(:finished_after, -1)
            ORDER BY id LIMIT :limit""",
            status=status, queue=queue, type=type, finished_after=finished_after, after=after, limit=limit,
        )  # fmt: skip
        return [*map(brief_of, tasks)] if brief else tasks

    def stats(self):
        counts = sum_counts(self._rows("queue, type, status, count(*)", "true GROUP BY 1, 2, 3", {}))
        return Stats(*counts, self.next_due(-1), [*self._nodes.values()], [])

    def next_due(self, now):
        ((due,),) = self._rows("min(run_at)", f"{WAITS} AND run_at > :now", {"now": now})
        return due

    def meet(self, node, lease, now):
        """Enters the node into the statistics; with a lease of 0 it leaves."""
        self._nodes[node.id] = replace(node, seen_at=now)
        if not lease:
            del self._nodes[node.id]

    # --- removes

    def delete(self, ids):
        idle = "DELETE FROM task WHERE id = ? AND status <> 'processing'"
        with self.step():
            return sum(self.db.execute(idle, [id]).rowcount for id in ids)

    def purge(self, before, statuses):
        where = "finished_at < :before AND status IN (SELECT value FROM json_each(:statuses)) LIMIT 1000"
        return self.delete([task.id for task in self.select(where, before=before, statuses=json.dumps([*statuses]))])

    # --- wakes, and closes

    def fileno(self):
        return self.wakeup.fileno()

    def wait(self, timeout):
        return self.wakeup.wait(timeout)

    def set_lane(self, *lane, **limits):
        raise StoreError(f"{type(self).__name__} has no lanes: use SQLiteStore")

    def close(self):
        self.db.close()
        self.wakeup.close()


# --- parts that the reader writes: ours, and what a reader's version must pass ----------------------------------------


def check_beside(beside):
    """Stop it after each of its steps: a reader finds the old text or the new one."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "list.json"
        path.write_text("old")
        steps = [(name, path.read_text()) for name in beside(path, "new and longer")]
        for name, text in steps:
            if text not in ("old", "new and longer"):
                raise conformance.Broken(f"the file after the step {name!r}: expected old or new, whole, got {text!r}")
        expect(
            path.read_text(), "new and longer", "the file at the end, where it was 'old' and 'new and longer' is saved"
        )
        expect(
            "old" in [text for _, text in steps], True, "a yield before the rename, after which the old text is there"
        )
        expect(sorted(file.name for file in path.parent.iterdir()), ["list.json"], "the files at the end")


@checked_by(check_beside)
def beside(path, text):
    with open(f"{path}.new", "w") as file:
        yield "opened beside"
        file.write(text)
    yield "written beside"
    os.replace(f"{path}.new", path)
    yield "renamed"


class Store(Table):
    """The lesson's store with all of its methods: what a reader's part is put into to be checked."""

    @contextmanager
    def step(self):
        try:
            with self.lock, self.db:
                self.db.execute("BEGIN IMMEDIATE")
                yield
        except sqlite3.Error as error:
            raise StoreError(f"nothing was stored: {error}") from error

    def put(self, task, **changes):
        task = replace(task, **{"version": task.version + 1, **changes})
        self.db.execute("UPDATE task SET body = ? WHERE id = ?", [msgspec.json.encode(task), task.id])
        return task

    def enter(self, task):
        if task.after or task.expires:
            raise InvalidTask("MyStore knows no after and no expires")
        for known in self.select("id = :id OR key = :key", id=task.id, key=task.key):
            return known.id
        self.db.execute("INSERT INTO task (body) VALUES (?)", [msgspec.json.encode(replace(task, version=1))])
        return task.id

    def add(self, tasks):
        with self.step():
            ids = [self.enter(task) for task in tasks]
        self.wakeup.wake()
        return ids

    def claim(self, worker, n, lease, now, types, queues=(), min_priority=None):
        mine = {"worker": worker, "lease_until": now + lease, "status": "processing", "started_at": now}
        mine |= {"progress": 0.0, "note": ""}
        with self.step():
            found = self.select(
                """status IN ('pending', 'retrying') AND run_at <= :now AND priority >= ifnull(:least, priority)
                AND type IN (SELECT value FROM json_each(:types))
                AND (:queues = '[]' OR queue IN (SELECT value FROM json_each(:queues)))
                ORDER BY priority DESC, run_at, seq LIMIT :n""",
                n=n, now=now, least=min_priority, types=json.dumps([*types]), queues=json.dumps([*queues]),
            )  # fmt: skip
            return [self.put(task, attempts=task.attempts + 1, **mine) for task in found]

    def same(self, task):
        return self.select("id = :id AND version = :version", id=task.id, version=task.version)

    def heartbeat(self, node, held, lease, now):
        self.meet(node, lease, now)
        lost = {task.id for task in held}
        with self.step():
            for task in held:
                for known in self.same(task):
                    if known.worker == task.worker:
                        news = {"progress": task.progress, "note": task.note, "lease_until": now + lease}
                        self.put(known, version=known.version, **news)
                        lost.discard(task.id)
        return lost


def keeps(name):
    """A check of a method of this name: the lesson's store with it has to keep the lesson's promises."""

    def check(function):
        make = type("MyStore", (Store,), {"update": update, "reap": reap, name: function})
        for result in conformance.run(make, lesson()):
            if result.status == "failed":
                raise conformance.Broken(f"{result.promise} {result.detail}")
        HOLES[name](make)

    return check


def _rings_after_the_commit(make):
    """The bell of `update` rings when another connection can see what was stored, and not before."""
    with TemporaryDirectory() as folder, closing(make(Path(folder) / "tasks.db")) as store:
        store.add([Task(id="t1", type="job")])
        store.wait(0)
        (task,) = store.claim("w1", 1, 30, 1000, {"job"})
        seen = []
        store.wakeup.wake = lambda: seen.append(store.db.in_transaction)
        store.update([(release(task), [])])
        expect(seen, [False], "for each ring of the bell in update, whether its transaction was still open")


def _locks_before_it_looks(make):
    """Both take the write lock first: with a plain BEGIN another process can come between look and take."""
    with closing(make()) as store:
        store.add([Task(id=f"t{n}", type="job") for n in range(2)])
        tasks = store.claim("w1", 2, 30, 1000, {"job"})
        asked = []
        store.db.set_trace_callback(asked.append)
        store.reap("w2", 2, 30, 1031)
        store.update([(succeed(task, None, 1032), []) for task in tasks])
        store.db.set_trace_callback(None)
        verbs = [statement.split()[0] for statement in asked]
        expect(
            (verbs[0], verbs.count("BEGIN"), verbs.count("COMMIT")),
            ("BEGIN", 2, 2),
            "first statement, BEGINs, COMMITs of one reap and one update",
        )


@checked_by(keeps("update"))
def update(self, outcomes):
    accepted = set()
    with self.step():
        for task, successors in outcomes:
            for stored in self.same(task):
                self.put(stored, **{field: getattr(task, field) for field in STATE})
                accepted.add(task.id)
                for successor in successors:
                    self.enter(successor)
    self.wakeup.wake()
    return accepted


@checked_by(keeps("reap"))
def reap(self, worker, n, lease, now):
    late = "status = 'processing' AND lease_until <= :now LIMIT :n"
    with self.step():
        return [self.put(task, worker=worker, lease_until=now + lease) for task in self.select(late, now=now, n=n)]


def _both(make):
    _locks_before_it_looks(make)
    _rings_after_the_commit(make)


def _only_what_runs(make):
    """An ended task is not taken over, whatever its lease says."""
    _locks_before_it_looks(make)
    with closing(make()) as store:
        store.add([Task(id="t1", type="job")])
        (task,) = store.claim("w1", 1, 30, 1000, {"job"})
        store.update([(replace(succeed(task, None, 1001), lease_until=1030), [])])
        expect(store.reap("w2", 1, 30, 1031), [], "reaped of a completed task whose lease_until has come")


HOLES = {"update": _both, "reap": _only_what_runs}

# --- why a lease needs a fence ----------------------------------------------------------------------------------------


class Leased:
    """A task that is claimed for 30 seconds. `fenced`: a result is accepted only for the version that stands there."""

    now, until, version, fenced = 0, 0, 0, False

    def __init__(self):
        self.results = []


class Fenced(Leased):
    fenced = True


def leases(t1, me):
    yield lambda: t1.now >= t1.until  # unclaimed, or its lease has ended
    t1.until = t1.now + 30
    mine = t1.version = t1.version + 1
    yield f"claims version {mine}"
    if not t1.fenced or mine == t1.version:
        t1.until, t1.results = inf, [*t1.results, me]  # it has ended
        yield "hands in a result"


def one_result(t1):
    assert len(t1.results) <= 1, "two results of t1 were accepted"


def gullible(store):
    """A store that believes outcomes of any version."""

    class Gullible(store):
        def update(self, outcomes):
            stored = {task.id: task.version for task in self.get([task.id for task, _ in outcomes])}
            known = [(task, successors) for task, successors in outcomes if task.id in stored]
            return super().update([(replace(task, version=stored[task.id]), more) for task, more in known])

    return Gullible


# --- every story of a real store --------------------------------------------------------------------------------------


class World:
    """A real store with one task in it, a clock, and the outcomes that were accepted."""

    def __init__(self, make):
        self.store, self.now, self.accepted = make(), 1000, []
        self.store.add([Task(id="t1", type="job")])
        self.close = self.store.close

    def is_open(self):
        """Whether a claim or a reap would give something, or the task has ended."""
        (t1,) = self.store.get(["t1"])
        return t1.status != "processing" or self.now >= t1.lease_until


def _worker(world, me):
    yield world.is_open
    for task in world.store.claim(me, 1, 30, world.now, {"job"}) or world.store.reap(me, 1, 30, world.now):
        yield f"has t1 in version {task.version}"
        world.accepted += world.store.update([(succeed(task, me, world.now), [])])
        yield "hands in"


def _accepts_one(world):
    assert len(world.accepted) <= 1, "two outcomes of t1 were accepted"


def _is_never_stuck(world):
    """t1 is stuck: it has not ended, and no worker will get it"""
    asked = "next", 1, 30, world.now
    return bool(world.accepted or world.store.claim(*asked, {"job"}) or world.store.reap(*asked))


def stories(make, crashes=0):
    """Tries every order in which two workers that try once, a clock and so many crashes can come between each other on
    a store from `make`. No two outcomes of t1 may be accepted; in the end it has one, or the next worker gets it."""
    return explore(
        lambda: World(make),
        dict.fromkeys("AB", _worker),
        _accepts_one,
        at_end=_is_never_stuck,
        world={"clock": time_passes(30, when=lambda world: not world.is_open())},
        key=lambda world: (world.now, *world.accepted, str(world.store.find())),
        crashes=crashes,
    )


# --- the lesson's part of the conformance suite -----------------------------------------------------------------------

LATER = {
    # parents and children
    "all_options_come_back",
    "the_statistics_name_every_status",
    "the_oldest_is_the_one_that_waits_longest",
    "successors_are_added_with_an_accepted_outcome",
    "a_cancelled_task_is_not_claimed",
    "delete_removes_and_counts",
    "the_children_of_a_deleted_parent_are_doomed",
    "a_family_may_be_deleted_together",
    "purge_never_touches_unfinished_tasks",
    "what_was_added_survives_a_crash",
    "what_was_accepted_survives_a_crash",
    "dependencies_survive_a_crash",
    # parents that are kept for their children
    "purge_keeps_what_an_unfinished_task_needs",
    "purge_keeps_what_a_later_child_needs",
    "purge_goes_past_what_it_keeps",
    "what_was_kept_is_purged_however_its_child_ended",
    "a_revived_child_needs_its_parents_again",
    "deleting_an_ended_parent_dooms_its_waiting_children",
    "deleting_the_parent_of_a_running_child_dooms_its_next_attempt",
    "a_parent_that_comes_again_is_kept_for_who_names_it",
    "all_processes_keep_what_is_needed",
    "what_is_needed_is_kept_after_a_crash",
    # an id that is used again when its task was removed
    "a_claim_of_a_deleted_task_cannot_reach_the_new_one",
    "a_claim_of_a_purged_task_cannot_reach_the_new_one",
    "a_successor_with_the_id_of_a_removed_task_is_fenced",
    "a_new_task_begins_above_every_removed_version",
    "a_family_deleted_in_one_call_counts_as_it_was",
    "a_claim_stays_fenced_when_another_process_deletes",
    "versions_do_not_recur_after_a_restart",
    # a key that goes from a task to its successor
    "a_successor_takes_over_the_key_of_its_parent",
    "a_task_whose_key_was_taken_over_is_claimed_without_it",
    "a_key_that_was_taken_over_stays_so_after_a_crash",
    # expiry
    "an_expired_task_is_claimed_only_to_be_ended",
    "expiry_reaches_whatever_waits",
    "the_doomed_go_only_where_their_type_runs",
    "the_counters_equal_a_recount",
    "next_due_says_when_to_look_again",
    # lanes and limits
    "the_doomed_come_first_and_pass_every_limit",
    "limits_survive_a_crash",
    "whose_turn_it_is_survives_a_crash",
    "two_processes_see_the_same",
    # word from other processes
    "another_process_is_woken",
    "the_tasks_of_a_dead_node_are_taken_over_at_once",
    "the_tasks_of_a_node_that_left_are_taken_over_at_once",
}

GROUPS = ("add", "claim", "update", "leases", "look", "removal", "waiting", "threads", "durable")


def lesson():
    """The checks that the lesson's store must pass."""
    return [check for check in conformance.group(*GROUPS) if check.name not in LATER]


def subjects(store, folder):
    """Return a factory: each call makes a new store of this class on its own file, which can be opened again."""
    number = count()

    def make():
        path = folder / f"asked-{next(number)}.db"
        return conformance.Subject(lambda: store(path), store.close)

    return make


# --- exercise 2.1: a disk that can be killed and unplugged ------------------------------------------------------------


class Dead(BaseException):
    """The process that used the disk is no more."""


class Disk:
    """A disk of named files, used by a process that dies after `steps` of its steps.

    What is written stands in the kernel's memory (`files`): a kill leaves it. A power cut leaves what was flushed
    (`safe`). Names reach the disk at once, before what stands in the file: the worst that a file system may do.
    """

    def __init__(self, files, steps):
        self.files, self.safe, self._left = dict(files), dict(files), steps

    def write(self, name, text):
        """Makes this the text of the file, in place: it is emptied, then half written, then whole."""
        for part in ("", text[: len(text) // 2], text):
            self._step()
            if part == "" and name in self.safe:
                self.safe[name] = ""
            self.files[name] = part
            self.safe.setdefault(name, "")

    def flush(self, name):
        """Waits until what was written to the file is on the disk."""
        self._step()
        self.safe[name] = self.files[name]

    def rename(self, old, new):
        """Rename the file in one step. A file that had the new name is replaced."""
        self._step()
        for names in (self.files, self.safe):
            names[new] = names.pop(old)

    def _step(self):
        if self._left == 0:
            raise Dead
        self._left -= 1


OLD, NEW = "old text", "new text"


def crashed(save, steps):
    """The disk after that many steps of a save, and whether it came to its end."""
    disk = Disk({"list": OLD}, steps)
    try:
        save(disk, "list", NEW)
    except Dead:
        return disk, False
    return disk, True


def _after_each_step(save, kept):
    found, ended = [], False
    while not ended:
        disk, ended = crashed(save, len(found))
        found.append(getattr(disk, kept).get("list"))
    return found


def killed(save):
    """What the file says when the process was killed after 0, 1, 2, ... steps, and at the end."""
    return _after_each_step(save, "files")


def unplugged(save):
    """What the file says when the power went after 0, 1, 2, ... steps, and at the end."""
    return _after_each_step(save, "safe")


def check_save(save):
    for what, crash in (("kill -9", killed), ("a power cut", unplugged)):
        found = crash(save)
        expect(found[-1], NEW, f"the file after {what} when save has returned")
        for steps, text in enumerate(found):
            if text != OLD:
                expect(text, NEW, f"the file after {what} at step {steps}, as it is no longer {OLD!r}")
    whole = Disk({"a": "1", "b": "2"}, -1)
    save(whole, "b", "3")
    expect({name: whole.safe[name] for name in ("a", "b")}, {"a": "1", "b": "3"}, "two files, after save(disk, 'b')")


SAVE_SOLUTION = """
def save(disk, name, text):
    disk.write(name + ".new", text)
    disk.flush(name + ".new")
    disk.rename(name + ".new", name)
"""

SAVE = exercise(
    "2.1",
    "Write `save(disk, name, text)`: whatever happens, a reader of the file finds its old text or the new one, whole; "
    "and when `save` has returned, the new one survives a power cut.\n\n"
    "The disk is a small model. `disk.write(name, text)` takes three steps: the file is emptied, half written, whole; "
    "all in the kernel's memory. `disk.flush(name)` brings it to the disk. `disk.rename(old, new)` is one step. After "
    "a power cut, a file that was not flushed is empty, though it may have its new name already. `killed(save)` and "
    "`unplugged(save)` say what a reader finds after a crash at each step.",
    effort="about 3 lines, 8 minutes",
    hints=[
        "Which steps touch the file that has the good text in it? There should be only one.",
        "Write beside, then rename. What does a power cut leave of a file that was renamed, but never flushed?",
        "Three calls: `write` to `name + '.new'`, `flush` of that, and then `rename`. In this order.",
    ],
    solution=SAVE_SOLUTION,
    check=check_save,
    why="the only step that touches the old text is the rename, and at that time the new text is on the disk. On a "
    "real disk the folder is flushed too, after the rename, so that the new name is as safe as the text.",
    samples=["killed(save)", "unplugged(save)"],
    wrong=[
        ("in place", "def save(disk, name, text):\n    disk.write(name, text)\n    disk.flush(name)"),
        ("never flushed", SAVE_SOLUTION.replace('    disk.flush(name + ".new")\n', "")),
        (
            "flushed after the rename",
            SAVE_SOLUTION.replace('    disk.flush(name + ".new")\n', "") + "    disk.flush(name)\n",
        ),
        (
            "renamed before it is written",
            "def save(disk, name, text):\n    disk.rename(name, name + '.old')\n"
            "    disk.write(name, text)\n    disk.flush(name)",
        ),
        ("saved beside only", SAVE_SOLUTION.replace('    disk.rename(name + ".new", name)\n', "")),
    ],
)

# --- exercises 2.2 and 2.3: a table of tasks, and a rival -------------------------------------------------------------

TABLE = """CREATE TABLE task (id INTEGER PRIMARY KEY, status TEXT, priority INTEGER, worker TEXT,
    lease_until INTEGER, version INTEGER DEFAULT 1)"""


class Slow(sqlite3.Connection):
    """A connection whose user is slow: before each statement but the first, a rival uses the table, if it may."""

    rival = None
    begun = False

    def execute(self, *args):
        return self.cursor().execute(*args)

    def executemany(self, *args):
        return self.cursor().executemany(*args)

    def cursor(self, factory=None):
        return super().cursor(SlowCursor)


class SlowCursor(sqlite3.Cursor):
    def execute(self, *args):
        if self.connection.rival and self.connection.begun:
            self.connection.rival()
        self.connection.begun = self.connection.rival is not None
        return super().execute(*args)

    def executemany(self, sql, rows):
        for row in rows:
            self.execute(sql, row)
        return self


def _table(rows, path=":memory:"):
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, factory=Slow)
    db.executescript(TABLE)
    db.executemany("INSERT INTO task (id, status, priority, worker, lease_until) VALUES (?, ?, ?, ?, ?)", rows)
    return db


WAITING = [(n, "pending", priority, None, None) for n, priority in enumerate((0, 5, 5, 1), 1)]
HELD = [
    (1, "processing", 0, "w1", 990),
    (2, "processing", 0, "w1", 1030),
    (3, "completed", 0, "w1", 980),
    (4, "processing", 0, "w2", 1000),
    (5, "pending", 0, None, None),
]


def waiting():
    """A database with four waiting tasks: 1 of priority 0, 2 and 3 of priority 5, 4 of priority 1."""
    return _table(WAITING)


def held():
    """A database with tasks in all states: at 1000 s the leases of 1 and 4 have run out, and that of 2 has not."""
    return _table(HELD)


def _rows(db, columns):
    return sqlite3.Cursor(db).execute(f"SELECT {columns} FROM task ORDER BY id").fetchall()


def _beside_a_rival(rows, statement, use):
    """Return what `use` got from a slow connection, what the rival's statement got, and the table afterwards."""
    got = []
    with TemporaryDirectory() as folder:
        path = Path(folder) / "tasks.db"
        with closing(_table(rows, path)) as db, closing(sqlite3.connect(path, timeout=0)) as other:
            other.isolation_level = None

            def rival():
                with suppress(sqlite3.OperationalError):  # locked: no other writer until the commit
                    got.extend(id for (id,) in other.execute(statement).fetchall())

            db.rival = rival
            return use(db), got, _rows(db, "id, status, worker, version")


def check_claim(claim):
    with closing(waiting()) as db:
        expect([claim(db, "w1") for _ in range(5)], [2, 3, 4, 1, None], "five claims of four tasks")
        expect(_rows(db, "status, worker"), [("processing", "w1")] * 4, "status and worker afterwards")
    mine, rivals, rows = _beside_a_rival(
        WAITING,
        "UPDATE task SET status = 'processing', worker = 'w2' WHERE id = "
        "(SELECT id FROM task WHERE status = 'pending' ORDER BY priority DESC, id LIMIT 1) RETURNING id",
        lambda db: [claim(db, "w1") for _ in range(4)],
    )
    expect(sorted({*mine} & {*rivals}), [], "tasks that two workers got, as one came between the other's statements")
    expect([id for id, _, worker, _ in rows if worker == "w1"], sorted(filter(None, mine)), "tasks that are w1's")


CLAIM_SOLUTION = '''
def claim(db, worker):
    row = db.execute(
        """UPDATE task SET status = 'processing', worker = ? WHERE id = (
            SELECT id FROM task WHERE status = 'pending' ORDER BY priority DESC, id LIMIT 1)
        RETURNING id""",
        [worker],
    ).fetchone()
    return row[0] if row else None
'''
SELECT_FIRST = """
def claim(db, worker):
    row = db.execute(
        "SELECT id FROM task WHERE status = 'pending' ORDER BY priority DESC, id LIMIT 1").fetchone()
    if row:
        db.execute("UPDATE task SET status = 'processing', worker = ? WHERE id = ?", [worker, *row])
        return row[0]
"""

CLAIM = exercise(
    "2.2",
    "Write `claim(db, worker)`: it takes the best task of those that are `pending` and returns its `id`, or `None` "
    "where there is none. The best has the highest `priority`; of equals, the lowest `id`. The task becomes "
    "`processing`, and `worker` says who has it. Between any two of your statements, another worker claims, if it is "
    "not locked out."
    "\n\nThe table is `task (id, status, priority, worker)`, and `waiting()` makes a database with four tasks.",
    effort="about 7 lines, 10 minutes",
    hints=[
        "Look and take in one statement, as `one_statement` above does. What is missing there?",
        "The order: `ORDER BY priority DESC, id LIMIT 1` in the inner SELECT.",
        "`UPDATE task SET status = 'processing', worker = ? WHERE id = (SELECT ...) RETURNING id`, then `fetchone()`: "
        "it returns a row, or None.",
    ],
    solution=CLAIM_SOLUTION,
    check=check_claim,
    why="a statement is one transaction: no other writer comes between the inner SELECT and the UPDATE around it. "
    "`BEGIN IMMEDIATE`, SELECT, UPDATE, `COMMIT` is right too: it locks before it looks.",
    samples=["[claim(db, 'w1') for db in [waiting()] for _ in range(5)]"],
    wrong=[
        ("selects, then updates", SELECT_FIRST),
        (
            "believes that it was quick enough",
            SELECT_FIRST.replace("WHERE id = ?", "WHERE id = ? AND status = 'pending'"),
        ),
        (
            "a transaction that looks before it locks",
            SELECT_FIRST.replace("    row =", '    db.execute("BEGIN")\n    row =').replace(
                "    if row", '    db.execute("COMMIT")\n    if row'
            ),
        ),
        ("selects, then updates, by a cursor", SELECT_FIRST.replace("db.execute", "db.cursor().execute")),
        ("the oldest first", CLAIM_SOLUTION.replace("priority DESC, id", "id")),
        ("the lowest priority first", CLAIM_SOLUTION.replace("DESC, id", ", id")),
        ("does not say who", CLAIM_SOLUTION.replace("worker = ?", "worker = NULL").replace("[worker]", "[]")),
    ],
)


def check_reap(reap):
    with closing(held()) as db:
        expect(
            sorted(reap(db, "w9", 30, 1000)), [1, 4], "reaped at 1000 s, when the leases ended at 990, 1030 and 1000"
        )
        found = {id: rest for id, *rest in _rows(db, "id, status, worker, lease_until, version")}
        for id in (1, 4):
            expect(found[id], ["processing", "w9", 1030, 2], f"status, worker, lease and version of task {id}")
        for id, status, _, worker, lease in (HELD[1], HELD[2], HELD[4]):
            expect(found[id], [status, worker, lease, 1], f"status, worker, lease and version of task {id}")
        expect(sorted(reap(db, "w8", 30, 1001)), [], "reaped a second later")
    mine, finished, rows = _beside_a_rival(
        HELD,
        "UPDATE task SET status = 'completed' WHERE id = 1 AND version = 1 AND status = 'processing' RETURNING id",
        lambda db: [*reap(db, "w9", 30, 1000)],
    )
    expect(sorted({*mine} & {*finished}), [], "taken over, though its worker had finished it before the update")
    expect([id for id, _, worker, _ in rows if worker == "w9"], sorted(mine), "tasks that are w9's")


REAP_SOLUTION = '''
def reap(db, worker, lease, now):
    rows = db.execute(
        """UPDATE task SET worker = ?, lease_until = ?, version = version + 1
        WHERE status = 'processing' AND lease_until <= ? RETURNING id""",
        [worker, now + lease, now],
    ).fetchall()
    return [id for (id,) in rows]
'''

REAP = exercise(
    "2.3",
    "Write `reap(db, worker, lease, now)`: it takes over every task that is `processing` and whose `lease_until` has "
    "come, and gives their ids. Such a task gets the new worker, a lease of `lease` seconds from `now`, and a "
    "`version` one higher. Between two statements of yours its old worker may still finish.\n\n"
    "`held()` makes a database with five tasks; at 1000 s the leases of 1 and 4 have run out.",
    effort="about 6 lines, 10 minutes",
    hints=[
        "One statement again, with `RETURNING id`; this time it may give many rows.",
        "Whom may you take a task from? Both the status and the lease have a say.",
        "`SET worker = ?, lease_until = ?, version = version + 1 WHERE status = 'processing' AND lease_until <= ?`",
    ],
    solution=REAP_SOLUTION,
    check=check_reap,
    why="the old worker still knows version 1. If it wakes up and hands in a result, that is for a version that is "
    "no longer there, and is refused: the lease guesses that a worker is dead, and the version makes the guess safe.",
    samples=["reap(held(), 'w9', 30, 1000)", "reap(held(), 'w9', 30, 900)"],
    wrong=[
        (
            "selects, then updates",
            """
            def reap(db, worker, lease, now):
                ids = [id for (id,) in db.execute(
                    "SELECT id FROM task WHERE status = 'processing' AND lease_until <= ?", [now]).fetchall()]
                for id in ids:
                    db.execute(
                        "UPDATE task SET status = 'processing', worker = ?, lease_until = ?, version = version + 1 "
                        "WHERE id = ?", [worker, now + lease, id])
                return ids
            """,
        ),
        (
            "selects, then updates, by a cursor",
            """
            def reap(db, worker, lease, now):
                cursor = db.cursor()
                ids = [id for (id,) in cursor.execute(
                    "SELECT id FROM task WHERE status = 'processing' AND lease_until <= ?", [now]).fetchall()]
                take = "UPDATE task SET worker = ?, lease_until = ?, version = version + 1 WHERE id = ?"
                cursor.executemany(take, [(worker, now + lease, id) for id in ids])
                return ids
            """,
        ),
        ("keeps the version", REAP_SOLUTION.replace(", version = version + 1", "")),
        ("takes what has ended", REAP_SOLUTION.replace("status = 'processing' AND ", "")),
        ("takes from the living", REAP_SOLUTION.replace("<= ?", "< ? + 1000")),
        ("a moment too late", REAP_SOLUTION.replace("<= ?", "< ?")),
        ("a lease that has run out already", REAP_SOLUTION.replace("now + lease, now]", "now, now]")),
    ],
)

# --- exercise 2.4: a journal with checksums ---------------------------------------------------------------------------


def line(event):
    """A line of the journal: eight hexadecimal digits of checksum, a space, the event as JSON, and a newline."""
    text = json.dumps(event, ensure_ascii=False).encode()
    return b"%08x %s\n" % (crc32(text), text)


EVENTS = [{"add": "t1"}, {"add": "t2"}, {"done": "t1"}]
journal = b"".join(map(line, EVENTS))


def check_read(read):
    expect(read(b""), ([], 0), "read(b'')")
    expect(read(journal), (EVENTS, len(journal)), "read(journal)")
    ends = [len(line(EVENTS[0])), len(line(EVENTS[0]) + line(EVENTS[1])), len(journal)]
    for cut in range(len(journal)):
        whole = sum(end <= cut for end in ends)
        expect(read(journal[:cut]), (EVENTS[:whole], [0, *ends][whole]), f"read(journal[:{cut}])")
    for at in range(ends[0], ends[1]):
        damaged = journal[:at] + bytes([journal[at] ^ 1]) + journal[at + 1 :]
        expect(read(damaged), (EVENTS[:1], ends[0]), f"the journal with byte {at}, in its second line, damaged")
    expect(read(b"no journal at all\n" + journal), ([], 0), "a file that begins with another line")
    word = [{"add": "Zoë"}]
    expect(read(line(word[0])), (word, len(line(word[0]))), "a name with a letter of two bytes")


READ_SOLUTION = """
def read(data):
    events, size = [], 0
    for line in data.split(b"\\n")[:-1]:
        checksum, _, text = line.partition(b" ")
        if checksum != b"%08x" % crc32(text):
            break
        events.append(json.loads(text))
        size += len(line) + 1
    return events, size
"""

READ = exercise(
    "2.4",
    "A disk can also damage what stands in the middle. So each line of this journal begins with a checksum of its "
    "text: `b'%08x ' % crc32(text) + text + b'\\n'`, where `text` is the event as JSON.\n\n"
    "Write `read(data)`: it returns the events of all lines before the first one that is torn or damaged, and how many "
    "bytes those lines take, so that the rest can be cut off. `journal` has three lines to try it on.",
    effort="about 8 lines, 12 minutes",
    hints=[
        "Split at newlines. What is behind the last newline is torn, and if nothing is torn, it is empty.",
        "`line.partition(b' ')` gives checksum, space and text, and never fails. Compute what the checksum should be, "
        "and compare the bytes.",
        "At the first difference: `break`. The size grows by `len(line) + 1`, for the newline; all of it in bytes.",
    ],
    solution=READ_SOLUTION,
    check=check_read,
    why="what follows a damaged line may depend on what the line said, so the journal ends there. A damage that has "
    "the right checksum by chance happens once in four thousand million; the newline alone would notice only a tear.",
    samples=["read(journal)", "read(journal[:-5])", "read(journal.replace(b't2', b'tX'))"],
    wrong=[
        ("believes what it reads", READ_SOLUTION.replace("checksum != b\"%08x\" % crc32(text)", "not text")),
        ("skips what is damaged", READ_SOLUTION.replace("break", "continue")),
        ("a line needs no end", READ_SOLUTION.replace("[:-1]", "").replace("+ 1", "+ (line in data)")),
        ("fails on what is no number", READ_SOLUTION.replace(
            "checksum != b\"%08x\" % crc32(text)", "int(checksum, 16) != crc32(text)"
        )),
        ("counts letters", READ_SOLUTION.replace("len(line) + 1", "len(line.decode()) + 1")),
        ("forgets the newlines", READ_SOLUTION.replace("len(line) + 1", "len(line)")),
    ],
)  # fmt: skip
