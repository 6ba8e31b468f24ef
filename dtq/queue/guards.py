"""Guards of the loop: what one task breaks, it breaks for itself; what no task is to blame for, the loop waits out.

a step on one task raises    --> internal_error: the attempt fails, with the traceback
the store refuses a batch    --> BatchCommit: halves, until the outcome to blame is alone, and fails
anything else raises         --> ErrorBackoff: logged once, tried again after 0.05 to 2 s; hopeless after 30 s
what no task waits for fails --> BestEffort: logged once, and passed over
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

MIN_BACKOFF, MAX_BACKOFF = 0.05, 2.0  # seconds until what failed is tried again; doubled each time
GIVE_UP_AFTER = 30.0  # seconds without one good turn, after which a node ends
MAX_REFUSALS = 3  # in a row, after which a StoreError may be the fault of one outcome
LOG_INTERVAL = 10.0  # seconds in which a trouble that comes and goes is not told of again
MAX_REMEMBERED = 100  # different failures that BestEffort remembers
_OF_THE_MACHINE = (StoreError, OSError, MemoryError)
Update = Callable[[Sequence[Outcome]], None]
NO_OP: Outcome = (Task(type="dtq.nothing", id="dtq.nothing", version=1, status=Status.CANCELLED), ())  # never stored


def failed(task: Task, error: Exception, now: float, chance: Callable[[], float]) -> Task:
    """End this attempt with an InternalError. The usual rules decide whether there is another attempt."""
    log.error("task %s (%s): a step of the loop raised, and the attempt fails", task.id, task.type, exc_info=error)
    info = internal_error(error)
    try:
        return fail(task, info, now, chance)
    except Exception:  # a field that the backoff cannot use
        return fail(task, info, now, lambda: 0.0, final=True)


def with_deliveries(outcomes: Sequence[Outcome], now: float) -> Sequence[Outcome]:
    """Add the webhook deliveries to the outcomes. A delivery that cannot be made does not stop its outcome."""
    try:
        return deliveries.with_deliveries(outcomes, now)
    except Exception as error:
        if len(outcomes) > 1:
            return [told for outcome in outcomes for told in with_deliveries([outcome], now)]
        log.error("task %s: its webhook cannot be sent", outcomes[0][0].id, exc_info=error)
        return outcomes


class BatchCommit:
    """Hands outcomes to the store, and finds the one that the store cannot take.

    `update` asks the store directly; `instead` returns the failure that replaces an outcome. After `commit`, `left` has
    the outcomes that are still to be stored.
    """

    def __init__(
        self,
        update: Callable[[Sequence[Outcome]], object],
        instead: Callable[[Task, Exception], Task],
    ) -> None:
        self.left: Sequence[Outcome] = ()
        self._update = update
        self._instead = instead
        self._refusals = 0  # in a row

    def commit(self, outcomes: Sequence[Outcome], update: Update) -> None:
        """Store all outcomes with `update`. Raises what the store raises where no outcome is to blame."""
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
        """The store took another outcome after it refused this one. If it does so again, this one is to blame."""
        try:
            update([outcome])
        except Exception:
            self._require_store()
            self._fail(outcome[0], update, error)
        self._mark_stored([outcome])

    def _fail(self, task: Task, update: Update, error: Exception) -> None:
        try:
            update([(self._instead(task, error), ())])
        except Exception:
            self._require_store()
            log.exception("task %s: the store takes no outcome of it; its lease runs out", task.id)

    def _mark_stored(self, outcomes: Sequence[Outcome]) -> None:
        done = {(task.id, task.version) for task, _ in outcomes}
        self.left = [(task, planted) for task, planted in self.left if (task.id, task.version) not in done]

    def _require_store(self) -> None:
        """Raise where the store takes nothing, not even an outcome that changes nothing."""
        self._update([NO_OP])


class ErrorBackoff:
    """What keeps the loop from its work, and how long to wait for its end."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self.wait = 0.0  # seconds until the next try; 0 while all is well
        self.error: Exception | None = None  # of this turn
        self.words = ""  # what is wrong, until a turn is good again
        self._monotonic = monotonic
        self._since: float | None = None  # of what is not the store's to say
        self._told: dict[type, float] = {}  # when; inf: in this row of bad turns

    def begin_turn(self) -> None:
        self.error = None

    def note(self, error: Exception, what: str) -> None:
        """This turn is not a good one. Log the error if it is the first of its kind since the last good turn."""
        if self.error is None:
            self.wait = min(self.wait * 2 or MIN_BACKOFF, MAX_BACKOFF)
        self.error = error
        self.words = printable(describe(error))[:MAX_WORDS]
        if self._should_log(type(error)):
            log.error("%s: %s", what, error, exc_info=None if isinstance(error, StoreError) else error)
        if not isinstance(error, StoreError) and self._since is None:
            self._since = self._monotonic()

    def _should_log(self, kind: type) -> bool:
        """Return whether to log it: once in a row of bad turns, and once in LOG_INTERVAL seconds where good ones come
        between."""
        told, now = self._told.get(kind), self._monotonic()
        if told == inf or (told is not None and now - told < LOG_INTERVAL):
            return False
        self._told[kind] = inf
        return True

    def end_turn(self) -> None:
        """Where nothing failed, begin anew."""
        if self.error is None and self.wait:
            self.wait, self.words, self._since = 0.0, "", None
            self._told = {kind: min(told, self._monotonic()) for kind, told in self._told.items()}

    @property
    def is_exhausted(self) -> bool:
        """Return whether no turn was good for too long. A store that says it is away may take as long as it needs."""
        if self.error is None or isinstance(self.error, StoreError) or self._since is None:
            return False
        return self._monotonic() - self._since >= GIVE_UP_AFTER


class BestEffort:
    """Does what no task waits for: metrics, events, clean-up. What fails here is logged once and passed over."""

    def __init__(self) -> None:
        self._told: set[tuple[str, str]] = set()

    def run(self, what: str, action: Callable[..., object], *args: object) -> None:
        """Call the action. Raises StoreError alone."""
        try:
            action(*args)
        except StoreError:
            raise
        except Exception as error:
            key = what, type(error).__name__
            if key not in self._told and len(self._told) < MAX_REMEMBERED:
                self._told.add(key)
                log.exception("%s failed; the node goes on", what)
