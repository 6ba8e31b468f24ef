"""One worker as the pool sees it: its channel, the calls that it holds, and what is due.

    a call:    take --> started --> remove (Done, Returned, or the worker is gone)
    a worker:  starting --> ready (idle or busy) --> retiring --> gone; a kill leads to "gone" from everywhere

A worker has two sides, with a load each: the main thread, where calls run one after the other, and the event loop,
where parallel ones run beside each other. Times are by the pool's clock, and passed in.
"""

from __future__ import annotations

from collections.abc import Set
from math import ceil, inf

import msgspec

from dtq.task.model import ErrorInfo, Task
from dtq.workers import wire
from dtq.workers.backend import WorkerInfo, WorkerState
from dtq.workers.channel import Channel
from dtq.workers.process.prefetch import TypeProfile

HELD_UP = 0.05  # seconds that a call may run before no other may wait behind it
LOADING = 60.0  # seconds that a handler has to be loaded, if its timeout is not longer
READY_WITHIN = 30.0  # seconds from the fork to Ready
ANSWERS_WITHIN = 30.0  # seconds from the first call to its Started: nothing but the worker itself stands before it
RETIRED_WITHIN = 5.0  # seconds from the last call to the exit
LIVED = 1.0  # seconds from the fork after which a worker has shown that it can live


class InFlight(msgspec.Struct, gc=False):
    """A call that a worker holds. `since` and `due` are by the pool's clock, `at` is what the worker said (UTC)."""

    task: Task
    gait: TypeProfile
    weight: float  # its share of the load, as it was when it was taken
    since: float = inf  # inf: it has not started
    at: float = 0.0
    due: float = inf  # the worker is killed then
    loading: bool = False  # the handler, which it waits for
    stopping: bool = False
    returning: bool = False  # it was interrupted, and goes back unless it has ended well


def time_limit(job: InFlight) -> float:
    """Seconds that it may run, or be loaded."""
    return max(job.task.timeout, LOADING) if job.loading else job.task.timeout


class WorkerProcess:
    """`serial` means this process and no other; `slot` and `name` are those of its successors too."""

    def __init__(self, serial: int, slot: int, name: str, channel: Channel, now: float) -> None:
        self.serial = serial
        self.slot = slot
        self.name = name
        self.channel = channel
        self.born = now
        self.pid = 0  # not known yet
        self.ready = self.retiring = self.killed = False
        self.reason = ""  # why it is ended
        self.spares = False  # killed for no fault of those of its calls that have no verdict
        self.verdicts: dict[int, ErrorInfo] = {}  # of the calls that it is killed for
        self.due = now + READY_WITHIN  # when the next step of its life must have come
        self.gone_by = inf  # when it must have exited, as it was killed, or its channel has ended
        self.jobs: dict[int, InFlight] = {}
        self.waiting = 0  # how many of them have not started
        self.loads = [0.0, 0.0]  # of the main thread, of the event loop
        self.known: set[str] = set()  # types that it has loaded
        self.turn = 0  # when it last got a call, counted in calls: of two with the same load, the earlier is next
        self.allowance = inf  # calls that it may still take
        self.current: InFlight | None = None  # what its main thread is at
        self.recalled = False  # what waits behind that
        self.alarm = inf  # no job is due before
        self.worked = False
        self.done = 0
        self.busy_seconds = 0.0

    # --- calls -----------------------------------------------------------------------------------------------------

    def is_open_for(self, types: Set[str], parallel: bool, now: float) -> bool:
        """Whether such calls would soon run here. Behind a call that is held up they would not, except parallel ones
        that need not be loaded first (which is done by the main thread)."""
        if not self.ready or self.is_leaving or self.allowance < 1:
            return False
        return not self.is_held_up(now) or (parallel and types <= self.known)

    @property
    def is_leaving(self) -> bool:
        return self.retiring or self.killed or not self.channel.is_open

    def is_held_up(self, now: float) -> bool:
        return self.current is not None and now >= self.current.since + HELD_UP

    def room(self, window: int, parallel: bool) -> float:
        """How many more calls of this window it should have. As long as there is any room, there is room for one: a
        slow call may stand behind some fast ones."""
        return min(self.allowance, max(0, ceil((1 - self.loads[parallel]) * window - 1e-6)))

    def take(self, number: int, job: InFlight, now: float) -> None:
        if self.ready and not self.jobs:
            self.due = now + ANSWERS_WITHIN
        self.jobs[number] = job
        self.loads[job.gait.parallel] += job.weight
        self.waiting += 1
        self.allowance -= 1

    def started(self, job: InFlight, message: wire.Started, now: float, grace: float) -> None:
        """The call runs, or its handler is loaded, from now on; due when the time for that and the grace are over."""
        if job.since == inf:
            self.waiting -= 1
        job.since, job.at, job.loading = now, message.at, message.loading
        job.due = now + grace + (0.0 if job.stopping else time_limit(job))
        if job.due < self.alarm:
            self.alarm = job.due
        self.due = inf
        self.worked = True
        if job.loading or not job.gait.parallel:
            self.current, self.recalled = job, False
        elif self.current is job:
            self.current = None

    def remove(self, number: int, now: float) -> InFlight | None:
        """The call is no longer here; None where it was not."""
        job = self.jobs.pop(number, None)
        if job is None:
            return None
        if job.since == inf:
            self.waiting -= 1
            self.allowance += 1
        if job is self.current:
            self.current = None
        if self.jobs:
            self.loads[job.gait.parallel] -= job.weight
        else:
            self.loads = [0.0, 0.0]  # no rounding errors are carried on
            self.alarm = inf
        if self.waiting == len(self.jobs):
            self._expect(now)
        return job

    def stop(self, number: int, now: float, grace: float) -> None:
        """Asks for the end of this call, and sees to it if it runs."""
        job = self.jobs[number]
        job.stopping = True
        self.channel.send(wire.Stop(number))
        if job.since < inf:
            job.due = min(job.due, now + grace)
            self.alarm = min(self.alarm, job.due)

    def interrupt(self, number: int) -> None:
        """Ask for the end of this call, so that it can go back."""
        self.jobs[number].returning = True
        self.channel.send(wire.Stop(number))

    # --- time ------------------------------------------------------------------------------------------------------

    def next_due(self) -> float:
        """When somebody must look at it, even if it says nothing."""
        if self.gone_by < inf:
            return self.gone_by
        due = min(self.due, self.alarm)
        return min(due, self.current.since + HELD_UP) if self.current and self._may_recall() else due

    def is_stuck(self, now: float) -> bool:
        """Whether its life does not go on as it should."""
        return now >= (self.gone_by if self.gone_by < inf else self.due)

    def recall_if_held_up(self, now: float) -> None:
        """What waits behind a call that turns out to be long goes elsewhere."""
        if self._may_recall() and self.is_held_up(now):
            self.recalled = True
            self.channel.send(wire.Recall())

    def overdue(self, now: float) -> list[tuple[int, InFlight]]:
        """The calls that should have ended by now."""
        if now < self.alarm:  # only a lower bound: calls that have ended are not taken out of it
            return []
        self.alarm = min((job.due for job in self.jobs.values()), default=inf)
        return [(number, job) for number, job in self.jobs.items() if job.due <= now]

    def _may_recall(self) -> bool:
        return self.waiting > 0 and not self.recalled and self.current is not None

    # --- life ------------------------------------------------------------------------------------------------------

    def get_ready(self, now: float) -> None:
        """It takes calls from now on."""
        self.ready = True
        self._expect(now)

    def retire(self, reason: str, now: float) -> None:
        """It takes no more calls, and exits after those that it has."""
        if not self.retiring:
            self.retiring, self.reason = True, reason
            self.channel.send(wire.Retire())
            if self.ready and not self.jobs:
                self._expect(now)

    def _expect(self, now: float) -> None:
        """What must come next where nothing runs: the start of a call, or the exit of a worker that is to retire."""
        if self.jobs:
            self.due = now + ANSWERS_WITHIN
        else:
            self.due = now + RETIRED_WITHIN if self.retiring else inf

    def lived(self, now: float) -> bool:
        """Whether it has shown that workers can live here at all."""
        return self.ready and (self.worked or self.retiring or now - self.born >= LIVED)

    def info(self) -> WorkerInfo:
        running = self.current or next((job for job in self.jobs.values() if job.since < inf), None)
        return WorkerInfo(
            self.name, self.pid, self._state(), len(self.jobs), self.done, self.busy_seconds,
            running.task.id if running else None,
        )  # fmt: skip

    def _state(self) -> WorkerState:
        if not self.ready:
            return "starting"
        if self.is_leaving:
            return "retiring"
        return "busy" if self.jobs else "idle"
