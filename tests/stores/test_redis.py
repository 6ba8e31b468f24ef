"""What a Redis store does beyond the protocol: clocks that disagree, answers that get lost, servers that go away."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest
import redis
import servers
from kill_redis import ALWAYS, Node

from dtq import QueueManager, TaskQueue, open_store
from dtq.errors import StoreError
from dtq.stores.address import redacted
from dtq.stores.protocol import Node as NodeRecord
from dtq.stores.redis.store import RedisStore
from dtq.stores.shared.overlap import while_waiting
from dtq.task.model import ErrorInfo, Task
from dtq.task.transitions import fail, succeed

NOW = 1000.0
WAIT = 60.0


@pytest.fixture(params=servers.KINDS)
def url(request):
    return servers.url_of(request.param)


@pytest.fixture
def store(url):
    store = open_store(url)
    yield store
    store.close()


def wait_until(condition, seconds=WAIT):
    give_up_at = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up_at, "it did not come to be"
        time.sleep(0.005)


class Lossy:
    """A line on which answers get lost, a number of times, when the server has done what was asked."""

    def __init__(self, line, losses: Losses) -> None:
        self._line = line
        self._losses = losses

    def __getattr__(self, name):
        return getattr(self._line, name)

    def read_response(self):
        answer = self._line.read_response()
        if self._losses.after:
            self._losses.after -= 1
        elif self._losses.times:
            self._losses.times -= 1
            raise self._losses.by
        return answer


class Losses:
    """Loses the next `times` replies to this store, or those that come `after` some others."""

    def __init__(self, store: RedisStore, times: int, by: BaseException | None = None) -> None:
        self.by = by or redis.ConnectionError("the answer got lost")
        self.after = 0
        self.times = times
        self._connections = store.client._connections
        store.client._connections = self

    def use(self, talk):
        self._connections.use(lambda line: talk(Lossy(line, self)))

    def close(self):
        self._connections.close()


@pytest.mark.parametrize("times", [1, 100])
def test_what_was_done_and_not_answered_is_known_when_it_is_asked_again(store, times):
    """Within one call, and when the caller has seen a StoreError and makes the same call later."""
    store.add([Task(type="job", id="a"), Task(type="job", id="b")])

    def insist(call):
        losses = Losses(store, times)
        while True:
            try:
                return call()
            except StoreError:
                losses.times = 0

    tasks = insist(lambda: store.claim("w1", 5, 30, NOW, {"job"}))
    assert [(task.id, task.version, task.attempts) for task in tasks] == [("a", 2, 1), ("b", 2, 1)]
    outcomes = [(succeed(task, 1, NOW), [Task(type="next", id=f"next-{task.id}")]) for task in tasks]
    assert insist(lambda: store.update(outcomes)) == {"a", "b"}
    assert store.update(outcomes) == set()
    assert store.stats().counts["completed"] == 2
    assert store.stats().counts["pending"] == 2


def test_what_was_done_when_an_interrupt_came_is_known_when_it_is_asked_again(store):
    store.add([Task(type="job", id="a")])
    losses = Losses(store, 1, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        store.claim("w1", 5, 30, NOW, {"job"})
    (task,) = store.claim("w1", 5, 30, NOW, {"job"})
    assert (task.id, task.version, task.attempts) == ("a", 2, 1)
    losses.times = 1
    with pytest.raises(KeyboardInterrupt):
        store.update([(succeed(task, 1, NOW), ())])
    assert store.update([(succeed(task, 1, NOW), ())]) == {"a"}
    assert store.update([(succeed(task, 1, NOW), ())]) == set()


def test_of_a_claim_in_several_parts_none_is_lost_when_answers_are(store):
    """What was answered is given at once, and the rest with the next claim, however few that is for."""
    ids = [f"{n:03}" for n in range(384)]
    store.add([Task(type="job", id=id) for id in ids])
    losses = Losses(store, 0)
    losses.after, losses.times = 1, 100
    found = store.claim("w1", 400, 30, NOW, {"job"})
    losses.times = 0
    rest = store.claim("w1", 1, 30, NOW, {"job"})
    assert (len(found), len(rest)) == (128, 256)
    assert [task.id for task in found + rest] == ids
    assert {task.attempts for task in found + rest} == {1}
    assert store.claim("w1", 10, 30, NOW, {"job"}) == []


def test_an_errand_in_parts_goes_on_where_it_was_interrupted(store):
    losses = Losses(store, 0)
    losses.after, losses.times = 2, 1
    assert len(store.add([Task(type="job", id=f"{n:03}") for n in range(700)])) == 700
    assert store.stats().counts["pending"] == 700
    assert [task.id for task in store.get([f"{n:03}" for n in range(700)])] == [f"{n:03}" for n in range(700)]


def test_scripts_that_the_server_has_forgotten_are_sent_again(store):
    store.add([Task(type="job", id=f"{n:03}") for n in range(300)])
    assert len(store.claim("w", 300, 30, NOW, {"job"})) == 300
    store.client.redis.script_flush()
    store.add([Task(type="job", id=f"{n:03}") for n in range(300, 700)])
    assert len(store.claim("w", 400, 30, NOW, {"job"})) == 400


def test_idle_connections_may_have_been_cut(store):
    """All are cut at once, as by a server that restarts: the next call opens one new connection and does not try each
    old one."""
    use = store.client._connections.use
    use(lambda _: use(lambda _: use(lambda _: None)))
    store.client.redis.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    began = time.monotonic()
    assert store.add([Task(type="job", id="a")]) == ["a"]
    assert time.monotonic() - began < 1


def test_a_fork_has_lines_of_its_own(store):
    """As under a server that loads the application first and forks then: both go on, and no answer goes astray."""
    store.add([Task(type="job", id=id) for id in ("parent", "child")])
    child = os.fork()
    if not child:
        right = all([task.id for task in store.get(["child"])] == ["child"] for _ in range(300))
        os._exit(0 if right else 1)
    assert all([task.id for task in store.get(["parent"])] == ["parent"] for _ in range(300))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_something_is_done_while_the_server_is_busy(store):
    done = []
    with while_waiting(lambda: done.append(threading.get_ident())):
        store.add([Task(type="job", id=f"{n:03}") for n in range(300)])
        assert done == [threading.get_ident()]
        store.stats()
    store.stats()
    assert len(done) == 1


def test_what_a_claim_foresees_is_asked_for_only_once(store):
    store.fileno()  # listens
    store.add([Task(type="job", id="a", run_at=NOW + 5)])
    assert store.claim("w", 1, 30, NOW, {"job"}) == []
    store.client.redis.config_resetstat()
    assert store.next_due(NOW) == NOW + 5
    assert "cmdstat_evalsha" not in store.client.redis.info("commandstats")
    assert store.next_due(NOW + 1) == NOW + 5
    store.add([Task(type="job", id="b", run_at=NOW + 3)])
    assert store.next_due(NOW) == NOW + 3


def test_a_lost_answer_does_not_let_another_outcome_pass(store):
    store.add([Task(type="job", id="a")])
    (task,) = store.claim("w1", 1, 30, NOW, {"job"})
    losses = Losses(store, 100)
    with pytest.raises(StoreError):
        store.update([(succeed(task, 1, NOW), ())])
    losses.times = 0
    assert store.update([(fail(task, ErrorInfo("E"), NOW, lambda: 0.0), ())]) == set()
    assert store.get(["a"])[0].result == 1


def test_ten_thousand_children_are_unblocked_in_pieces(store):
    store.add([Task(type="parent", id="p"), Task(type="parent", id="q")])
    for n in range(0, 10_000, 1000):
        store.add([Task(type="child", id=f"c{n + i:05}", after=("p",)) for i in range(1000)])
    store.add([Task(type="child", id=f"d{n}", after=("q",)) for n in range(700)])
    p, q = store.claim("w", 2, 30, NOW, {"parent"})
    store.client.redis.config_resetstat()
    store.update([(succeed(p, None, NOW), ())])
    store.update([(fail(q, ErrorInfo("E"), NOW, lambda: 0.0, final=True), ())])
    assert store.stats().counts["pending"] == 10_000
    claimed = store.claim("w", 1000, 30, NOW, {"child"})
    assert sum(bool(task.doom) for task in claimed) == 700
    scripts = store.client.redis.info("commandstats")["cmdstat_evalsha"]
    assert scripts["calls"] > 20  # in pieces


def test_who_comes_next_goes_on_where_a_killed_process_left_children_blocked(store, monkeypatch):
    store.add([Task(type="parent", id="p"), *(Task(type="child", id=f"c{n:04}", after=("p",)) for n in range(1200))])
    (parent,) = store.claim("w", 2, 30, NOW, {"parent"})
    monkeypatch.setattr(store, "_unblock_children", lambda: None)  # killed right after the update
    store.update([(succeed(parent, None, NOW), ())])
    assert store.stats().counts["blocked"] == 700
    for _ in range(4):
        store.claim("w", 1, 30, NOW, {"parent"})
    assert store.stats().counts["blocked"] == 0
    assert not any(task.doom for task in store.find(type="child", limit=2000))


def test_all_children_of_a_deleted_parent_are_doomed_though_the_process_was_killed(store, monkeypatch):
    store.add([Task(type="parent", id="p"), *(Task(type="child", id=f"c{n:04}", after=("p",)) for n in range(1200))])
    (parent,) = store.claim("w", 2, 30, NOW, {"parent"})
    monkeypatch.setattr(store, "_unblock_children", lambda: None)  # killed after the update and the delete
    store.update([(succeed(parent, None, NOW), ())])
    store.delete(["p"])
    for _ in range(4):
        store.claim("w", 1, 30, NOW, {"parent"})
    assert all(task.doom for task in store.find(type="child", limit=2000))


def test_all_keys_carry_the_prefix_and_temporary_ones_end_by_themselves(store):
    store.heartbeat(NodeRecord("w"), [], 30, NOW)
    store.set_lane(type="job", rate=5)
    store.add([Task(type="job", id="a", key="k"), Task(type="job", id="b", after=("a",))])
    store.claim("w", 1, 30, NOW, {"job"})
    client = store.client.redis
    keys = {key.decode().removeprefix(store.client.prefix) for key in client.keys(f"{store.client.prefix}*")}
    assert {"t", "b", "lease", "n", "nodes"} <= keys
    (last,) = [key for key in keys if key.startswith("last:")]
    assert 0 < client.ttl(store.client.prefix + last) <= 60
    store.close()


def test_a_node_without_a_sign_of_life_is_forgotten_when_its_lease_is_over(store):
    store.heartbeat(NodeRecord("w1"), [], 30, NOW)
    store.heartbeat(NodeRecord("w2"), [], 30, NOW + 20)
    store.reap("w2", 1, 30, NOW + 29)
    assert len(store.stats().nodes) == 2
    store.reap("w2", 1, 30, NOW + 31)
    assert [node.id for node in store.stats().nodes] == ["w2"]


def test_claims_cost_the_same_whatever_waits(store):
    """Counted in commands that the server runs, which no busy machine can disturb."""

    def commands() -> int:
        store.client.redis.config_resetstat()
        tasks = store.claim("w", 10, 30, NOW, {"job"})
        assert len(tasks) == 10
        stats = store.client.redis.info("commandstats")
        return sum(entry["calls"] for entry in stats.values())

    store.set_lane(key="throttled", rate=0.001)
    store.add([Task(type="job", id=f"a{n}") for n in range(40)] + [Task(type="job", id="x", limit_key="throttled")])
    store.claim("w", 1, 30, NOW, {"job"})
    commands()
    before = commands()
    store.add([Task(type="job", id=f"f{n}", priority=9, run_at=NOW + 99) for n in range(3000)])
    store.add([Task(type="job", id=f"t{n}", priority=9, limit_key="throttled") for n in range(3000)])
    assert commands() <= before + 3


def test_what_a_dtq_without_an_order_of_lanes_has_left_is_claimed(store):
    """It had the names of lanes in `lanes`, and counted and kept doomed tasks by lane."""
    tasks = [Task(type="job", id=f"{key}{n}", limit_key=key, run_at=NOW, created_at=NOW) for key in "xy" for n in "12"]
    store.add([*tasks, Task(type="job", id="late", limit_key="z", run_at=NOW, created_at=NOW, expires=NOW)])
    server, root = store.client.redis, store.client.prefix
    server.delete(*(root + name for name in ("kinds", "at", "due", "w:default\x1fjob\x1f*", "n", "exp")))
    lanes = {key: f"default\x1fjob\x1f{key}" for key in "xyz"}
    server.zadd(root + "lanes", {lanes["x"]: 0, lanes["y"]: 0})
    server.zadd(root + "doomed", {lanes["z"]: 0})
    server.zadd(root + "d:" + lanes["z"], {"late": 0})
    server.zrem(root + "later", "late")
    server.hset(root + "n", mapping={f"{lanes[key]}\x1fpending": n for key, n in (("x", 2), ("y", 2), ("z", 1))})
    assert store.stats().counts["pending"] == 5
    assert [task.id for task in store.claim("w", 9, 30, NOW, {"job"})] == ["late", "x1", "y1", "x2", "y2"]
    assert (store.stats().counts["pending"], store.stats().counts["processing"]) == (0, 5)
    assert server.exists(root + "lanes") == 0


# --- clocks


SKEWED = """
import os, time
real = time.time
time.time = lambda: real() + float(os.environ["SKEW"])
"""


@pytest.mark.long
def test_clocks_that_are_hours_apart_do_no_harm(tmp_path):
    """A task longer than the lease is neither taken from a node whose clock is behind, nor kept from the others."""
    (tmp_path / "sitecustomize.py").write_text(SKEWED)
    url = servers.url_of("valkey")
    with QueueManager(url) as manager:
        nodes = [Node(url, PYTHONPATH=str(tmp_path), SKEW=skew) for skew in ("-7200", "7200")]
        for node in nodes:
            node.wait_until_ready()
        log = str(tmp_path / "log")
        began = time.time()
        handles = [manager.add("note", {"log": log, "seconds": 4}) for _ in range(4)]
        quick = manager.add("note", {"log": log}, delay=1)
        for handle in [*handles, quick]:
            handle.result(WAIT)
        for node in nodes:
            node.stop()
        tasks = [handle.task for handle in [*handles, quick]]
    assert [(task.attempts, task.interruptions, task.version) for task in tasks] == [(1, 0, 3)] * 5
    assert len({task.worker.split("/")[0] for task in tasks[:4]}) == 2
    assert all(began - 1 < task.started_at < task.finished_at < time.time() + 1 for task in tasks)


def test_only_others_are_told_of_a_change(url):
    def told():
        return here.client.redis.info("commandstats").get("cmdstat_publish", {}).get("calls", 0)

    with closing(open_store(url)) as here, closing(open_store(url)) as there:
        here.wait(0)
        before = told()
        here.add([Task(type="a", id="a")])
        assert told() == before
        there.add([Task(type="a", id="b")])
        assert here.wait(WAIT)
        there.wait(0)
        here.add([Task(type="a", id="c")])
        assert there.wait(WAIT)
        assert told() == before + 2


# --- servers that go away


def test_while_the_server_is_away_producers_hear_of_it_and_what_runs_is_delivered_afterwards():
    server = servers.Server("valkey", *ALWAYS)
    go = threading.Event()
    store = open_store(f"{server.url}?timeout=1")
    with TaskQueue(store, {"wait": lambda payload, context: go.wait(WAIT) and 7}, 2, executor="thread") as queue:
        handle = queue.add("wait")
        wait_until(lambda: handle.status == "processing")
        server.kill()
        go.set()
        began = time.monotonic()
        with QueueManager(store) as producer, pytest.raises(StoreError, match="cannot be reached"):
            producer.add("wait")
        assert 0.5 < time.monotonic() - began < 10
        server.start()
        assert handle.result(WAIT) == 7
        assert (handle.task.attempts, handle.task.interruptions) == (1, 0)
        assert queue.add("wait").result(WAIT) == 7
    store.close()
    server.remove()


def test_a_waiting_process_is_woken_after_the_server_was_restarted():
    server = servers.Server("valkey", *ALWAYS)
    one, two = open_store(server.url), open_store(server.url)
    two.wait(0)
    server.kill()
    server.start()
    assert two.wait(WAIT)  # the connection is new: something may have been missed
    while two.wait(0.2):
        pass
    one.add([Task(type="job", id="a")])
    assert two.wait(WAIT)
    one.close()
    two.close()
    server.remove()


# --- where, and who


def test_a_server_that_is_not_there_is_named_without_its_password():
    place = f"redis://ada:secret@127.0.0.1:{servers.free_port()}/0?timeout=0.2"
    with pytest.raises(StoreError, match=r"redis://\*\*\*@127.0.0.1:\d+/0 cannot be reached") as caught:
        open_store(place)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("rediss://:pw@h/0?ssl_password=pw&x=1", "rediss://***@h/0?ssl_password=***&x=1"),
        ("redis://ada:p@w/d@h:1/0", "redis://***@h:1/0"),  # as it should not be written, and is
        ("redis://h/0?namespace=a@b", "redis://h/0?namespace=a@b"),
        ("sqlite:////home/a@b/queue.db", "sqlite:////home/a@b/queue.db"),
        ("file:/a@b?persistence_interval=1", "file:/a@b?persistence_interval=1"),
        ("queue.db", "queue.db"),
    ],
)
def test_a_url_is_shown_without_its_secrets(url, shown):
    assert redacted(url) == shown


def test_a_url_that_names_no_store_is_not_shown_with_its_password():
    with pytest.raises(StoreError, match=r"'postgres://\*\*\*@h/db' names no store"):
        open_store("postgres://ada:secret@h/db")


def test_a_node_does_not_say_its_password_when_it_is_ready():
    server = servers.Server("valkey")
    with redis.Redis(port=server.port) as client:
        client.config_set("requirepass", "secret")
    store = server.url.replace("//", "//:secret@")
    command = [
        Path(sys.executable).with_name("dtq"),
        "run",
        "--store",
        store,
        "--handler",
        "j=os:getpid",
        "--pool-size",
        "1",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as node:
        ready = node.stdout.readline()
        node.terminate()
    server.remove()
    assert ready.endswith(f"store redis://***@127.0.0.1:{server.port}/0\n")


def test_a_password_is_needed_and_taken_from_the_url():
    server = servers.Server("valkey")
    with redis.Redis(port=server.port) as client:
        client.config_set("requirepass", "secret")
    for bad in (server.url, server.url.replace("//", "//:wrong@")):
        with pytest.raises(StoreError, match=r"refuses access|NOAUTH|WRONGPASS"):
            open_store(bad)
    store = open_store(server.url.replace("//", "//:secret@").replace("redis:", "valkey:"))
    assert store.add([Task(type="job", id="a")]) == ["a"]
    store.close()
    server.remove()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("redis://h/0?colour=red", "has the option 'colour'; there are: cluster, namespace, replicas, timeout"),
        ("redis://h/0?replicas=some", "replicas is 'some'; allowed: a whole number"),
        ("redis://h/0?replicas=1&cluster=1", "allowed: 0 to 100, and 0 on a cluster"),
        ("redis://h/0?timeout=soon", "timeout is 'soon'; allowed: a number of seconds"),
        ("redis://", "names no server"),
        ("redis://h/0?namespace=a{b", "allowed: printable text without braces"),
    ],
)
def test_a_url_that_cannot_be_says_why(url, message):
    with pytest.raises(StoreError, match=message):
        open_store(url)


def test_without_redis_py_the_error_says_what_to_install():
    code = "import sys; sys.modules['redis'] = None\nfrom dtq import open_store\nopen_store('redis://localhost/0')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert 'needs redis-py: pip install "dtq[redis]"' in done.stderr.splitlines()[-1]


def test_a_client_may_be_given_and_stays_open():
    server_url = servers.url_of("valkey").partition("?")[0]
    client = redis.Redis.from_url(server_url)
    store = RedisStore(client=client, namespace="given")
    store.add([Task(type="job", id="a")])
    store.close()
    assert client.ping()
    client.close()
    with (
        redis.Redis.from_url(server_url, decode_responses=True) as texts,
        pytest.raises(StoreError, match="decode_responses"),
    ):
        RedisStore(client=texts)


def test_two_namespaces_on_one_server_do_not_meet(store):
    other = open_store(servers.url_of("valkey"))
    store.add([Task(type="job", id="a")])
    assert other.get(["a"]) == []
    assert other.stats().total == 0
    other.close()
