"""Harness: run a queue of real processes, inject faults, and record what happens.

    plan.py: faults --> ChaosRun --SIGKILL, SIGSTOP, commands--> processes.py: nodes with their zygotes and workers, a
                           |                                     client, the API, the store's server
                           |                                         |
                           v                                         v
    the store, when all is quiet: tasks --> RunRecord <-- history_log.py: what happened, on disk
                                                |
                                                v
                                          invariants.py

A fault comes whenever the next share of the tasks has ended, so that the faults spread over the whole run. Then frozen
processes go on, dead ones are replaced a last time, and all tasks must end.
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
from dtq.testing.chaos.invariants import ANY_NODE, RunRecord, name_of
from dtq.testing.chaos.node import LIMITED, MAX_RUNNING, TYPE, WORKERS, ProcessConfig
from dtq.testing.chaos.plan import ON_APIS, ON_SERVERS, PlannedFault, draw, kinds
from dtq.testing.chaos.processes import API, NodeProcess, Server, Workspace, free_port, signal_one

SWEEP = 4.0  # seconds after the end of its lease by which a task must have been taken over, on a busy machine
FAULT_INTERVAL = 1.0  # seconds after which the next fault comes even if no more tasks have ended
RECOVERY_TIMEOUT = 180.0  # seconds in which all tasks must end once the faults are over
POLL_INTERVAL = 0.5  # seconds between checks of limits

OnProgress = Callable[[int, int], None]  # called with the numbers of ended tasks and of faults so far


class Profile(msgspec.Struct, frozen=True):
    """The size of a run: `nodes` of two workers each run `tasks` while `kills` and other faults happen."""

    tasks: int
    kills: int
    nodes: int = 3
    lease: float = 5.0
    seconds: float = 0.004


PROFILES = {"small": Profile(600, 20, nodes=2), "release": Profile(20_000, 200)}


class ChaosResult(msgspec.Struct):
    """The result of a run. `ended` has the number of tasks that had ended, second by second."""

    seed: int
    profile: Profile
    faults: dict[str, int]
    broken: dict[str, list[str]]
    record: RunRecord
    seconds: float
    ended: list[int]


def run(
    url: str, seed: int, profile: Profile, on_progress: OnProgress = lambda ended, faults: None, server: str = ""
) -> ChaosResult:
    """Run once on the store of this URL.

    Args:
        on_progress: called with the numbers of ended tasks and of faults so far.
        server: the command that starts the store's server in the foreground; faults then hit the server too.

    Raises:
        DTQError: the store is not empty, or the server cannot be started.
    """
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dtq-chaos-")))
        workspace = Workspace(directory)
        stack.callback(workspace.end)
        backend = Server(server, workspace) if server else None
        if backend:
            stack.callback(backend.end)
        manager = stack.enter_context(QueueManager(url))
        if n := manager.stats().total:
            raise DTQError(f"{redacted(url)} holds {_count(n)}, which the faults could harm: name an empty store")
        manager.store.set_lane(key=LIMITED, max_running=MAX_RUNNING)
        chaos_run = ChaosRun(url, seed, profile, manager, workspace, backend)
        began = time.monotonic()
        try:
            chaos_run.storm(on_progress)
            chaos_run.wait_for_quiet(on_progress)
        except BaseException:  # such as Ctrl-C: do not wait for what still runs
            chaos_run.end(kill=True)
            raise
        chaos_run.end()
        record, seconds = chaos_run.record(), time.monotonic() - began
    return ChaosResult(seed, profile, dict(chaos_run.done), invariants.broken(record), record, seconds, chaos_run.ended)


class ChaosRun:
    """The processes of a run, and what is done to them."""

    def __init__(
        self, url: str, seed: int, profile: Profile, manager: QueueManager, workspace: Workspace, server: Server | None
    ) -> None:  # fmt: skip
        self.done: Counter[str] = Counter()
        self.ended: list[int] = []
        self._profile = profile
        self._manager = manager
        self._workspace = workspace
        self._server = server
        port = free_port() if find_spec("starlette") else 0
        self._api = API(url, port, workspace) if port else None
        log = str(workspace.directory / "history")
        self._config = ProcessConfig(url, log, "", profile.lease, seed=seed, seconds=profile.seconds, api=port)
        self._names = itertools.count(1)
        self._blamed: Counter[str] = Counter()
        self._deaths = 0
        self._violations: list[str] = []
        self._scheduled: list[tuple[float, Callable[[], None]]] = []
        self._next_limit_check = 0.0
        self._stood_still_at = 0.0
        self._began = time.monotonic()
        history_log.HistoryLog(self._config.log).close()
        self._client = self._start(tasks=profile.tasks)
        self._nodes = [self._start() for _ in range(profile.nodes)]

    def _start(self, **options: object) -> NodeProcess:
        config = msgspec.structs.replace(self._config, name=f"n{next(self._names)}", **options)
        return NodeProcess(config, self._workspace)

    # --- faults

    def storm(self, on_progress: OnProgress) -> None:
        config, profile = self._config, self._profile
        possible = kinds(config.url, has_server=self._server is not None, has_api=self._api is not None)
        faults = draw(config.seed, profile.kills, profile.lease, possible, config.url.startswith("file:"))
        for number, fault in enumerate(faults, 1):
            share = self._profile.tasks * number // (len(faults) + 1)
            give_up_at = time.monotonic() + FAULT_INTERVAL
            while (ended := self._check()) < share and time.monotonic() < give_up_at:
                self._sleep(0.005)
            self._inject(fault)
            self.done[fault.kind] += 1
            on_progress(ended, number)

    def _inject(self, fault: PlannedFault) -> None:
        node = self._nodes[int(fault.target * len(self._nodes))]
        if fault.kind == "kill worker":
            self._deaths += signal_one(node.workers(), fault.target, signal.SIGKILL)
        elif fault.kind == "kill zygote":
            self._deaths += len(node.workers()) or WORKERS
            signal_one(node.zygote(), 0, signal.SIGKILL)
        elif fault.kind == "kill node":
            node.send_signal(signal.SIGKILL)
        elif fault.kind == "kill client":
            self._client.send_signal(signal.SIGKILL)
        elif fault.kind == "failpoint":
            node.send_signal(signal.SIGKILL)
            self._replace(node, failpoint=fault.failpoint, passes=fault.passes)
        elif fault.kind == "freeze worker":
            signal_one(node.workers(), fault.target, signal.SIGSTOP, thaw=self._in(fault.seconds))
        elif fault.kind in ("freeze node", "freeze node for long"):
            self._freeze(node, fault.seconds)
        elif fault.kind in ON_APIS or fault.kind in ON_SERVERS:
            self._inject_into_server(fault)
        else:
            self._send_fault(node, fault)

    def _inject_into_server(self, fault: PlannedFault) -> None:
        """While the store's server is away, wait: neither the nodes nor this process can do without it."""
        api, server = self._api, self._server
        if api and fault.kind == "kill api":
            api.kill_and_start()
        elif api and fault.kind == "freeze api":
            api.send_signal(signal.SIGSTOP)
            self._in(fault.seconds)(lambda: api.send_signal(signal.SIGCONT))
        elif server and fault.kind == "kill server":
            server.kill_and_start(fault.seconds)
        elif server:
            server.freeze(fault.seconds)

    def _freeze(self, node: NodeProcess, seconds: float) -> None:
        if seconds > self._profile.lease:  # a process frozen in a write also blocks the others
            self._blamed[ANY_NODE] += 1
        node.send_signal(signal.SIGSTOP)
        self._in(seconds)(lambda: node.send_signal(signal.SIGCONT))

    def _send_fault(self, node: NodeProcess, fault: PlannedFault) -> None:
        if fault.kind == "clock step":  # forward, past every lease
            self._blamed[ANY_NODE] += 3  # a node sweeps once a second
            node.send_command(f"clock {2 * self._profile.lease}")
            self._in(fault.seconds)(lambda: node.send_command("clock 0"))
        elif fault.kind == "full disk":
            node.send_command("full 1")
            self._in(fault.seconds)(lambda: node.send_command("full 0"))
        else:
            node.send_command(f"slow {fault.seconds / 4:.3f}")
            self._in(fault.seconds)(lambda: node.send_command("slow 0"))

    def _in(self, seconds: float) -> Callable[[Callable[[], None]], None]:
        """Return a function that schedules an action this many seconds from now."""
        return lambda do: self._scheduled.append((time.monotonic() + seconds, do))

    # --- between the faults

    def _check(self) -> int:
        """Do the scheduled actions that are due and replace dead processes. Return how many tasks have ended."""
        now = time.monotonic()
        for item in [item for item in self._scheduled if item[0] <= now]:
            self._scheduled.remove(item)
            item[1]()
        for node in [node for node in self._nodes if node.process.poll() is not None]:
            self._replace(node)
        if self._client.process.poll():
            self._replace_client()
        stats = self._manager.stats()
        if now >= self._next_limit_check:
            self._next_limit_check = now + POLL_INTERVAL
            self._check_limit()
        ended = stats.total - stats.unfinished
        self.ended += [ended] * (int(now - self._began) - len(self.ended))
        return ended

    def _sleep(self, seconds: float) -> None:
        """Sleep. If that takes much longer, the whole machine stood still, and leases may have expired meanwhile."""
        began = time.monotonic()
        time.sleep(seconds)
        if time.monotonic() - began > seconds + self._profile.lease / 2:
            self._blamed[ANY_NODE] += 1
            self._stood_still_at = time.monotonic()

    def _replace(self, node: NodeProcess, **options: object) -> None:
        node.end(kill=True)
        self._violations += node.complaint()
        self._blamed[node.name] += 1
        self._nodes[self._nodes.index(node)] = self._start(**options)

    def _replace_client(self) -> None:
        self._client.end(kill=True)
        self._violations += self._client.complaint()
        left = self._profile.tasks - self._manager.stats().total
        self._client = self._start(tasks=max(left, 1))

    def _check_limit(self) -> None:
        """Record a violation of the limit. One look is not one moment on every store, but tasks that two looks find ran
        during all the time between them."""
        running = self._running_under_limit()
        if len(running) > MAX_RUNNING and len(running := running & self._running_under_limit()) > MAX_RUNNING:
            self._violations.append(f"{len(running)} tasks run under a limit of {MAX_RUNNING}: {sorted(running)}")

    def _running_under_limit(self) -> set[tuple[str, int]]:
        running = self._manager.find(status=Status.PROCESSING, limit=10_000)
        return {(task.id, task.version) for task in running if task.limit_key == LIMITED}

    # --- the end

    def wait_for_quiet(self, on_progress: OnProgress) -> None:
        """Let all tasks end, without further faults."""
        quiet_since, total = time.monotonic(), sum(self.done.values())
        while self._scheduled or self._client.process.poll() != 0 or self._manager.stats().unfinished:
            on_progress(self._check(), total)
            seconds = time.monotonic() - quiet_since
            if time.monotonic() - max(quiet_since, self._stood_still_at) > self._profile.lease + SWEEP + 2.0:
                self._check_leases()
            if seconds > RECOVERY_TIMEOUT or len(self._violations) > 20:
                break
            self._sleep(0.02)
        on_progress(self._check(), total)

    def _check_leases(self) -> None:
        for task in self._manager.find(status=Status.PROCESSING, limit=10_000):
            if (late := time.time() - (task.lease_until or 0)) > SWEEP:
                self._violations.append(f"{task.id} is processing {late:.1f} s past its lease")

    def end(self, kill: bool = False) -> None:
        for member in (*self._nodes, self._client, *filter(None, [self._api])):
            member.send_signal(signal.SIGCONT)
            member.end(kill or member is self._client)
            self._violations += member.complaint(expected=0)

    def record(self) -> RunRecord:
        lines = history_log.read(Path(self._config.log))
        return RunRecord(
            lines, _all_tasks(self._manager), self._blamed, self._deaths, self._violations, {LIMITED: MAX_RUNNING}
        )


def _all_tasks(manager: QueueManager) -> dict[str, Task]:
    found: dict[str, Task] = {}
    after = ""
    while page := manager.find(type=TYPE, after=after, limit=10_000):
        found.update({name_of(task): task for task in page})
        after = page[-1].id
    return found


def _count(n: int) -> str:
    return f"{n:,} task" if n == 1 else f"{n:,} tasks"
