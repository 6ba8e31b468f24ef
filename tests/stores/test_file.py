"""What is special about the file store: its directory, its journal, its disk, and what a crash leaves of them."""

from __future__ import annotations

import errno
import gc
import json
import os
import random
import shutil
import subprocess
import sys
import tracemalloc
from contextlib import closing
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from dtq.errors import InvalidTask, StoreError
from dtq.queue.manager import QueueManager
from dtq.stores.file import replica
from dtq.stores.file.changes import Moved
from dtq.stores.file.disk import Disk
from dtq.stores.file.journal import Diverged, Journal, format_line, parse
from dtq.stores.file.store import FileStore
from dtq.stores.open import open_store
from dtq.stores.protocol import Node, Store
from dtq.stores.shared.lockfile import Lockfile
from dtq.task.model import STATE, ErrorInfo, Task
from dtq.task.transitions import brief_of, cancel, fail, revive, succeed

NOW = 1000.0
NEVER = 86400.0  # the files are written when the test says so


def task(n: object = 0, **options: object) -> Task:
    return Task(**{"type": "a", "id": f"t{n}", "created_at": NOW, "run_at": NOW, **options})  # type: ignore[arg-type]


def opened(directory: Path, **options: object) -> FileStore:
    return FileStore(directory, **{"persistence_interval": NEVER, **options})  # type: ignore[arg-type]


def everything(store: Store) -> list[Task]:
    return store.find(limit=100_000)


def ids(store: Store) -> list[str]:
    return [task.id for task in everything(store)]


def journals(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.glob("journal-*"))


def task_files(directory: Path) -> list[Path]:
    return sorted(directory.glob("tasks/*/*.json"))


# --- the directory ---------------------------------------------------------------------------------------------------


def test_urls_name_a_directory_and_its_options(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for url, path in [("file:a", "a"), (f"file:{tmp_path}/b", "b"), (f"file://{tmp_path}/c", "c")]:
        open_store(f"{url}?persistence_interval=60&durability=relaxed").close()
        assert (tmp_path / path / "format").exists()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("file:", "write file:relative/path"),
        ("file://host/x", "write file:relative/path"),
        ("file:q?interval=3", "there are: durability, persistence_interval"),
        ("file:q?persistence_interval=soon", "'soon' is no number of seconds"),
        ("file:q?persistence_interval=0", "allowed: 0.01 to 86,400 seconds"),
        ("file:q?durability=none", "'full', 'relaxed'"),
        ("sqlite:///q.db?persistence_interval=1", "there are: durability"),
    ],
)
def test_a_url_that_cannot_be_is_refused_with_what_can(url, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StoreError, match=message):
        open_store(url)
    assert list(tmp_path.iterdir()) == []


def test_a_directory_with_something_else_in_it_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("dear diary")
    with pytest.raises(StoreError, match=r"holds 'notes.txt' and is no queue: use an empty directory"):
        opened(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_directory_of_another_format_is_refused(tmp_path):
    opened(tmp_path).close()
    (tmp_path / "format").write_text("dtq file store 2\n")
    with pytest.raises(StoreError, match=r"this dtq knows b'dtq file store 1\\n': upgrade dtq, or use another"):
        opened(tmp_path)


def test_a_label_that_is_damaged_keeps_no_queue_from_starting(tmp_path, caplog):
    opened(tmp_path).close()
    (tmp_path / "format").write_text("dtq filf store 1\n")
    opened(tmp_path).close()
    assert (tmp_path / "format").read_text() == "dtq file store 1\n"
    assert "is damaged, and written again: b'dtq filf store 1" in caplog.text


def test_the_label_of_somebody_else_is_refused(tmp_path):
    (tmp_path / "format").write_text("[]")
    with pytest.raises(StoreError, match="upgrade dtq, or use another directory"):
        opened(tmp_path)


@pytest.mark.parametrize("place", ["missing/queue", "file"])
def test_a_place_that_cannot_be_a_queue_is_named(tmp_path, place):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be opened") as caught:
        opened(tmp_path / place)
    assert str(tmp_path / place) in str(caught.value)


def test_processes_may_make_the_directory_at_the_same_time(tmp_path):
    code = "import sys; from dtq.stores.file.store import FileStore; FileStore(sys.argv[1]).close()"
    children = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "queue")]) for _ in range(4)]
    assert [child.wait(30) for child in children] == [0] * 4


def test_who_only_looks_leaves_no_trace(tmp_path):
    opened(tmp_path).close()
    before = sorted(os.listdir(tmp_path)), journals(tmp_path)
    with QueueManager(f"file:{tmp_path}") as manager:
        assert manager.stats().total == 0
    assert (sorted(os.listdir(tmp_path)), journals(tmp_path)) == before


def test_an_idle_node_writes_nothing(tmp_path):
    store = opened(tmp_path)
    store.heartbeat(Node("n", seen_at=NOW), (), 30, NOW)
    size = (tmp_path / "journal-1").stat().st_size
    for second in range(5):
        store.heartbeat(Node("n", seen_at=NOW + second), (), 30, NOW + second)
        store.reap("n", 10, 30, NOW + second)
        store.claim("n", 1, 30, NOW + second, {"a"})
        store.purge(NOW, {"completed"})
        store.wait(0)
    assert (tmp_path / "journal-1").stat().st_size == size
    store.close()


# --- one JSON file a task --------------------------------------------------------------------------------------------


def test_each_task_has_a_json_file_when_the_last_process_has_closed(tmp_path):
    store = opened(tmp_path)
    store.add([task(1, payload={"n": 1}), task(2, after=("t1",))])
    store.close()
    found = {value["task"]["id"]: value for value in (json.loads(path.read_text()) for path in task_files(tmp_path))}
    assert found["t1"]["task"]["payload"] == {"n": 1}
    assert found["t2"]["waits_for"] == ["t1"]
    assert journals(tmp_path) == ["journal-2"]
    assert (tmp_path / "journal-2").read_bytes() == b""


def test_files_are_written_within_the_interval_and_the_old_journal_goes(tmp_path):
    store, following = opened(tmp_path, persistence_interval=0.02), opened(tmp_path)
    store.add([task(1)])
    while journals(tmp_path) != ["journal-2"]:
        following.wait(0.01)
    assert len(task_files(tmp_path)) == 1
    assert ids(following) == ["t1"]
    store.close()
    following.close()


def test_a_long_journal_is_written_to_the_files_before_the_interval_is_over(tmp_path, monkeypatch):
    monkeypatch.setattr("dtq.stores.file.journal.LONG", 2000)
    store, following = opened(tmp_path), opened(tmp_path)
    store.add([task(1, payload="x" * 2000)])
    while journals(tmp_path) != ["journal-2"]:
        following.wait(0.01)
    assert len(task_files(tmp_path)) == 1
    assert ids(following) == ["t1"]
    store.close()
    following.close()


def test_who_finds_another_process_writing_files_leaves_it_to_that_one(tmp_path, caplog):
    store = opened(tmp_path)
    store.add([task(1)])
    with closing(Lockfile(f"{tmp_path}/persist.lock")) as other:
        assert other.try_lock()
        store.checkpoint()
    assert task_files(tmp_path) == []
    assert caplog.text == ""
    store.close()
    assert len(task_files(tmp_path)) == 1


def test_a_start_does_not_mind_that_another_process_is_writing_files(tmp_path):
    disk = Disk()
    store = opened(tmp_path, disk=disk)
    store.add([task(n) for n in range(3)])
    starts = []

    def rename_after_a_start(path, data, place=disk.place):
        with open(f"{os.path.dirname(path)}/.{os.path.basename(path)}", "wb"):
            starts.append(opened(tmp_path))
        place(path, data)

    disk.place = rename_after_a_start
    store.checkpoint()
    assert [ids(other) for other in starts] == [["t0", "t1", "t2"]] * 5
    for other in (*starts, store):
        other.close()


def test_the_file_of_a_deleted_task_goes(tmp_path):
    store = opened(tmp_path)
    store.add([task(1), task(2)])
    store.checkpoint()
    store.delete(["t1"])
    store.checkpoint()
    assert [path.name for path in task_files(tmp_path)] == ["t2.json"]
    store.close()


@pytest.mark.parametrize("pair", [("a/b", "a-b"), ("Task", "task"), (":x", "@x"), ("..", "."), ("x" * 199, "x" * 198)])
def test_ids_that_are_no_file_names_have_files_of_their_own(tmp_path, pair):
    given = [f"q{id}" for id in pair]
    store = opened(tmp_path)
    store.add([task(id=id) for id in given])
    store.close()
    assert len({path.name.lower() for path in task_files(tmp_path)}) == 2
    store = opened(tmp_path)
    assert ids(store) == sorted(given)
    store.close()


def test_a_file_may_be_edited_while_the_queue_is_closed(tmp_path):
    store = opened(tmp_path)
    store.add([task(1, payload="old")])
    store.close()
    (path,) = task_files(tmp_path)
    path.write_text(path.read_text().replace("old", "new"))
    store = opened(tmp_path)
    assert store.get(["t1"])[0].payload == "new"
    store.close()


def test_what_a_transition_may_change_is_what_the_journal_says_of_a_known_task():
    assert {field.name for field in msgspec.structs.fields(Moved)} == {"id", "version", *STATE}


# --- crashes ---------------------------------------------------------------------------------------------------------


class Recording(Disk):
    """Records what was done, in order."""

    def __init__(self) -> None:
        self.done: list[tuple] = []
        self._paths: dict[int, str] = {}
        self._aside = False

    def create(self, path):
        descriptor = super().create(path)
        self.done.append(("create", path))
        return descriptor

    def append(self, descriptor, data):
        super().append(descriptor, data)
        if not self._aside:
            self.done.append(("append", os.readlink(f"/proc/self/fd/{descriptor}"), bytes(data)))

    def flush(self, descriptor):
        super().flush(descriptor)
        self.done.append(("flush", os.readlink(f"/proc/self/fd/{descriptor}")))

    def cut(self, descriptor, size):
        super().cut(descriptor, size)
        self.done.append(("cut", os.readlink(f"/proc/self/fd/{descriptor}"), size))

    def place(self, path, data):
        self._aside = True
        super().place(path, data)
        self._aside = False
        self.done.append(("place", path, data))

    def remove(self, path):
        super().remove(path)
        self.done.append(("remove", path))

    def flush_all(self):
        self.done.append(("flush all",))


class Files:
    """What the disk holds after some of the recorded writes: `written` after a kill, `safe` at least after a power
    cut."""

    def __init__(self) -> None:
        self.written: dict[str, bytes] = {}
        self.safe: dict[str, bytes] = {}

    def do(self, what: str, path: str = "", more: object = b"") -> None:
        if what == "create":
            self.written[path] = self.safe[path] = b""
        elif what == "append":
            self.written[path] += more
        elif what == "cut":
            self.written[path] = self.written[path][:more]
        elif what == "place":
            self.written[path] = more
        elif what == "remove":
            self.written.pop(path, None)
            self.safe.pop(path, None)
        elif what == "flush":
            self.safe[path] = self.written[path]
        elif what == "flush all":
            self.safe = dict(self.written)


class Copy:
    """A directory with what a crash has left. Between crashes, only what differs is written."""

    def __init__(self, source: Path, target: Path) -> None:
        self.source, self.target = source, target
        self._there: dict[Path, bytes] = {}

    def lay_out(self, files: dict[str, bytes]) -> None:
        wanted = {self.target / Path(path).relative_to(self.source): data for path, data in files.items()}
        for path in {*self._there, *self.target.glob("journal-*")} - wanted.keys():
            path.unlink(missing_ok=True)
        for path, data in wanted.items():
            if self._there.get(path) != data or path.name.startswith("journal-"):  # a store that was opened may cut it
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
        self._there = wanted


def live(store: FileStore, chance: random.Random, told) -> None:
    """A life of some hundred commits, after each of which it is told whether that has to last."""
    number, now = 0, NOW
    held: list[Task] = []
    for _ in range(330):
        now += 0.1
        deed = chance.choice(["add", "add", "claim", "claim", "update", "update", "heartbeat", "delete", "persist"])
        lasts = False
        if deed == "add":
            number += 1
            parents = tuple(t.id for t in everything(store)[-1:] if chance.random() < 0.3)
            store.add([task(f"{number:03}", payload="x" * chance.randrange(40), after=parents)])
            lasts = True
        elif deed == "claim":
            held += store.claim("w", 2, 30, now, {"a"})
        elif deed == "update" and held:
            ended = held.pop()
            ended = succeed(ended, 1, now) if chance.random() < 0.5 else fail(ended, ErrorInfo("E"), now, lambda: 0.0)
            lasts = bool(store.update([(ended, ())]))
        elif deed == "heartbeat":
            store.heartbeat(Node("w"), held, 30, now)
        elif deed == "delete" and len(everything(store)) > 8:
            lasts = bool(store.delete([t.id for t in everything(store)[:4]]))
        elif deed == "persist" and chance.random() < 0.5:
            store.checkpoint()
        told(lasts)


def crash_after_each_write(directory: Path, disk: Recording, seed: int) -> int:
    """Crash after every prefix of the writes, with the last write torn, and without unflushed data. The tasks found
    must be those of some moment, not earlier than the last acknowledged call. Return how many crashes were tried."""
    source = directory / "queue"
    copy = Copy(source, directory / "crashed")
    store = opened(source, disk=disk)
    moments = [(0, True, [])]  # writes until then, whether what they did has to last, and the tasks

    def note(lasts: bool) -> None:
        moments.append((len(disk.done), lasts, everything(store)))

    live(store, random.Random(seed), note)
    store.abandon()
    files, chance, tried = Files(), random.Random(seed + 1), 0
    for n, step in enumerate(disk.done, 1):
        torn = dict(files.written)
        if step[0] == "append":
            torn[step[1]] += step[2][: chance.randrange(len(step[2]))]
        files.do(*step)
        for written, count, safe in ((files.written, n, False), (torn, n - 1, False), (files.safe, n, True)):
            if (written is torn and step[0] != "append") or str(source / "format") not in written:
                continue
            first = max(i for i, (done, lasts, _) in enumerate(moments) if done <= count and (lasts or not safe))
            possible = [tasks for _, _, tasks in moments[first : first + (40 if safe else 2)]]
            copy.lay_out(written)
            found = opened(copy.target)
            there = everything(found)
            found.abandon()
            assert there in possible, f"after {n} writes, the last {step}"
            tried += 1
    return tried


@pytest.mark.parametrize(
    "seed",
    [pytest.param(3, marks=pytest.mark.long), *(pytest.param(seed, marks=pytest.mark.hourly) for seed in (4, 5, 6))],
)
def test_a_kill_after_any_write_loses_nothing_that_was_acknowledged_and_a_power_cut_nothing_either(
    tmp_path, seed, monkeypatch
):
    """The four lives have more than 2,600 writes. Each is cut off twice, with and without what was not flushed. Two of
    them evict all ended tasks."""
    monkeypatch.setattr(replica, "LARGE", 0 if seed % 2 else replica.LARGE)
    assert crash_after_each_write(tmp_path, Recording(), seed) > 1000


class Hasty(Recording):
    """Reports that everything is on the disk, and does not flush it."""

    def flush(self, descriptor):
        pass


def test_the_crash_test_detects_a_disk_that_is_not_flushed(tmp_path):
    with pytest.raises(AssertionError, match="writes, the last"):
        crash_after_each_write(tmp_path, Hasty(), 3)


def filled(directory: Path) -> FileStore:
    """Three tasks in files, and in the journal three more, with a change of each of the first."""
    store = opened(directory)
    store.add([task(n) for n in (1, 2, 3)])
    store.checkpoint()
    for number, claimed in enumerate(store.claim("w", 3, 30, NOW, {"a"}), 4):
        store.update([(succeed(claimed, "r", NOW), [task(number)])])
    return store


@pytest.mark.long
def test_a_journal_that_is_cut_at_any_byte_gives_all_that_was_before(tmp_path):
    store = filled(tmp_path / "queue")
    store.abandon()
    journal = tmp_path / "queue" / "journal-2"
    whole = journal.read_bytes()
    for size in range(len(whole) + 1):
        journal.write_bytes(whole[:size])
        store = opened(tmp_path / "queue")
        lines = whole[:size].count(b"\n")
        assert ids(store) == [f"t{n}" for n in range(1, 3 + max(lines, 1))]
        assert store.stats().counts["completed"] == max(0, lines - 1)
        if size % 100 == 0:
            assert store.add([task("new")]) == ["tnew"]
        store.abandon()


def test_a_journal_is_read_to_its_end_where_one_read_returns_a_part_only(tmp_path, monkeypatch):
    following = opened(tmp_path)
    store = filled(tmp_path)
    store.abandon()
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda file, size, offset: pread(file, min(size, 100), offset))
    starting = opened(tmp_path)
    assert everything(following) == everything(starting)
    assert len(ids(starting)) == 6
    for store in (following, starting):
        store.abandon()


def test_a_line_that_is_damaged_costs_itself_alone_and_is_kept(tmp_path, caplog):
    store = filled(tmp_path)
    store.abandon()
    journal = tmp_path / "journal-2"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([*lines[:2], lines[2].replace(b"t5", b"t7"), *lines[3:]]))
    store = opened(tmp_path)
    assert ids(store) == ["t1", "t2", "t3", "t4", "t6"]
    assert [t.status for t in everything(store)] == ["completed", "processing", "completed", "pending", "pending"]
    (kept,) = (tmp_path / "quarantine").iterdir()
    assert b"t7" in kept.read_bytes()
    assert "a line of the journal is damaged" in caplog.text
    store.close()


@pytest.mark.long
def test_a_task_file_that_is_cut_at_any_byte_is_put_aside_and_its_neighbours_stay(tmp_path, caplog):
    store = opened(tmp_path / "queue")
    store.add([task(n) for n in range(3)])
    store.close()
    whole = task_files(tmp_path / "queue")[0].read_bytes()
    cut = str(json.loads(whole)["task"]["id"])
    for size in range(len(whole) - 1):  # without the closing brace at most
        shutil.copytree(tmp_path / "queue", tmp_path / "cut")
        task_files(tmp_path / "cut")[0].write_bytes(whole[:size])
        store = opened(tmp_path / "cut")
        assert ids(store) == [id for id in ("t0", "t1", "t2") if id != cut]
        store.abandon()
        assert len(list((tmp_path / "cut" / "quarantine").iterdir())) == 1
        shutil.rmtree(tmp_path / "cut")
    assert "is damaged, or is not a file of this queue, and was moved to" in caplog.text


def test_a_file_with_the_number_or_id_of_another_task_does_not_replace_that_task(tmp_path, caplog):
    store = opened(tmp_path)
    store.add([task(n) for n in range(4)])
    store.close()
    by_id = {path.stem: path for path in task_files(tmp_path)}
    by_id["t1"].write_text(by_id["t1"].read_text().replace('"number": 2', '"number": 3'))
    by_id["t3"].write_text(by_id["t3"].read_text().replace('"t3"', '"t0"').replace("1000", "2000"))
    store = opened(tmp_path)
    assert store.get(["t0"])[0].run_at == NOW
    store.add([task("new")])
    assert sorted(t.id for t in store.claim("w", 10, 30, NOW, {"a"})) == ["t0", "t1", "t2", "tnew"]
    assert "it holds the task 't0'" in caplog.text
    store.close()


def test_other_files_among_the_tasks_are_quarantined(tmp_path, caplog):
    store = filled(tmp_path)
    store.close()
    folder = task_files(tmp_path)[0].parent
    (folder / "alien.json").write_text('{"hello": "world"}')
    (folder / "picture.png").write_bytes(b"\x89PNG\xff")
    (folder / "directory").mkdir()
    (folder / ".t9.json").write_text("half of a ta")  # still being written, or its writer died: not a problem to report
    store = opened(tmp_path)
    assert len(ids(store)) == 6
    assert sorted(os.listdir(tmp_path / "quarantine")) == ["alien.json", "directory", "picture.png"]
    assert caplog.text.count("or is not a file of this queue") == 3
    store.close()


@pytest.mark.parametrize("damaged", ["queue.json", "queue-copy.json"])
@pytest.mark.parametrize("change", [('"queue"', '"qudue"'), ('"q"', '"p"'), ('"rate":5', '"rate":9'), ('"', "")])
def test_a_damaged_file_changes_no_limit(damaged, change, tmp_path):
    store = opened(tmp_path)
    store.set_lane(queue="q", rate=5)
    store.close()
    path = tmp_path / damaged
    assert change[0] in path.read_text()
    path.write_text(path.read_text().replace(*change, 1))
    store = opened(tmp_path)
    assert [(limit.queue, limit.rate) for limit in store.stats().limits] == [("q", 5)]
    store.add([task()])
    store.close()
    store = opened(tmp_path)
    assert [(limit.queue, limit.rate) for limit in store.stats().limits] == [("q", 5)]
    store.close()


def test_unreadable_limits_are_quarantined_and_their_loss_is_logged(tmp_path, caplog):
    store = filled(tmp_path)
    store.close()
    for name in ("queue.json", "queue-copy.json"):
        (tmp_path / name).write_text("{")
    store = opened(tmp_path)
    assert len(ids(store)) == 6
    assert sorted(os.listdir(tmp_path / "quarantine")) == ["queue-copy.json", "queue.json"]
    assert "the limits of this queue are lost and no longer apply: set them again" in caplog.text
    store.close()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (('"status": "completed"', '"stauts": "completed"'), "there is no field 'stauts'"),  # it would run again
        (('"type": "ValueError"', '"type": "ValueError", "mesage": "x"'), "there is no field 'mesage'"),
        (('"max_attempts": 3', '"max_attempts": 3000'), "max_attempts is 3000; allowed"),
    ],
)
def test_a_task_file_with_an_unknown_field_or_a_bad_value_is_quarantined(change, said, tmp_path, caplog):
    store = opened(tmp_path)
    store.add([task(1, max_attempts=3)])
    (claimed,) = store.claim("w", 1, 30, NOW, {"a"})
    failed = fail(claimed, ErrorInfo("ValueError"), NOW, lambda: 0.0, final=True)
    store.update([(failed if "ValueError" in change[0] else succeed(claimed, None, NOW), ())])
    store.close()
    (path,) = task_files(tmp_path)
    assert change[0] in path.read_text()
    path.write_text(path.read_text().replace(*change))
    store = opened(tmp_path)
    assert ids(store) == []
    assert said in caplog.text
    store.close()


@pytest.mark.parametrize(("on_parent_failure", "status"), [("fail", "blocked"), ("run", "pending")])
def test_no_task_waits_for_a_parent_whose_file_is_damaged(on_parent_failure, status, tmp_path):
    store = opened(tmp_path)
    store.add([task(1), task(2, after=("t1",), on_parent_failure=on_parent_failure)])
    store.close()
    next(path for path in task_files(tmp_path) if path.stem == "t1").write_text("{")
    for _ in range(2):
        store = opened(tmp_path)
        (child,) = everything(store)
        assert (child.id, child.status, bool(child.doom)) == ("t2", status, status == "blocked")
        store.close()
    store = opened(tmp_path)
    assert [child.id for child in store.claim("w", 10, 30, NOW, {"a"})] == ["t2"]
    store.close()


# --- ended tasks that are large stay on the disk ---------------------------------------------------------------------

BIG = 100 * 1024  # bytes


def end(store: Store, result: object) -> list[Task]:
    """Let all waiting tasks complete. Return all tasks."""
    store.update([(succeed(claimed, result, NOW), ()) for claimed in store.claim("w", 100, 30, NOW, {"a"})])
    return everything(store)


def evicting(directory: Path, n: int) -> tuple[FileStore, FileStore, list[Task]]:
    """Two processes that have left `n` large tasks, t0 and so on, in their files."""
    store, other = opened(directory), opened(directory)
    store.add([task(n, payload="x" * BIG) for n in range(n)])
    ended = end(store, "y" * BIG)
    assert everything(other) == ended
    store.checkpoint()
    return store, other, ended


def test_no_process_keeps_large_ended_tasks_in_memory(tmp_path):
    opened(tmp_path).close()  # what is imported and made once does not count
    tracemalloc.start()
    try:
        stores = evicting(tmp_path, 40)[:2]
        briefs = [store.find(brief=True) for store in stores]
        third = opened(tmp_path)
        assert briefs == [third.find(brief=True)] * 2
        gc.collect()
        now, peak = tracemalloc.get_traced_memory()
        assert (now < 10 * BIG, peak > 40 * BIG) == (True, True), (now, peak)
    finally:
        tracemalloc.stop()
    for store in (*stores, third):
        store.close()


def test_who_opens_a_store_never_holds_all_large_ended_tasks(tmp_path):
    for store in evicting(tmp_path, 40)[:2]:
        store.close()
    tracemalloc.start()
    try:
        opened(tmp_path).close()
        assert tracemalloc.get_traced_memory()[1] < 15 * BIG
    finally:
        tracemalloc.stop()


def test_what_stays_on_the_disk_is_read_where_it_is_asked_for(tmp_path):
    store, other, ended = evicting(tmp_path, 3)
    third = opened(tmp_path)
    for look in (store, other, third):
        assert everything(look) == look.get(["t0", "t1", "t2"]) == ended
        assert look.find(brief=True) == list(map(brief_of, ended))
        look.close()


def test_large_ended_tasks_leave_memory_a_few_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(replica, "EVICTED_AT_ONCE", 2)
    store, other, ended = evicting(tmp_path, 5)
    for look in (store, other):
        for n in (2, 4, 5, 5):
            look.stats()
            assert len(look._directory._replica._evicted) == n
        assert everything(look) == ended
    for look in (store, other):
        look.close()


def test_opening_decodes_no_payload_and_no_result(tmp_path):
    store = opened(tmp_path)
    store.add([task(1, payload={"n": [1, "ü"]}), task(2)])
    store.close()
    store = opened(tmp_path)
    one, two = everything(store)
    assert (one.raw_payload, two.raw_payload) == (msgspec.Raw('{"n":[1,"ü"]}'.encode()), None)
    assert one.payload == {"n": [1, "ü"]}
    store.close()


def test_a_large_task_that_runs_again_is_whole_in_every_process(tmp_path):
    store, other = opened(tmp_path), opened(tmp_path)
    store.add([task(1, payload="x" * BIG)])
    store.update([(cancel(store.get(["t1"])[0], NOW), ())])
    store.checkpoint()
    assert other.update([(revive(other.get(["t1"])[0], NOW), ())]) == {"t1"}
    (claimed,) = store.claim("w", 1, 30, NOW, {"a"})
    assert claimed.payload == "x" * BIG
    other.checkpoint()
    store.abandon()
    other.abandon()
    store = opened(tmp_path)
    assert store.update([(succeed(claimed, 1, NOW), ())]) == {"t1"}
    assert [(t.payload, t.result) for t in store.get(["t1"])] == [("x" * BIG, 1)]
    store.close()


@pytest.mark.parametrize("is_added_again", [False, True])
def test_a_task_whose_file_changes_while_it_is_read_is_read_again(is_added_again, tmp_path, monkeypatch):
    store, other, _ = evicting(tmp_path, 1)

    def change_first(id: str) -> Task | None:
        monkeypatch.undo()
        store.delete(["t0"])
        if is_added_again:
            store.add([task(0, payload="z" * BIG)])
            end(store, "new")
        store.checkpoint()
        return other._directory._task_files.read(id)

    other.stats()
    monkeypatch.setattr(other._directory._replica, "_read_file", change_first)
    found = other.get(iter(["t0"]))
    assert [(t.payload, t.result) for t in found] == [("z" * BIG, "new")] * is_added_again
    assert found == store.get(["t0"])
    store.close()
    other.close()


@pytest.mark.parametrize(
    "damage", [lambda path: path.write_text(path.read_text()[:-9]), Path.unlink], ids=["torn", "gone"]
)
def test_a_file_that_is_damaged_meanwhile_costs_its_own_task_only(damage, tmp_path):
    store, other, ended = evicting(tmp_path, 3)
    store.stats()
    damage(next(path for path in task_files(tmp_path) if path.stem == "t1"))
    assert store.update([(revive(replace(ended[1], status="failed"), NOW), ())]) == set()
    for look in (other, store):
        assert everything(look) == look.get(["t0", "t1", "t2"]) == [ended[0], ended[2]]
        assert look.stats().counts["completed"] == 2
        look.close()


def test_without_room_for_the_files_large_tasks_stay_in_memory(tmp_path):
    disk = Disk()
    store = opened(tmp_path, disk=disk)
    store.add([task(1, payload="x" * BIG)])
    ended = end(store, "y" * BIG)

    def place(path, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    disk.place = place
    with pytest.raises(StoreError, match="No space left"):
        store.checkpoint()
    assert everything(store) == ended
    store.abandon()


# --- several processes -----------------------------------------------------------------------------------------------


def test_a_process_that_missed_many_journals_reads_the_current_state(tmp_path):
    sleeper, busy = opened(tmp_path), opened(tmp_path)
    busy.add([task(1)])
    assert ids(sleeper) == ["t1"]
    for n in range(2, 6):
        busy.add([task(n)])
        busy.checkpoint()
    busy.delete(["t1"])
    assert ids(sleeper) == ["t2", "t3", "t4", "t5"]
    assert sleeper.add([task(6)]) == ["t6"]
    assert ids(busy) == ["t2", "t3", "t4", "t5", "t6"]
    busy.close()
    sleeper.close()


def test_the_next_writer_cuts_off_the_torn_line_of_a_killed_one(tmp_path):
    one, other = opened(tmp_path), opened(tmp_path)
    one.add([task(1)])
    with open(tmp_path / "journal-1", "ab") as journal:
        journal.write(format_line(1, b'{"put":')[:-1])
    assert ids(other) == ["t1"]
    other.add([task(2)])
    assert ids(one) == ["t1", "t2"]
    assert (tmp_path / "journal-1").read_bytes().count(b"\n") == 2
    one.close()
    other.close()


def test_a_process_that_only_reads_does_not_keep_stale_entries(tmp_path):
    watching, busy = opened(tmp_path), opened(tmp_path, durability="relaxed")
    for n in range(30):
        busy.add([task(f"{n}-{m}", expires=NOW + 1e6) for m in range(200)])
        busy.update([(succeed(t, None, NOW), ()) for t in busy.claim("w", 200, 30, NOW, {"a"})])
        busy.purge(NOW + 1, {"completed"})
        watching.stats()
    queue = watching._directory._replica._ready_queue
    assert len(queue._expiring) + len(queue._later) < 3000
    busy.close()
    watching.close()


# --- a disk that fails -----------------------------------------------------------------------------------------------


class Failing(Disk):
    """Fails in the operation that `fails` names."""

    fails = ""

    def append(self, descriptor, data):
        if self.fails == "append":
            super().append(descriptor, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        super().append(descriptor, data)

    def flush(self, descriptor):
        if self.fails == "flush":
            raise OSError(errno.EIO, "Input/output error")
        super().flush(descriptor)


@pytest.mark.parametrize("what", ["append", "flush"])
def test_a_failed_write_stores_nothing_and_later_writes_succeed(tmp_path, what):
    disk = Failing()
    store, other = opened(tmp_path, disk=disk), opened(tmp_path)
    store.add([task(1)])
    disk.fails = what
    with pytest.raises(StoreError, match="nothing was stored"):
        store.add([task(2)])
    assert ids(store) == ids(other) == ["t1"]
    disk.fails = ""
    assert store.add([task(2)]) == ["t2"]
    other.add([task(3)])
    assert ids(store) == ids(other) == ["t1", "t2", "t3"]
    store.close()
    other.close()


def test_a_reader_of_an_undone_append_reads_everything_again(tmp_path):
    disk = Failing()
    store, other = opened(tmp_path, disk=disk), opened(tmp_path)

    def flush(descriptor):
        assert ids(other) == ["t1"]  # written, and not yet on the disk
        raise OSError(errno.EIO, "Input/output error")

    disk.flush = flush
    with pytest.raises(StoreError):
        store.add([task(1)])
    del disk.flush
    store.add([task(2)])
    assert ids(other) == ["t2"]
    store.close()
    other.close()


def test_a_call_that_breaks_in_the_middle_leaves_nothing_and_spoils_nothing(tmp_path):
    store = opened(tmp_path)
    store.add([task(1)])
    with pytest.raises(InvalidTask):
        store.add([task(2), task(3, after=("missing",))])
    with pytest.raises(AttributeError):
        store.add([task(4), None])
    assert ids(store) == ["t1"]
    (claimed,) = store.claim("w", 1, 30, NOW, {"a"})
    assert store.update([(cancel(claimed, NOW), ())]) == {"t1"}
    store.close()


# --- the journal -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("line", [b"", b"x", b"00000000 1 {}", b"zz 1", format_line(1, b"{}")[:-2], b"\0" * 20])
def test_a_line_that_is_not_whole_is_not_parsed(line):
    assert parse(line) is None


def test_a_formatted_line_is_parsed_to_the_same_number_and_body():
    assert parse(format_line(7, b'{"gone":["x y"]}')[:-1]) == (7, b'{"gone":["x y"]}')


def test_a_reader_notices_a_journal_that_does_not_continue_what_it_read(tmp_path):
    writer, reader = Journal(tmp_path, Disk()), Journal(tmp_path, Disk())
    writer.read_all()
    writer.append([b"one", b"two"], flush=False)
    reader.read_all()
    for story in (b"", format_line(0, b"one"), format_line(0, b"1") + format_line(1, b"2") + format_line(1, b"3")):
        (tmp_path / "journal-1").write_bytes(story)
        with pytest.raises(Diverged):
            list(reader.read_new(is_writer=False))
        (tmp_path / "journal-1").write_bytes(format_line(0, b"one") + format_line(1, b"two"))
        reader.read_all()
    writer.close()
    reader.close()


def test_an_entry_replaced_by_another_task_of_the_same_id_is_the_other_one_everywhere(tmp_path):
    one, other = opened(tmp_path), opened(tmp_path)
    one.add([task(1, key="k"), task(2, after=("t1",), on_parent_failure="run")])
    assert ids(other) == ["t1", "t2"]
    one.delete(["t1"])
    one.add([task(1, payload="second", key="k")])
    for store in (one, other):
        assert [replace(t, version=0, created_at=0.0) for t in store.get(["t1"])] == [
            replace(task(1, payload="second", key="k"), created_at=0.0)
        ]
        assert store.get(["t2"])[0].status == "pending"
    one.close()
    other.close()
