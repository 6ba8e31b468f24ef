"""Task: one unit of work, and the pure transitions between its states.

    blocked ----> pending ----> processing ----> completed
                     ^            |  |  |
                     |            |  |  +------> failed ------+
                     |            |  +---------> cancelled ---+-- revive --> pending
                     +- retrying <+

A task never changes: a transition returns a new one, and touches nothing else. Time and chance are passed in, so that
the same arguments always give the same task. What may run when is decided here; that it happens once is the store's
business.
"""

from __future__ import annotations

import os
import re
from copy import copy
from enum import StrEnum
from itertools import count
from typing import Any, Literal, get_args

import msgspec
from msgspec.structs import force_setattr

from dtq.task import names

Backoff = Literal["exponential", "linear", "constant"]
OnParentFailure = Literal["fail", "run"]

DAY = 86400.0
MAX_INTERRUPTIONS = 3  # a task that was running when so many nodes died is suspected of killing them
MAX_CRASHES = 5  # a task that took so many workers down in a row is poison, however many attempts it may have
WORKER_DIED = "WorkerDied"  # the type of the error where that happened
PARENT_FAILED = "ParentFailed"  # the type of the error of a task that fell with one of its parents
UNREADABLE = "Unreadable"  # the type of the error of a task whose record in the store cannot be read
EXPIRED = "Expired"  # the type of the error of a task that was dropped at its deadline
_UNREADABLE = "unreadable: "  # how the doom of such a task begins
MAX_HISTORY = 20  # attempts kept with a task
_BACKOFFS, _ON_PARENT_FAILURE = get_args(Backoff), get_args(OnParentFailure)
_URL = re.compile(r"https?://[^\s/?#@\\]+([/?#]\S*)?", re.ASCII)
_counter = count()
_chance: list[str] = []  # 64 random bits each, fetched by the hundred
if hasattr(os, "register_at_fork"):  # not on Windows, where nothing is forked
    os.register_at_fork(after_in_child=_chance.clear)


class Status(StrEnum):
    """Where a task stands. `blocked` waits for other tasks, `retrying` failed and runs again at `run_at`."""

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
    """Why an attempt failed. `signal` or `exit_code` are set where the worker process died of it."""

    type: str
    message: str = ""
    traceback: str = ""
    signal: int | None = None
    exit_code: int | None = None

    def __str__(self) -> str:
        return f"{self.type}: {self.message}" if self.message else self.type


class Attempt(msgspec.Struct, frozen=True, omit_defaults=True):
    """One attempt that did not succeed: its number, when and where it ran (UTC seconds), and why it ended."""

    number: int
    started_at: float | None
    finished_at: float
    worker: str | None
    error: ErrorInfo


class Webhook(msgspec.Struct, frozen=True, omit_defaults=True):
    """Whom to tell when the task ends. `secret` is the name of a secret, never the secret itself."""

    url: str
    events: tuple[str, ...] = ("completed", "failed", "cancelled")
    secret: str | None = None


def new_id(now: float) -> str:
    """32 hex digits: 48 bits of milliseconds, 16 bits that count on, 64 random bits. Later ids sort later; none can be
    guessed."""
    return f"{int(now * 1000):012x}{next(_counter) & 0xFFFF:04x}{_by_chance()}"


def _by_chance() -> str:
    try:
        return _chance.pop()
    except IndexError:
        digits = os.urandom(8 * 256).hex()
        _chance.extend([digits[at : at + 16] for at in range(0, len(digits), 16)])
        return _by_chance()


class Task(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One unit of work: what to do (first half, never changes) and how far it is (second half).

    Times are UTC seconds since 1970, durations seconds. Raises InvalidTask where a field is out of its bounds; the
    error names the field, the value and what is allowed.
    """

    type: str  # which handler runs it
    payload: Any = None  # what the handler gets: plain JSON data
    id: str = ""  # given by the queue where it is empty
    queue: str = "default"
    priority: int = 0  # -1000 to 1000, higher first
    max_attempts: int = 3
    timeout: float = 30.0  # per attempt
    retry_delay: float = 1.0
    retry_backoff: Backoff = "exponential"
    retry_jitter: float = 0.0  # 0.2: each delay is up to 20 % shorter
    retry_cap: float = DAY  # no delay is longer
    key: str | None = None  # adding the same key again gives the task that has it
    limit_key: str = ""  # a tenant, say: keys share fairly, and may have limits of their own
    after: tuple[str, ...] = ()  # ids of the tasks that must end first
    on_parent_failure: OnParentFailure = "fail"
    expires: float | None = None  # not started by then: dropped
    webhook: Webhook | None = None  # whom to tell when it ends

    status: Status = Status.PENDING
    version: int = 0  # grows with every change in the store: the fencing token
    run_at: float = 0.0  # not before
    created_at: float = 0.0
    started_at: float | None = None  # of the latest attempt
    finished_at: float | None = None
    attempts: int = 0  # attempts begun
    interruptions: int = 0  # nodes that died under it
    worker: str | None = None  # who has it, or had it last
    lease_until: float | None = None
    doom: str | None = None  # came out of `claim` not to be run but to be ended, for this reason
    progress: float = 0.0  # percent
    note: str = ""  # what the handler said with its progress
    result: Any = None
    error: ErrorInfo | None = None
    history: tuple[Attempt, ...] = ()
    log: str = ""  # the last of what the handler printed

    def __post_init__(self) -> None:
        if self.version == 0:  # what came out of a store was checked when it went in
            check(self)

    @property
    def is_terminal(self) -> bool:
        return self.status in TERMINAL

    @property
    def lane(self) -> tuple[str, str, str]:
        return self.queue, self.type, self.limit_key


# What transitions may change. All else is what the task is, and stays as it was added.
STATE = (
    "status", "priority", "expires", "run_at", "started_at", "finished_at", "attempts", "interruptions", "worker",
    "lease_until", "doom", "progress", "note", "result", "error", "history", "log",
)  # fmt: skip


# --- what is allowed ------------------------------------------------------------------------------------------------


def check(task: Task) -> None:
    """Raises InvalidTask where a field is of the wrong type or out of its bounds."""
    names.check("type", task.type)
    names.check("queue", task.queue)
    if task.id != "":
        names.check_id("id", task.id)
    _check_number("priority", task.priority, -1000, 1000, whole=True)
    _check_number("max_attempts", task.max_attempts, 1, 1000, whole=True)
    _check_number("timeout", task.timeout, 0.001, 30 * DAY)
    _check_number("retry_delay", task.retry_delay, 0, 30 * DAY)
    _check_number("retry_jitter", task.retry_jitter, 0, 1)
    _check_number("retry_cap", task.retry_cap, 0, 30 * DAY)
    _check_number("run_at", task.run_at, 0, 1e11)
    if task.expires is not None:
        _check_number("expires", task.expires, 0, 1e11)
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
            names.refuse("id", task.id, "up to 160 characters, where the task has a webhook")


def _check_webhook(webhook: Webhook) -> None:
    if not isinstance(webhook, Webhook):
        names.refuse("webhook", webhook, "a Webhook")
    if not isinstance(webhook.url, str) or not _URL.fullmatch(webhook.url) or len(webhook.url) > 2000:
        names.refuse("url of the webhook", webhook.url, "https://host/path, without a user or password in it")
    if not webhook.events or not set(webhook.events) <= TERMINAL:
        names.refuse("events of the webhook", webhook.events, "some of completed, failed, cancelled")
    if webhook.secret is not None:
        names.check_id("secret of the webhook", webhook.secret)


def _check_number(field: str, value: object, low: float, high: float, whole: bool = False) -> None:
    kinds = int if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:
        names.refuse(field, value, f"{'a whole number' if whole else 'a number'} from {low:,} to {high:,}")


def _check_choice(field: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        names.refuse(field, value, "one of " + ", ".join(map(repr, allowed)))


def entering(task: Task, now: float, payload: Any) -> Task:
    """A new task as a store gets it: with an id and its times. (A copy, since it was checked when it was made, and
    nothing here can be out of its bounds.)"""
    entered = copy(task)
    force_setattr(entered, "id", task.id or new_id(now))
    force_setattr(entered, "created_at", now)
    force_setattr(entered, "run_at", task.run_at or now)
    force_setattr(entered, "payload", payload)
    return entered
