"""A client whose token may only submit tasks tries to do harm: random names, payloads and requests over real HTTP,
beside the work of others. At the end everything else must be as if it had not been there.

    python tests/hostile_submitter.py --requests 20000 [--seed 1] [--store file] [--nodes 3] [--clients 4]

    hostile clients --HTTP--> dtq serve --> store <-- dtq run, dtq run      each in its own process
    load ------------HTTP-------^                      `--webhooks--> a receiver that verifies signatures

Prints a summary. If a promise is broken, names it and exits with 1.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import servers
from webhook_receiver import SECRET, Receiver

from dtq import QueueManager
from dtq.policy import cron
from dtq.task import names
from dtq.task.model import Task
from dtq.webhooks import deliveries

SUBMIT, ADMIN = "submit-token-of-a-stranger", "admin-token-of-the-house"
HANDLER = "def execute(payload, context):\n    return 2 * payload['n']\n"
WAIT = 120.0
VICTIMS = [f"victim-{n}" for n in range(40)]
SHORTEST = 4.0  # seconds, at least, for which the load lasts: ticks come in them
LOAD_PAUSE = 0.005  # seconds between two tasks of the load
LIMITS = ["('held', None, None)", "(None, 'slow', None)"]
WORK = re.compile(r"report@\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{3})?Z")  # what the schedule adds
REPORT = {"n": 21}  # the payload of what the schedule adds


# --- what a hostile client sends --------------------------------------------------------------------------------------


class Hostile:
    """Makes requests by chance: `(method, path, content, headers, is_forbidden)`."""

    def __init__(self, seed: int, url: str) -> None:
        self.chance = random.Random(seed)
        self.url = url

    def request(self) -> tuple[str, str, bytes, dict[str, str], bool]:
        kind = self.chance.random()
        if kind < 0.08:
            return (*self._forbidden(), True)
        headers = {"Content-Type": "application/json"}
        if self.chance.random() < 0.1:
            headers["Idempotency-Key"] = self._pick(
                ["k", "order-7", "idempotency/0", "a" * 200, "a" * 201, "two words"]
            )
        if kind < 0.2:
            steps = {str(self._name()): self._task() for _ in range(self.chance.randint(1, 4))}
            flow: dict[str, Any] = {"steps": steps}
            if self.chance.random() < 0.5:
                flow["id"] = self._name()
            return "POST", "/flows", self._content(flow), headers, False
        task = self._task()
        body = task if kind < 0.85 else [task, *(self._task() for _ in range(self.chance.randint(0, 4)))]
        return "POST", "/tasks", self._content(body), headers, False

    def _pick(self, items: list[Any]) -> Any:
        return self.chance.choice(items)

    def _forbidden(self) -> tuple[str, str, bytes, dict[str, str]]:
        tick, victim = "dtq.schedule:report", self._pick(VICTIMS)
        schedule = {"task": {"type": "work", "payload": {"n": 1}}, "every": 60}
        method, path, body = self._pick([
            ("DELETE", f"/tasks/{victim}", None), ("POST", f"/tasks/{victim}/cancel", None),
            ("POST", f"/tasks/{victim}/retry", None), ("DELETE", f"/tasks/{tick}", None),
            ("POST", f"/tasks/{tick}/cancel", None), ("POST", f"/tasks/{tick}/retry", None),
            ("POST", "/flows/dtq/cancel", None), ("PUT", "/schedules/report", schedule),
            ("PUT", "/schedules/evil", schedule), ("DELETE", "/schedules/report", None),
            ("POST", "/schedules/report/pause", None), ("POST", "/queues/default/pause", None),
            ("POST", "/queues/dtq.schedules/pause", None), ("POST", "/queues/held/resume", None),
            ("PUT", "/limits", {"queue": "default", "max_running": 1}), ("DELETE", "/limits?type=slow", None),
            ("POST", "/dead/redrive", {"all": True}), ("POST", "/dead/purge", {"all": True}),
        ])  # fmt: skip
        content = b"" if body is None else json.dumps(body).encode()
        return method, path, content, {"Content-Type": "application/json"}

    def _task(self) -> dict[str, Any]:
        task: dict[str, Any] = {"type": self._type(), "payload": self._payload()}
        odd = {
            "id": self._name, "key": self._name, "queue": self._name, "limit_key": lambda: self._pick(["a", "b", "*"]),
            "priority": lambda: self._pick([0, 5, 1000, -1000, 1001, "high"]),
            "max_attempts": lambda: self._pick([1, 3, 1000, 0]), "timeout": lambda: self._pick([0.001, 1, 1e300, -1]),
            "retry_delay": lambda: self._pick([0, 1, 1e9]), "delay": lambda: self._pick([0, 5, 1e9, -1]),
            "run_at": lambda: self._pick([0, 1, 1e11, 1e300]), "expires": lambda: self._pick([0, 1, 1e11]),
            "expires_in": lambda: self._pick([0, 1, 1e9]), "webhook": self._webhook,
            "after": lambda: [self._pick([*VICTIMS, "dtq.schedule:report", "missing", self._name()])],
            "on_parent_failure": lambda: self._pick(["fail", "run", "both"]), "status": lambda: "completed",
            "doom": lambda: "expired", "created_at": lambda: 0, "version": lambda: 7,
        }  # fmt: skip
        for field in self.chance.sample(sorted(odd), self.chance.choice([0, 0, 1, 1, 2])):
            task[field] = odd[field]()
        number = self.chance.randrange(10_000)
        if self.chance.random() < 0.2:
            task |= self._pick([
                self._whole_tick(), {"type": "dtq.webhook", "id": f"x:webhook-{number}", "payload": self._delivery()},
                {"type": "work", "queue": "dtq.schedules"}, {"id": cron.work_id("report", self._soon())},
                {"key": "idempotency/0"}, {"id": f"{self._pick(VICTIMS)}:webhook-{self.chance.randint(1, 5)}"},
            ])  # fmt: skip
        return task

    def _type(self) -> Any:
        return "work" if self.chance.random() < 0.6 else self._name()

    def _name(self) -> Any:
        return self._pick([
            "a", "work", "default", "held", "slow", "report", "dtq", "dtq.", "dtq.tick", "dtq.webhook", "dtq.schedules",
            "DTQ.tick", "dtq.schedule:report", "dtq.schedule:evil", "dtq/tick", "schedule:x", "x:webhook-2",
            "webhook-1", cron.work_id("report", self._soon()), "report@2026-12-01T10:05:00.500Z", "idempotency/1", "*",
            "", " ", "two words", "é", "\x00", "a\n", "../../etc/passwd", "a" * 200, "a" * 201, 5, None, [], {}, True,
            f"n{self.chance.randrange(10_000)}",
        ])  # fmt: skip

    def _soon(self) -> float:
        return float(int(time.time()) + self.chance.randint(0, 5))

    def _whole_tick(self) -> dict[str, Any]:
        tick = self._tick()
        return {"type": "dtq.tick", "queue": "dtq.schedules", "id": f"dtq.schedule:{tick['name']}", "payload": tick}

    def _tick(self) -> Any:
        name = self._pick([f"evil-{self.chance.randrange(10_000)}", "report", 5])
        work = self._pick([{"type": "work"}, {"type": "dtq.webhook", "payload": self._delivery()}, {}, 5])
        every = self._pick([0, -1, 1e-300, 1e300, 0.01, 5, None])
        tick: dict[str, Any] = {"name": name, "task": work, "every": every, "since": round(time.time(), 3)}
        if self.chance.random() < 0.4:
            tick |= {"every": None, "cron": self._pick(["0 0 30 2 *", "* * * *", "@daily", "* " * 500])}
        return tick

    def _delivery(self) -> Any:
        told = {"type": "task.completed", "timestamp": "2026-12-01T10:05:00.000000Z", "data": {"id": "x"}}
        return {"url": self.url, "secret": self._pick(["shop", None]), "body": self._pick([told, {"pay": "me"}, 5])}

    def _webhook(self) -> Any:
        secret = self._pick([None, None, "shop", "other"])
        return self._pick([{"url": self.url, "secret": secret}, {"url": "http://169.254.169.254/"}, "x", {"url": 5}])

    def _payload(self) -> Any:
        kind = self.chance.random()
        if kind < 0.6:
            return {"n": self.chance.randrange(100)}
        if kind < 0.7:
            return {"n": "x" * self.chance.randrange(100_000)}
        if kind < 0.8:
            return self._deep(self.chance.randrange(100))
        return self._pick([None, 5, "x", [], {}, self._tick(), self._delivery(), {"n": None}, 1e308, -(2**63), 2**64])

    def _deep(self, levels: int) -> Any:
        value: Any = 1
        for _ in range(levels):
            value = self._pick([[value], {"a": value}])
        return value

    def _content(self, body: Any) -> bytes:
        content = json.dumps(body)
        kind = self.chance.random()
        if kind < 0.02:
            n = self.chance.randrange(20_000)
            content = '{"type":"work","payload":' + "[" * n + "]" * n + "}"
        elif kind < 0.025:
            content = '{"type":"work","payload":"' + "x" * self.chance.choice([1_000_000, 1_048_576, 1_500_000]) + '"}'
        elif kind < 0.04:
            content = content[: self.chance.randrange(len(content))]
        elif kind < 0.05:
            content = content.replace('"work"', self._pick(['"\\ud800"', "NaN", "1e400", '"w\\u0000"']))
        return content.encode()


# --- the processes ----------------------------------------------------------------------------------------------------


class Process:
    def __init__(self, log: Path, *arguments: str) -> None:
        self.log = log
        command = [sys.executable, "-c", "from dtq.cli import app; app()", *arguments]
        environment = {**os.environ, "SHOP_SECRET": SECRET}
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=file, text=True, cwd=log.parent, env=environment
            )
        self.told = self.process.stdout.readline()  # type: ignore[union-attr]
        if not self.told:
            raise AssertionError(log.read_text())

    def is_alive(self) -> bool:
        return self.process.poll() is None

    def end(self) -> None:
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(20)
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()  # type: ignore[union-attr]


@contextlib.contextmanager
def house(directory: Path, store: str, nodes: int) -> Iterator[tuple[str, list[Process]]]:
    """The API's URL, and all processes: the API and the nodes."""
    (directory / "handler.py").write_text(HANDLER)
    (directory / "tokens").write_text(f"submit {SUBMIT}\nadmin {ADMIN}\n")
    run = [
        "run", f"--store={store}", "--handler=work=handler.py", "--pool-size=2", "--secret=shop=SHOP_SECRET",
        "--webhook-network=127.0.0.0/8", "--webhook-http",
    ]  # fmt: skip
    started: list[Process] = []
    try:
        started.append(
            Process(directory / "api.log", "serve", store, "--port=0", f"--token-file={directory / 'tokens'}")
        )
        started += [Process(directory / f"node-{n}.log", *run) for n in range(nodes)]
        yield re.search(r"http://[^,]+", started[0].told).group(), started  # type: ignore[union-attr]
    finally:
        for process in reversed(started):
            process.end()


# --- the attack -------------------------------------------------------------------------------------------------------


class Attack:
    def __init__(self, url: str, receiver: Receiver, requests: int, seed: int, clients: int) -> None:
        self.url, self.receiver = url, receiver
        self.answers: Counter[str] = Counter()
        self.broken: list[str] = []
        self.load: dict[str, int] = {}  # id -> its number
        self.told: set[str] = set()  # those of the load with a webhook
        self._over = threading.Event()
        share = -(-requests // clients)
        self._threads = [threading.Thread(target=self._attack, args=(seed * 1000 + n, share)) for n in range(clients)]
        self._loader = threading.Thread(target=self._add_load)

    def run(self) -> None:
        self._loader.start()
        for thread in self._threads:
            thread.start()
        for thread in self._threads:
            thread.join()
        self._over.set()
        self._loader.join()

    def _client(self, token: str) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=WAIT, headers={"Authorization": f"Bearer {token}"})

    def _attack(self, seed: int, requests: int) -> None:
        try:
            self._send(seed, requests)
        except Exception as error:
            self.broken.append(f"a hostile client of seed {seed} has ended: {error!r}")
            raise

    def _send(self, seed: int, requests: int) -> None:
        hostile = Hostile(seed, self.receiver.url)
        with self._client(SUBMIT) as client:
            for _ in range(requests):
                method, path, content, headers, is_forbidden = hostile.request()
                try:
                    status = client.request(method, path, content=content, headers=headers).status_code
                except httpx.TransportError as error:  # a body that is too large is not read to its end
                    self.answers[type(error).__name__] += 1
                    continue
                self.answers[str(status)] += 1
                if status >= 500 or (is_forbidden and status != 403):
                    self.broken.append(f"{method} {path} {headers} {content[:300]!r} was answered with {status}")

    def _add_load(self) -> None:
        hook = {"url": self.receiver.url, "secret": "shop"}
        with self._client(ADMIN) as client:
            number, began = 0, time.monotonic()
            while not self._over.is_set() or time.monotonic() < began + SHORTEST:
                task: dict[str, Any] = {"type": "work", "payload": {"n": number}, "priority": 10}
                if number % 20 == 0:
                    task["webhook"] = hook
                answer = client.post("/tasks", json=task)
                if answer.status_code != 201:
                    self.broken.append(f"a task of the load was answered with {answer.status_code}: {answer.text}")
                else:
                    self.load[answer.json()["id"]] = number
                    self.told |= {answer.json()["id"]} if "webhook" in task else set()
                number += 1
                time.sleep(LOAD_PAUSE)


def prepare(manager: QueueManager) -> dict[str, Task]:
    """What others have in the queue, and is not to be touched."""
    manager.pause("held")
    for n, id in enumerate(VICTIMS):
        manager.add("work", {"n": n}, id=id, key=f"key-{n}", **({"queue": "held"} if n % 2 else {"delay": 86400}))
    manager.limit(type="slow", max_running=1)
    manager.schedule("report", type="work", payload=REPORT, every=1)
    manager.schedule("quiet", type="work", payload=REPORT, every=86400)
    manager.schedules.pause("quiet")
    return {task.id: task for task in manager.store.get(VICTIMS)}


def broken_promises(
    manager: QueueManager, attack: Attack, processes: list[Process], before: dict[str, Task]
) -> list[str]:
    """What is not as it has to be when all is over."""
    found = list(dict.fromkeys(attack.broken))
    give_up_at = time.monotonic() + WAIT
    while (left := _unfinished(manager, attack.load)) and time.monotonic() < give_up_at:
        time.sleep(0.2)
    while len(_verified(attack)) < len(attack.told) and time.monotonic() < give_up_at:
        time.sleep(0.2)
    found += [f"{process.log.name}: the process has ended: {process.log.read_text()[-2000:]}" for process in processes
              if not process.is_alive()]  # fmt: skip
    if left:
        found.append(f"{len(left)} of {len(attack.load)} tasks of the load have not ended")
    wrong = [task.id for task in manager.store.get(attack.load) if task.result != 2 * attack.load[task.id]]
    found += [f"the load's task {id} has another result than it should" for id in wrong if id not in left]
    after = {task.id: task for task in manager.store.get(VICTIMS)}
    found += [f"{id} was touched: {before[id]} is now {after.get(id)}" for id in before if before[id] != after.get(id)]
    found += _signed(attack) + _schedules(manager) + _names(manager)
    limits = sorted(repr(limit.selector) for limit in manager.limits())
    found += [] if limits == LIMITS else [f"the limits are others: {limits}"]
    return found


def _unfinished(manager: QueueManager, load: dict[str, int]) -> set[str]:
    return set(load) - {task.id for task in manager.store.get(load) if task.is_terminal}


def _verified(attack: Attack) -> list[str]:
    return [
        body["data"]["id"] if isinstance(body, dict) and "data" in body else "?" for _, _, body in attack.receiver.got
    ]


def _signed(attack: Attack) -> list[str]:
    """Only what the load was to have signed may be signed, and all of it is."""
    found = [f"a message about {id!r} was signed" for id in _verified(attack) if id not in attack.told]
    missing = attack.told - set(_verified(attack))
    found += [f"{len(missing)} of {len(attack.told)} messages about the load were not delivered"] if missing else []
    signed = [
        headers for _, headers in attack.receiver.bad if any(name.lower() == "webhook-signature" for name in headers)
    ]
    return found + [f"something was signed: {headers}" for headers in signed]


def _schedules(manager: QueueManager) -> list[str]:
    report, *others = sorted(manager.schedules, key=lambda schedule: schedule.name != "report")
    if [schedule.name for schedule in others] != ["quiet"] or report.name != "report" or not others[0].paused:
        return [f"the schedules are others: {[schedule.name for schedule in (report, *others)]}"]
    works = [task for task in _all(manager) if WORK.fullmatch(task.id)]
    times = sorted(round(cron_time(task.id) - report.since) for task in works)
    found = [] if times == list(range(1, len(times) + 1)) and times else [f"ticks are missing, or come twice: {times}"]
    found += [f"a tick added {task}" for task in works if task.payload != REPORT]
    return found + ([f"the schedule has a problem: {report.problem}"] if report.problem else [])


def cron_time(id: str) -> float:
    from datetime import datetime

    return datetime.fromisoformat(id.partition("@")[2]).timestamp()


def _names(manager: QueueManager) -> list[str]:
    """Nothing is stored under a reserved name but what dtq itself has made."""
    found = []
    for task in _all(manager):
        is_ours = task.id in ("dtq.schedule:report", "dtq.schedule:quiet") or WORK.fullmatch(task.id)
        if task.type == deliveries.TYPE and not deliveries.is_genuine(task):
            found.append(f"a delivery that no ending planted: {task.id}")
        try:
            if not is_ours and task.type != deliveries.TYPE and not (task.key or "").startswith(names.RESERVED_KEYS):
                names.refuse_reserved(task)
        except ValueError as error:
            found.append(f"{task.id}: {error}")
    return found


def _all(manager: QueueManager) -> Iterator[Task]:
    after = ""
    while page := manager.store.find(after=after, limit=200):
        yield from page
        after = page[-1].id


def perform(directory: Path, requests: int, seed: int, store: str, nodes: int, clients: int) -> list[str]:
    """Attacks, prints a summary, and returns what is broken."""
    print(f"seed {seed}: {requests:,} requests, {clients} clients, {nodes} nodes, {store}", flush=True)
    began = time.monotonic()
    with Receiver() as receiver, QueueManager(store) as manager, house(directory, store, nodes) as (url, processes):
        before = prepare(manager)
        attack = Attack(url, receiver, requests, seed, clients)
        attack.run()
        took = time.monotonic() - began
        broken = broken_promises(manager, attack, processes, before)
        stats = manager.stats()
    told = ", ".join(f"{n:,} x {answer}" for answer, n in sorted(attack.answers.items()))
    print(f"{took:.1f} s; answers: {told}")
    print(f"load: {len(attack.load):,} tasks, {len(attack.told):,} signed messages; the store holds {stats.counts}")
    for line in broken:
        print(f"BROKEN: {line[:1000]}")
    print("every promise was kept" if not broken else f"{len(broken)} promises were broken (seed {seed})")
    return broken


def url_of(store: str, directory: Path) -> str:
    return {"sqlite": str(directory / "queue.db"), "file": f"file:{directory / 'queue'}"}.get(store) or servers.url_of(
        store
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000))
    parser.add_argument("--store", choices=["sqlite", "file", "valkey", "redis"], default="sqlite")
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--clients", type=int, default=4)
    given = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory() as place:
            store = url_of(given.store, Path(place))
            broken = perform(Path(place), given.requests, given.seed, store, given.nodes, given.clients)
    finally:
        servers.end_all()
    sys.exit(1 if broken else 0)


if __name__ == "__main__":
    main()
