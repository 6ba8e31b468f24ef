"""Guards of the loop: keep a failure of one task away from all others, and survive failures that no task caused.

a step on one task raises        --> internal_error: fail the attempt, with the traceback
the store refuses a batch        --> BatchCommit: halve it until the outcome to blame is alone, and fail that one
any other exception              --> ErrorBackoff: log it once, try again after 0.05 to 2 s, give up after 30 s
a step that no task needs raises --> BestEffort: log it once and continue
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from math import inf

from dtq.errors import StoreError
from dtq.stores.protocol import Outcome
from dtq.task.internal_error import MAX_WORDS, describe, internal_error, printable
from dtq.task.model import Status, Task
from dtq.task.transitions import fail
from dtq.webhooks import deliveries

log = logging.getLogger("dtq")

MIN_BACKOFF, MAX_BACKOFF = 0.05, 2.0  # seconds until the next try; doubled after each failure
GIVE_UP_AFTER = 30.0  # seconds without a successful turn after which a node ends
MAX_REFUSALS = 3  # StoreErrors in a row, after which one outcome may be to blame
LOG_INTERVAL = 10.0  # seconds for which a failure that comes and goes is not logged again
MAX_REMEMBERED = 100  # different failures that BestEffort logs
_OF_THE_MACHINE = (StoreError, OSError, MemoryError)
Update = Callable[[Sequence[Outcome]], None]
# An outcome of a task that no store has: a store that works accepts the call and changes nothing.
NO_OP: Outcome = (Task(type="dtq.nothing", id="dtq.nothing", version=1, status=Status.CANCELLED), ())


def failed(task: Task, error: Exception, now: float, chance: Callable[[], float]) -> Task:
    """Fail this attempt with an InternalError. The usual rules decide whether another attempt follows."""
    log.error("task %s (%s): a step of the loop raised; the attempt fails", task.id, task.type, exc_info=error)
    info = internal_error(error)
    try:
        return fail(task, info, now, chance)
    except Exception:  # the backoff cannot use a field of the task
        return fail(task, info, now, lambda: 0.0, final=True)


def with_deliveries(outcomes: Sequence[Outcome], now: float) -> Sequence[Outcome]:
    """Add the webhook deliveries to the outcomes. An outcome whose delivery cannot be built is kept without it."""
    if all(task.webhook is None for task, _ in outcomes):
        return outcomes
    try:
        return deliveries.with_deliveries(outcomes, now)
    except Exception as error:
        if len(outcomes) > 1:
            return [whole for outcome in outcomes for whole in with_deliveries([outcome], now)]
        log.error("task %s: its webhook cannot be sent", outcomes[0][0].id, exc_info=error)
        return outcomes


class BatchCommit:
    """Stores a batch of outcomes, and finds the outcome that the store cannot take by bisection.

    `probe` is the store's own `update`. `instead` returns the failure that replaces an outcome. After `commit`, `left`
    has the outcomes that are not stored yet.
    """

    def __init__(
        self,
        probe: Callable[[Sequence[Outcome]], object],
        instead: Callable[[Task, Exception], Task],
    ) -> None:
        self.left: Sequence[Outcome] = ()
        self._probe = probe
        self._instead = instead
        self._refusals = 0  # in a row

    def commit(self, outcomes: Sequence[Outcome], update: Update) -> None:
        """Store all outcomes with `update`. Raise the store's exception if no outcome is to blame."""
        self.left = outcomes
        try:
            update(outcomes)
        except Exception as error:
            self._refusals += 1
            if isinstance(error, _OF_THE_MACHINE) and self._refusals < MAX_REFUSALS:
                raise
            self._bisect(outcomes, update, error)
        self.left, self._refusals = (), 0

    def _bisect(self, outcomes: Sequence[Outcome], update: Update, error: Exception) -> None:
        """Store these outcomes, which the store refused together, half by half."""
        self._require_store()
        if len(outcomes) == 1:
            self._isolate(outcomes[0], update, error)
            return
        middle = len(outcomes) // 2
        for half in (outcomes[:middle], outcomes[middle:]):
            try:
                update(half)
            except Exception as refusal:
                self._bisect(half, update, refusal)
            else:
                self._mark_stored(half)

    def _isolate(self, outcome: Outcome, update: Update, error: Exception) -> None:
        """Try a refused outcome once more. The store has accepted another call since: if it refuses this outcome again,
        the outcome is to blame."""
        try:
            update([outcome])
        except Exception:
            self._require_store()
            self._store_failure(outcome[0], update, error)
        self._mark_stored([outcome])

    def _store_failure(self, task: Task, update: Update, error: Exception) -> None:
        try:
            update([(self._instead(task, error), ())])
        except Exception:
            self._require_store()
            log.exception("task %s: the store accepts no outcome of it; its lease will run out", task.id)

    def _mark_stored(self, outcomes: Sequence[Outcome]) -> None:
        done = {(task.id, task.version) for task, _ in outcomes}
        self.left = [(task, planted) for task, planted in self.left if (task.id, task.version) not in done]

    def _require_store(self) -> None:
        """Raise if the store refuses even an outcome that changes nothing."""
        self._probe([NO_OP])


class ErrorBackoff:
    """How long the loop waits after errors that no task caused, and what it reports about them."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self.wait = 0.0  # seconds until the next try; 0 after a successful turn
        self.error: Exception | None = None  # the last error of this turn
        self.message = ""  # describes the error until a turn succeeds
        self._monotonic = monotonic
        self._since: float | None = None  # first error since the last successful turn that is not a StoreError
        self._logged: dict[type, float] = {}  # time of the last log entry; inf: logged in this series of failed turns

    def begin_turn(self) -> None:
        """Forget the error of the turn before, but keep the wait."""
        self.error = None

    def note(self, error: Exception, what: str) -> None:
        """Count this turn as failed. Log the first error of each type since the last successful turn."""
        if self.error is None:
            self.wait = min(self.wait * 2 or MIN_BACKOFF, MAX_BACKOFF)
        self.error = error
        self.message = printable(describe(error))[:MAX_WORDS]
        if self._should_log(type(error)):
            log.error("%s: %s", what, error, exc_info=None if isinstance(error, StoreError) else error)
        if not isinstance(error, StoreError) and self._since is None:
            self._since = self._monotonic()

    def _should_log(self, kind: type) -> bool:
        """Return True once in a series of failed turns, and once in LOG_INTERVAL seconds if successful turns come
        between."""
        logged, now = self._logged.get(kind), self._monotonic()
        if logged == inf or (logged is not None and now - logged < LOG_INTERVAL):
            return False
        self._logged[kind] = inf
        return True

    def end_turn(self) -> None:
        """Reset everything if this turn had no error."""
        if self.error is None and self.wait:
            self.wait, self.message, self._since = 0.0, "", None
            self._logged = {kind: min(logged, self._monotonic()) for kind, logged in self._logged.items()}

    @property
    def is_exhausted(self) -> bool:
        """True if no turn succeeded for GIVE_UP_AFTER seconds. A StoreError never exhausts it: the server may come
        back."""
        if self.error is None or isinstance(self.error, StoreError) or self._since is None:
            return False
        return self._monotonic() - self._since >= GIVE_UP_AFTER


class BestEffort:
    """Runs steps that no task needs: metrics, events, clean-up. A failure is logged once and does not stop the loop."""

    def __init__(self) -> None:
        self._logged: set[tuple[str, str]] = set()

    def run(self, what: str, action: Callable[..., object], *args: object) -> None:
        """Call `action(*args)`. Raise StoreError only; log any other exception under the name `what`."""
        try:
            action(*args)
        except StoreError:
            raise
        except Exception as error:
            key = what, type(error).__name__
            if key not in self._logged and len(self._logged) < MAX_REMEMBERED:
                self._logged.add(key)
                log.exception("%s failed; the node continues", what)
