"""Task: one unit of work, its states, and the checks of its fields.

    blocked ----> pending ----> processing ----> completed
                     ^            |  |  |
                     |            |  |  +------> failed ------+
                     |            |  +---------> cancelled ---+-- revive --> pending
                     +- retrying <+

A task never changes: a transition (transitions.py) returns a new one. The transitions decide what may happen to a task;
the store makes sure that it happens once.
"""

from __future__ import annotations

import os
import re
from copy import copy
from enum import StrEnum
from itertools import count
from operator import attrgetter
from typing import Any, ClassVar, Literal, get_args

import msgspec
from msgspec.structs import force_setattr

from dtq.task import names
from dtq.task.codec import from_json

Backoff = Literal["exponential", "linear", "constant"]
OnParentFailure = Literal["fail", "run"]

DAY = 86400.0
MAX_INTERRUPTIONS = 3  # a task that was running when this many nodes died is given up: it may have killed them
MAX_CRASHES = 5  # a task that killed this many workers in a row is given up, whatever its max_attempts
MAX_HISTORY = 20  # attempts kept with a task
# The types of errors that dtq itself sets:
WORKER_DIED = "WorkerDied"  # the worker process died during the attempt
PARENT_FAILED = "ParentFailed"  # a parent failed, so the task did not run
UNREADABLE = "Unreadable"  # the record of the task in the store cannot be read
EXPIRED = "Expired"  # the task had not started by its deadline
UNREADABLE_DOOM = "unreadable: "  # the beginning of the doom of a task whose record cannot be read
_BACKOFFS, _ON_PARENT_FAILURE = get_args(Backoff), get_args(OnParentFailure)
_URL = re.compile(r"https?://[^\s/?#@\\]+([/?#]\S*)?", re.ASCII)
_counter = count()
_random_digits: list[str] = []  # 64 random bits each, fetched 256 at a time
if hasattr(os, "register_at_fork"):  # missing on Windows, which cannot fork
    os.register_at_fork(after_in_child=_random_digits.clear)


class Status(StrEnum):
    """The state of a task. A `blocked` task waits for its parents, a `retrying` one for its next attempt."""

    BLOCKED = "blocked"
    PENDING = "pending"
    PROCESSING = "processing"
    RETRYING = "retrying"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


WAITING = frozenset({Status.BLOCKED, Status.PENDING, Status.RETRYING})
TERMINAL = frozenset({Status.COMPLETED, Status.FAILED, Status.CANCELLED})
PROCESSING = Status.PROCESSING  # for what runs once a task: the look into the enumeration takes longer than to compare


class ErrorInfo(msgspec.Struct, frozen=True, omit_defaults=True):
    """Why an attempt failed, or a task ended without a result."""

    type: str  # the name of the exception's class, or one that dtq sets, such as "WorkerDied"
    message: str = ""  # the exception as text
    traceback: str = ""  # as Python prints it; "" where no handler raised
    signal: int | None = None  # the signal that killed the worker process
    exit_code: int | None = None  # of the worker process, where it exited

    def __str__(self) -> str:
        return f"{self.type}: {self.message}" if self.message else self.type


class Attempt(msgspec.Struct, frozen=True, omit_defaults=True):
    """One attempt that did not succeed: its number (1, 2, ...), times in UTC seconds, worker and error."""

    number: int
    started_at: float | None
    finished_at: float
    worker: str | None
    error: ErrorInfo


class Webhook(msgspec.Struct, frozen=True, omit_defaults=True):
    """A request to send when the task ends."""

    url: str  # receives a POST; http or https, without a user or password
    events: tuple[str, ...] = ("completed", "failed", "cancelled")  # the statuses to report
    secret: str | None = None  # the name of the secret that signs the request, never the secret itself


def new_id(now: float) -> str:
    """Return a new id: 32 hex digits for 48 bits of milliseconds, a 16-bit counter, and 64 random bits.

    Later ids sort later, and no id can be guessed. `now` is in UTC seconds.
    """
    return f"{int(now * 1000):012x}{next(_counter) & 0xFFFF:04x}{_random_part()}"


def _random_part() -> str:
    try:
        return _random_digits.pop()
    except IndexError:
        digits = os.urandom(8 * 256).hex()
        _random_digits.extend([digits[at : at + 16] for at in range(0, len(digits), 16)])
        return _random_part()


class Task(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One unit of work. The first fields are the request and never change; those from `status` on are its state.

    Times are UTC seconds since 1970, durations are seconds. Raises InvalidTask where a field is out of bounds; the
    error names the field, the value and what is allowed.
    """

    type: str  # the handler that runs it
    payload: Any = None  # plain JSON data for the handler
    id: str = ""  # the queue sets it where it is empty
    queue: str = "default"  # the name of its queue: workers can serve some queues only
    priority: int = 0  # -1000 to 1000, higher first
    max_attempts: int = 3  # attempts before the task fails
    timeout: float = 30.0  # seconds for one attempt
    retry_delay: float = 1.0  # seconds between the first two attempts
    retry_backoff: Backoff = "exponential"  # how later delays grow: see transitions.backoff
    retry_jitter: float = 0.0  # 0.2: each delay is up to 20 % shorter
    retry_cap: float = DAY  # the longest delay, in seconds
    key: str | None = None  # adding a task with the key of another returns that task
    limit_key: str = ""  # for example a tenant: keys share workers fairly, and each may have its own limits
    after: tuple[str, ...] = ()  # ids of its parents, which must end first
    on_parent_failure: OnParentFailure = "fail"  # "run" it, or "fail" it, when a parent does not complete
    expires: float | None = None  # the task is cancelled if it has not started by then
    webhook: Webhook | None = None  # a request to send when it ends

    status: Status = Status.PENDING  # its state
    version: int = 0  # grows with every change in the store: the fencing token
    run_at: float = 0.0  # the task does not start before
    created_at: float = 0.0  # when it was added
    started_at: float | None = None  # when the latest attempt started
    finished_at: float | None = None  # when it ended
    attempts: int = 0  # attempts started
    interruptions: int = 0  # nodes that died while they had the task
    worker: str | None = None  # the node that has it, or had it last
    lease_until: float | None = None  # other nodes may take it over after this time
    doom: str | None = None  # why the task must be ended instead of run, once it is claimed
    progress: float = 0.0  # percent
    note: str = ""  # text that the handler sent with its progress
    result: Any = None  # what the handler returned: plain JSON data
    error: ErrorInfo | None = None  # of the latest attempt that failed, or why the task was cancelled
    history: tuple[Attempt, ...] = ()  # the attempts that did not succeed, oldest first
    log: str = ""  # the end of what the handler printed

    raw_payload: ClassVar[Any]  # the payload and the result as they are kept: JSON (msgspec.Raw), or plain data where
    raw_result: ClassVar[Any]  # they were given as such, or were decoded on first access

    def __post_init__(self) -> None:
        if self.version == 0:  # a task from a store was checked when it was added
            check(self)

    def __eq__(self, other: object) -> bool:
        return _values(self) == _values(other) if isinstance(other, Task) else NotImplemented

    def __hash__(self) -> int:
        return hash((self.id, self.version))

    def __repr__(self) -> str:
        _values(self)  # decodes the payload and the result
        return super().__repr__()

    @property
    def is_terminal(self) -> bool:
        """Whether it has ended: completed, failed or cancelled."""
        return self.status in TERMINAL

    @property
    def lane(self) -> tuple[str, str, str]:
        """Its queue, type and limit key: tasks of one lane run in order of priority and due time."""
        return self.queue, self.type, self.limit_key


class JsonField:
    """A field of a struct whose value is kept as JSON (msgspec.Raw), and shown as plain data.

    The first look decodes the JSON, and the struct keeps the data instead. Copies that were made before still have the
    JSON: a change in the data of one task does not appear in another.
    """

    def __init__(self, slot: Any) -> None:
        self._slot = slot

    def __get__(self, struct: msgspec.Struct | None, kind: type[msgspec.Struct]) -> Any:
        if struct is None:
            return self
        value = self._slot.__get__(struct)
        if type(value) is msgspec.Raw:
            value = from_json(value)
            self._slot.__set__(struct, value)
        return value

    def __set__(self, struct: msgspec.Struct, value: Any) -> None:  # for force_setattr
        self._slot.__set__(struct, value)


def keep_json(kind: type[msgspec.Struct], *fields: str) -> None:
    """Make each of these fields of a struct a JsonField, and `raw_` with its name what the struct keeps."""
    for field in fields:
        slot = getattr(kind, field)
        setattr(kind, f"raw_{field}", slot)
        setattr(kind, field, JsonField(slot))


keep_json(Task, "payload", "result")
_values = attrgetter(*Task.__struct_fields__)

# The fields that transitions may change. All others stay as the task was added.
STATE = (
    "status", "priority", "expires", "run_at", "started_at", "finished_at", "attempts", "interruptions", "worker",
    "lease_until", "doom", "progress", "note", "result", "error", "history", "log",
)  # fmt: skip
state_of = attrgetter(*("raw_result" if name == "result" else name for name in STATE))  # their values, not decoded


# --- what is allowed ------------------------------------------------------------------------------------------------


def check(task: Task) -> None:
    """Raise InvalidTask where a field has the wrong type or is out of bounds."""
    names.check("type", task.type)
    names.check("queue", task.queue)
    if task.id != "":
        names.check_id("id", task.id)
    check_number("priority", task.priority, -1000, 1000, whole=True)
    check_number("max_attempts", task.max_attempts, 1, 1000, whole=True)
    check_number("timeout", task.timeout, 0.001, 30 * DAY)
    check_number("retry_delay", task.retry_delay, 0, 30 * DAY)
    check_number("retry_jitter", task.retry_jitter, 0, 1)
    check_number("retry_cap", task.retry_cap, 0, 30 * DAY)
    check_number("run_at", task.run_at, 0, 1e11)
    if task.expires is not None:
        check_number("expires", task.expires, 0, 1e11)
    _check_choice("retry_backoff", task.retry_backoff, _BACKOFFS)
    _check_choice("on_parent_failure", task.on_parent_failure, _ON_PARENT_FAILURE)
    if task.key is not None:
        names.check_text("key", task.key, 1)
    if task.limit_key != "":
        names.check_text("limit_key", task.limit_key, 0)
    if task.after != () and not (isinstance(task.after, tuple) and all(isinstance(i, str) for i in task.after)):
        names.refuse("after", task.after, "a tuple of task ids")
    if task.webhook is not None:
        _check_webhook(task.webhook)
        if len(task.id) > 160:
            names.refuse("id", task.id, "up to 160 characters, if the task has a webhook")


def _check_webhook(webhook: Webhook) -> None:
    if not isinstance(webhook, Webhook):
        names.refuse("webhook", webhook, "a Webhook")
    if not isinstance(webhook.url, str) or not _URL.fullmatch(webhook.url) or len(webhook.url) > 2000:
        names.refuse("url of the webhook", webhook.url, "https://host/path, without a user or password in it")
    if not webhook.events or not set(webhook.events) <= TERMINAL:
        names.refuse("events of the webhook", webhook.events, "some of completed, failed, cancelled")
    if webhook.secret is not None:
        names.check_id("secret of the webhook", webhook.secret)


def check_number(field: str, value: object, low: float, high: float, whole: bool = False) -> None:
    """Raise InvalidTask where the value is no number (no whole number, if `whole`) from `low` to `high`."""
    kinds = int if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:
        names.refuse(field, value, f"{'a whole number' if whole else 'a number'} from {low:,} to {high:,}")


def _check_choice(field: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        names.refuse(field, value, "one of " + ", ".join(map(repr, allowed)))


def entering(task: Task, now: float, payload: Any) -> Task:
    """Return a new task as it enters a store: with an id, its times and this payload.

    A copy skips the checks: the task was checked when it was made, and nothing set here can be out of bounds.
    """
    entered = copy(task)
    force_setattr(entered, "id", task.id or new_id(now))
    force_setattr(entered, "created_at", now)
    force_setattr(entered, "run_at", task.run_at or now)
    force_setattr(entered, "raw_payload", payload)
    return entered
