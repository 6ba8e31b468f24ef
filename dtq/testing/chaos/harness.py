"""Harness: a queue of real processes under faults, and what was seen of it.

    plan.py: faults ---> ChaosRun ---SIGKILL, SIGSTOP, orders---> members.py: nodes, their zygotes and workers; a
                           client, |                                        |       the API, the store's server
                           |                                        +--> witness.py: what has happened, flushed
                           v                                                   |
    the store, when all is quiet: tasks -------------------> RunRecord <--------+ --> promises.py

A fault comes whenever the next share of the tasks has ended, so that the last of them come as surely as the first. Then
everything that is frozen goes on, what is dead is replaced once more, and all tasks have to come to their end.
"""

from __future__ import annotations

import itertools
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path

import msgspec

from dtq.errors import DTQError
from dtq.queue.manager import QueueManager
from dtq.stores.address import redacted
from dtq.task.model import Status, Task
from dtq.testing.chaos import history_log, invariants
from dtq.testing.chaos.invariants import EVERYBODY, RunRecord
from dtq.testing.chaos.members import API, Member, Server, Workspace, free_port, send
from dtq.testing.chaos.node import LIMITED, MOST, TYPE, WORKERS, Orders
from dtq.testing.chaos.plan import ON_APIS, ON_SERVERS, Fault, draw, kinds

SWEEP = 4.0  # seconds past its lease until a task must have been taken over, on a machine that is busy
PATIENCE = 1.0  # seconds until the next fault comes, though no more tasks have ended
QUIET = 180.0  # seconds that the rest may take when the faults are over
LOOK = 0.5  # seconds between looks at limits

Told = Callable[[int, int], None]  # tasks that have ended, faults that were done


class Profile(msgspec.Struct, frozen=True):
    """How much is done to how many: `nodes` of two workers each run `tasks`, while so many `kills` happen, and the
    faults that come with them."""

    tasks: int
    kills: int
    nodes: int = 3
    lease: float = 5.0
    seconds: float = 0.004


PROFILES = {"small": Profile(600, 20, nodes=2), "release": Profile(20_000, 200)}


class Outcome(msgspec.Struct):
    """What a run has shown. `ended` are the tasks that had ended, second by second."""

    seed: int
    profile: Profile
    faults: dict[str, int]
    broken: dict[str, list[str]]
    evidence: RunRecord
    seconds: float
    ended: list[int]


def run(url: str, seed: int, profile: Profile, tell: Told = lambda ended, faults: None, server: str = "") -> Outcome:
    """One run on the store of this URL, which has to be empty. Raises DTQError where it is not.

    `server` is the command that starts the store's server in the foreground; then it is among those that are harmed.
    """
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dtq-chaos-")))
        camp = Workspace(directory)
        stack.callback(camp.end)
        backend = Server(server, camp) if server else None
        if backend:
            stack.callback(backend.end)
        manager = stack.enter_context(QueueManager(url))
        if n := manager.stats().total:
            raise DTQError(
                f"{redacted(url)} holds {n:,} tasks, and this ends with what is in it broken: name an empty store"
            )
        manager.store.set_lane(key=LIMITED, max_running=MOST)
        siege = ChaosRun(url, seed, profile, manager, camp, backend)
        began = time.monotonic()
        try:
            siege.storm(tell)
            siege.wait_for_quiet(tell)
        except BaseException:  # Ctrl-C, say: nobody wants to know what is still running
            siege.end(kill=True)
            raise
        siege.end()
        evidence, seconds = siege.evidence(), time.monotonic() - began
    return Outcome(seed, profile, dict(siege.done), invariants.broken(evidence), evidence, seconds, siege.ended)


class ChaosRun:
    """The processes of a run, and what is done to them."""

    def __init__(
        self, url: str, seed: int, profile: Profile, manager: QueueManager, camp: Workspace, server: Server | None
    ) -> None:  # fmt: skip
        self.done: Counter[str] = Counter()
        self.ended: list[int] = []
        self._profile = profile
        self._manager = manager
        self._camp = camp
        self._server = server
        port = free_port() if find_spec("litestar") else 0
        self._api = API(url, port, camp) if port else None
        log = str(camp.directory / "witness")
        self._orders = Orders(url, log, "", profile.lease, seed=seed, seconds=profile.seconds, api=port)
        self._names = itertools.count(1)
        self._blamed: Counter[str] = Counter()
        self._deaths = 0
        self._seen: list[str] = []
        self._later: list[tuple[float, Callable[[], None]]] = []
        self._next_look = 0.0
        self._stood_still_at = 0.0
        self._began = time.monotonic()
        history_log.Witness(self._orders.log).close()
        self._client = self._start(tasks=profile.tasks)
        self._nodes = [self._start() for _ in range(profile.nodes)]

    def _start(self, **options: object) -> Member:
        orders = msgspec.structs.replace(self._orders, name=f"n{next(self._names)}", **options)
        return Member(orders, self._camp)

    # --- faults

    def storm(self, tell: Told) -> None:
        orders, profile = self._orders, self._profile
        among = kinds(orders.url, has_server=self._server is not None, has_api=self._api is not None)
        faults = draw(orders.seed, profile.kills, profile.lease, among, orders.url.startswith("file:"))
        for number, fault in enumerate(faults, 1):
            share = self._profile.tasks * number // (len(faults) + 1)
            give_up_at = time.monotonic() + PATIENCE
            while (ended := self._look()) < share and time.monotonic() < give_up_at:
                self._rest(0.005)
            self._do(fault)
            self.done[fault.kind] += 1
            tell(ended, number)

    def _do(self, fault: Fault) -> None:
        node = self._nodes[int(fault.whom * len(self._nodes))]
        if fault.kind == "kill worker":
            self._deaths += send(node.workers(), fault.whom, signal.SIGKILL)
        elif fault.kind == "kill zygote":
            self._deaths += len(node.workers()) or WORKERS
            send(node.zygote(), 0, signal.SIGKILL)
        elif fault.kind == "kill node":
            node.hit(signal.SIGKILL)
        elif fault.kind == "kill client":
            self._client.hit(signal.SIGKILL)
        elif fault.kind == "failpoint":
            node.hit(signal.SIGKILL)
            self._replace(node, failpoint=fault.place, passes=fault.passes)
        elif fault.kind == "freeze worker":
            send(node.workers(), fault.whom, signal.SIGSTOP, thaw=self._in(fault.seconds))
        elif fault.kind in ("freeze node", "freeze node for long"):
            self._freeze(node, fault.seconds)
        elif fault.kind in ON_APIS or fault.kind in ON_SERVERS:
            self._do_to_servers(fault)
        else:
            self._spoil(node, fault)

    def _do_to_servers(self, fault: Fault) -> None:
        """One waits until the store's server is there again: nobody, nor who looks at the store, can do without."""
        api, server = self._api, self._server
        if api and fault.kind == "kill api":
            api.kill_and_start()
        elif api and fault.kind == "freeze api":
            api.hit(signal.SIGSTOP)
            self._in(fault.seconds)(lambda: api.hit(signal.SIGCONT))
        elif server and fault.kind == "kill server":
            server.kill_and_start(fault.seconds)
        elif server:
            server.freeze(fault.seconds)

    def _freeze(self, node: Member, seconds: float) -> None:
        if seconds > self._profile.lease:  # who is frozen in the midst of a write keeps the others waiting too
            self._blamed[EVERYBODY] += 1
        node.hit(signal.SIGSTOP)
        self._in(seconds)(lambda: node.hit(signal.SIGCONT))

    def _spoil(self, node: Member, fault: Fault) -> None:
        if fault.kind == "clock step":  # forward, past every lease
            self._blamed[EVERYBODY] += 3  # it sweeps once a second
            node.obey(f"clock {2 * self._profile.lease}")
            self._in(fault.seconds)(lambda: node.obey("clock 0"))
        elif fault.kind == "full disk":
            node.obey("full 1")
            self._in(fault.seconds)(lambda: node.obey("full 0"))
        else:
            node.obey(f"slow {fault.seconds / 4:.3f}")
            self._in(fault.seconds)(lambda: node.obey("slow 0"))

    def _in(self, seconds: float) -> Callable[[Callable[[], None]], None]:
        """Has something done so many seconds from now."""
        return lambda do: self._later.append((time.monotonic() + seconds, do))

    # --- what goes on beside them

    def _look(self) -> int:
        """Does what is due, replaces the dead; gives the tasks that have ended."""
        now = time.monotonic()
        for item in [item for item in self._later if item[0] <= now]:
            self._later.remove(item)
            item[1]()
        for node in [node for node in self._nodes if node.process.poll() is not None]:
            self._replace(node)
        if self._client.process.poll():
            self._replace_client()
        stats = self._manager.stats()
        if now >= self._next_look:
            self._next_look = now + LOOK
            self._watch_the_limit()
        ended = stats.total - stats.unfinished
        self.ended += [ended] * (int(now - self._began) - len(self.ended))
        return ended

    def _rest(self, seconds: float) -> None:
        """Where that takes much longer, the whole machine has stood still, and leases have run out meanwhile."""
        began = time.monotonic()
        time.sleep(seconds)
        if time.monotonic() - began > seconds + self._profile.lease / 2:
            self._blamed[EVERYBODY] += 1
            self._stood_still_at = time.monotonic()

    def _replace(self, node: Member, **options: object) -> None:
        node.end(kill=True)
        self._seen += node.complaint()
        self._blamed[node.name] += 1
        self._nodes[self._nodes.index(node)] = self._start(**options)

    def _replace_client(self) -> None:
        self._client.end(kill=True)
        self._seen += self._client.complaint()
        left = self._profile.tasks - self._manager.stats().total
        self._client = self._start(tasks=max(left, 1))

    def _watch_the_limit(self) -> None:
        """A look is not one moment on every store. But what is there in two of them ran all the while between."""
        running = self._limited()
        if len(running) > MOST and len(running := running & self._limited()) > MOST:
            self._seen.append(f"{len(running)} tasks run under a limit of {MOST}: {sorted(running)}")

    def _limited(self) -> set[tuple[str, int]]:
        running = self._manager.find(status=Status.PROCESSING, limit=10_000)
        return {(task.id, task.version) for task in running if task.limit_key == LIMITED}

    # --- the end

    def wait_for_quiet(self, tell: Told) -> None:
        """No more faults: all tasks end."""
        quiet_since, total = time.monotonic(), sum(self.done.values())
        while self._later or self._client.process.poll() != 0 or self._manager.stats().unfinished:
            tell(self._look(), total)
            seconds = time.monotonic() - quiet_since
            if time.monotonic() - max(quiet_since, self._stood_still_at) > self._profile.lease + SWEEP + 2.0:
                self._look_for_late_ones()
            if seconds > QUIET or len(self._seen) > 20:
                break
            self._rest(0.02)
        tell(self._look(), total)

    def _look_for_late_ones(self) -> None:
        for task in self._manager.find(status=Status.PROCESSING, limit=10_000):
            if (late := time.time() - (task.lease_until or 0)) > SWEEP:
                self._seen.append(f"{task.id} is processing {late:.1f} s past its lease")

    def end(self, kill: bool = False) -> None:
        for member in (*self._nodes, self._client, *filter(None, [self._api])):
            member.hit(signal.SIGCONT)
            member.end(kill or member is self._client)
            self._seen += member.complaint(wanted=0)

    def evidence(self) -> RunRecord:
        lines = history_log.read(Path(self._orders.log))
        return RunRecord(lines, _all_tasks(self._manager), self._blamed, self._deaths, self._seen, {LIMITED: MOST})


def _all_tasks(manager: QueueManager) -> dict[str, Task]:
    found: dict[str, Task] = {}
    after = ""
    while page := manager.find(type=TYPE, after=after, limit=10_000):
        found.update({task.id: task for task in page})
        after = page[-1].id
    return found
