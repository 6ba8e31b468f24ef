"""WorkerProcess: one worker as the pool sees it: its channel, the calls that it holds, and its deadlines.

    a call:    take --> started --> remove (Done, Returned, or the worker is gone)
    a worker:  starting --> ready (idle or busy) --> retiring --> gone; a kill leads to "gone" from every state

A worker has two loads: that of its main thread, where calls run one after the other, and that of its event loop, where
parallel calls run side by side. Times are read from the pool's clock, and passed in.

When a worker is gone, its calls are reported like this:

    it died by itself               running: WorkerDied              waiting: returned
    the pool killed it for a call   that call: Timeout, Cancelled    waiting: returned     running beside it: returned

A call that was asked to stop always ends as Cancelled, so that it does not run again.
"""

from __future__ import annotations

import signal
from collections.abc import Set
from math import ceil, inf

import msgspec

from dtq.task.model import WORKER_DIED, ErrorInfo, Task
from dtq.workers import wire
from dtq.workers.backend import Finished, Report, Returned, WorkerInfo, WorkerState
from dtq.workers.process.prefetch import TypeProfile

HELD_UP = 0.05  # seconds that a call may run before the calls behind it are recalled
LOADING = 60.0  # seconds to load a handler, or the timeout of the call if that is longer
READY_WITHIN = 30.0  # seconds from the fork to Ready
ANSWERS_WITHIN = 30.0  # seconds from the first call to its Started: nothing but the worker itself delays it
RETIRED_WITHIN = 5.0  # seconds from the last call to the exit
LIVED = 1.0  # seconds from the fork after which a worker counts as able to live


class InFlight(msgspec.Struct, gc=False):
    """A call that a worker holds. `since` and `due` are times of the pool's clock, `at` is the worker's time (UTC)."""

    task: Task
    profile: TypeProfile
    weight: float  # its share of the load when it was placed
    since: float = inf  # its start; inf: it has not started
    at: float = 0.0
    due: float = inf  # the pool kills the worker then
    is_loading: bool = False  # its handler is being loaded
    is_stopping: bool = False
    is_returning: bool = False  # it was interrupted, and is returned unless it succeeds

    def time_limit(self) -> float:
        """Return the seconds that it may run, or that its handler may take to load."""
        return max(self.task.timeout, LOADING) if self.is_loading else self.task.timeout


class MainThread(msgspec.Struct):
    """What runs in the worker's main thread."""

    current: InFlight | None = None
    is_recalled: bool = False  # the calls behind `current` were recalled

    def is_held_up(self, now: float) -> bool:
        return self.current is not None and now >= self.current.since + HELD_UP


class Ending(msgspec.Struct):
    """Why a worker ends, and which of its calls are to blame."""

    reason: str = ""
    is_killed: bool = False
    gone_by: float = inf  # it must have exited by then; set by a kill, or by the end of its channel
    killed_for: dict[int, ErrorInfo] = {}  # by the number of the call
    is_innocent: bool = False  # killed by the pool; calls without an entry in `killed_for` are not to blame


class Totals(msgspec.Struct):
    """What the worker has done so far."""

    has_worked: bool = False  # a call has started
    done: int = 0
    busy_seconds: float = 0.0
    loaded: set[str] = set()  # the types whose handlers it has loaded


class WorkerProcess:
    """`serial` names this process and no other; the processes that replace it get the same `slot` and `name`."""

    def __init__(self, serial: int, slot: int, name: str, channel: wire.Channel, now: float) -> None:
        self.serial, self.slot, self.name = serial, slot, name
        self.channel = channel
        self.born = now
        self.pid = 0  # unknown
        self.is_ready = self.is_retiring = False
        self.ending = Ending()
        self.due = now + READY_WITHIN  # the next step of its life must have come by then
        self.calls_due = inf  # no call is due earlier
        self.in_flight: dict[int, InFlight] = {}
        self.waiting = 0  # how many of them have not started
        self.loads = [0.0, 0.0]  # of the main thread, of the event loop
        self.allowance = inf  # how many more calls it may take
        self.turn = 0  # grows with each call placed; of two workers with the same load, the lower turn is next
        self.main = MainThread()
        self.totals = Totals()

    # --- calls -----------------------------------------------------------------------------------------------------

    def is_open_for(self, types: Set[str], parallel: bool, now: float) -> bool:
        """Return whether such calls would start here soon.

        Behind a long call they would not, except parallel calls of loaded types: the main thread loads handlers.
        """
        if not self.is_ready or self.is_leaving or self.allowance < 1:
            return False
        return not self.main.is_held_up(now) or (parallel and types <= self.totals.loaded)

    @property
    def is_leaving(self) -> bool:
        return self.is_retiring or self.ending.is_killed or not self.channel.is_open

    def room(self, prefetch: int, parallel: bool) -> float:
        """Return how many more calls of this prefetch it should get: at least one until it is full, because a slow call
        may stand behind some fast ones."""
        return min(self.allowance, max(0, ceil((1 - self.loads[parallel]) * prefetch - 1e-6)))

    def take(self, number: int, call: InFlight, now: float) -> None:
        """Add a call that is about to be sent."""
        if self.is_ready and not self.in_flight:
            self.due = now + ANSWERS_WITHIN
        self.in_flight[number] = call
        self.loads[call.profile.parallel] += call.weight
        self.waiting += 1
        self.allowance -= 1

    def started(self, call: InFlight, message: wire.Started, now: float, grace: float) -> None:
        """Note that the call runs, or that its handler is being loaded, and set its deadline."""
        if call.since == inf:
            self.waiting -= 1
        call.since, call.at, call.is_loading = now, message.at, message.loading
        call.due = now + grace + (0.0 if call.is_stopping else call.time_limit())
        if call.due < self.calls_due:
            self.calls_due = call.due
        self.due = inf
        self.totals.has_worked = True
        if call.is_loading or not call.profile.parallel:
            self.main.current, self.main.is_recalled = call, False
        elif self.main.current is call:
            self.main.current = None

    def remove(self, number: int, now: float) -> InFlight | None:
        """Remove the call and return it, or None if it is not here."""
        call = self.in_flight.pop(number, None)
        if call is None:
            return None
        if call.since == inf:
            self.waiting -= 1
            self.allowance += 1
        if call is self.main.current:
            self.main.current = None
        if self.in_flight:
            self.loads[call.profile.parallel] -= call.weight
        else:
            self.loads = [0.0, 0.0]  # drop rounding errors
            self.calls_due = inf
        if self.waiting == len(self.in_flight):
            self._expect_next_step(now)
        return call

    def stop(self, number: int, now: float, grace: float) -> None:
        """Ask the worker to stop this call. If the call runs, it must end within the grace."""
        call = self.in_flight[number]
        call.is_stopping = True
        self.channel.send(wire.Stop(number))
        if call.since < inf:
            call.due = min(call.due, now + grace)
            self.calls_due = min(self.calls_due, call.due)

    def interrupt(self, number: int) -> None:
        """Ask the worker to stop this call, and return its task."""
        self.in_flight[number].is_returning = True
        self.channel.send(wire.Stop(number))

    # --- deadlines -------------------------------------------------------------------------------------------------

    def next_due(self) -> float:
        """Return when the pool must act on this worker, even without a message from it."""
        if self.ending.gone_by < inf:
            return self.ending.gone_by
        due = min(self.due, self.calls_due)
        return min(due, self.main.current.since + HELD_UP) if self.main.current and self._may_recall() else due

    def is_stuck(self, now: float) -> bool:
        """Return whether the next step of its life is late."""
        return now >= (self.ending.gone_by if self.ending.gone_by < inf else self.due)

    def recall_if_held_up(self, now: float) -> None:
        """Recall the calls that wait behind a long one, so that they can run elsewhere."""
        if self._may_recall() and self.main.is_held_up(now):
            self.main.is_recalled = True
            self.channel.send(wire.Recall())

    def overdue(self, now: float) -> list[tuple[int, InFlight]]:
        """Return the calls that should have ended by now."""
        if now < self.calls_due:  # only a lower bound: ended calls do not change it
            return []
        self.calls_due = min((call.due for call in self.in_flight.values()), default=inf)
        return [(number, call) for number, call in self.in_flight.items() if call.due <= now]

    def _may_recall(self) -> bool:
        return self.waiting > 0 and not self.main.is_recalled and self.main.current is not None

    # --- life ------------------------------------------------------------------------------------------------------

    def set_ready(self, now: float) -> None:
        """Start to accept calls."""
        self.is_ready = True
        self._expect_next_step(now)

    def retire(self, reason: str, now: float) -> None:
        """Take no more calls, and exit after those that are here."""
        if not self.is_retiring:
            self.is_retiring, self.ending.reason = True, reason
            self.channel.send(wire.Retire())
            if self.is_ready and not self.in_flight:
                self._expect_next_step(now)

    def _expect_next_step(self, now: float) -> None:
        """Set the deadline of a worker in which no call runs: a call must start, or a retiring worker must exit."""
        if self.in_flight:
            self.due = now + ANSWERS_WITHIN
        else:
            self.due = now + RETIRED_WITHIN if self.is_retiring else inf

    def has_lived(self, now: float) -> bool:
        """Return whether it has shown that workers can live here at all."""
        return self.is_ready and (self.totals.has_worked or self.is_retiring or now - self.born >= LIVED)

    def info(self) -> WorkerInfo:
        running = self.main.current or next((call for call in self.in_flight.values() if call.since < inf), None)
        return WorkerInfo(
            self.name, self.pid, self._state(), len(self.in_flight), self.totals.done, self.totals.busy_seconds,
            running.task.id if running else None,
        )  # fmt: skip

    def _state(self) -> WorkerState:
        if not self.is_ready:
            return "starting"
        if self.is_leaving:
            return "retiring"
        return "busy" if self.in_flight else "idle"

    def report_lost(self, number: int, call: InFlight, code: int, now: float) -> Report:
        """Return the report of a call whose worker has exited with this code."""
        error = self.ending.killed_for.get(number)
        if error is None and call.is_stopping:
            error = ErrorInfo("Cancelled", "its worker was gone before it had stopped")
        if call.since == inf or (error is None and self.ending.is_innocent):
            return Returned(call.task)
        return Finished(call.task, self.name, call.at, now - call.since, None, error or death_error(code), "", False)


# --- errors -----------------------------------------------------------------------------------------------------------


def overdue_error(call: InFlight) -> ErrorInfo:
    """Return the error of a call for which the pool kills the worker."""
    if call.is_stopping:
        return ErrorInfo("Cancelled", "did not stop when asked: its worker was killed")
    limit = f"{call.time_limit():g} s"
    if call.is_loading:
        return ErrorInfo("Timeout", f"its handler was not loaded within {limit}: the worker was killed")
    return ErrorInfo("Timeout", f"ran longer than its timeout of {limit} and did not stop: its worker was killed")


def death_error(code: int) -> ErrorInfo:
    """Return the error of a call that ran when its worker died: `code` is the exit code, or the negative signal."""
    if code < 0:
        message = f"the worker process died of {_signal_name(-code)} while it ran this task"
        return ErrorInfo(WORKER_DIED, message, signal=-code)
    return ErrorInfo(WORKER_DIED, f"the worker process exited with code {code} while it ran this task", exit_code=code)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
