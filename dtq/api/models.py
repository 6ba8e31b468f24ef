"""What comes in and goes out as JSON, as msgspec structs: the OpenAPI document is made of them.

request body --decode, strictly--> NewTask --to_task--> Task      errors name the field and the reason
Task, Stats  --------------------> TaskSummary, StatsView --> response
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta
from msgspec.structs import asdict

from dtq.limits import Limit
from dtq.stores import Counts, Node, Stats
from dtq.task import DAY, Backoff, ErrorInfo, OnParentFailure, Status, Task, new_id

MIB = 1 << 20
MAX_BATCH = 1000  # tasks in one request
MAX_DEPTH = 64  # arrays and objects within each other, in a payload
NAME = r"^[A-Za-z0-9_][A-Za-z0-9_.:@/-]{0,199}$"
LONGEST_ERROR = 500  # characters of an error's message in a list

Name = Annotated[str, Meta(pattern=NAME, min_length=1, max_length=200)]
Text = Annotated[str, Meta(pattern="^[ -~]+$", min_length=1, max_length=200)]
Tenant = Annotated[str, Meta(pattern="^[ -~]*$", max_length=200, description="a tenant, say: tenants take turns")]
Moment = Annotated[float, Meta(ge=0, le=1e11, description="UTC seconds since 1970")]
Ahead = Annotated[float, Meta(ge=0, le=1e10)]
Span = Annotated[float, Meta(ge=0, le=30 * DAY, description="seconds")]


class NewTask(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A task to add: what `TaskQueue.add` takes."""

    type: Annotated[Name, Meta(description="which handler runs it")]
    payload: Annotated[Any, Meta(description="what the handler gets: any JSON")] = None
    id: Annotated[Name | None, Meta(description="given by the queue where it is missing")] = None
    queue: Name = "default"
    priority: Annotated[int, Meta(ge=-1000, le=1000, description="higher first")] = 0
    max_attempts: Annotated[int, Meta(ge=1, le=1000)] = 3
    timeout: Annotated[float, Meta(ge=0.001, le=30 * DAY, description="seconds for each attempt")] = 30.0
    retry_delay: Span = 1.0
    retry_backoff: Backoff = "exponential"
    retry_jitter: Annotated[float, Meta(ge=0, le=1, description="0.2: delays are up to 20 % shorter")] = 0.0
    retry_cap: Span = DAY
    key: Annotated[Text | None, Meta(description="at most one task has it; adding again gives that one")] = None
    limit_key: Tenant = ""
    after: Annotated[list[Name], Meta(max_length=1000, description="ids of tasks that must end first")] = []
    on_parent_failure: OnParentFailure = "fail"
    delay: Annotated[Ahead | None, Meta(description="seconds from now; or give run_at")] = None
    run_at: Annotated[Moment | None, Meta(description="not before; UTC seconds")] = None
    expires_in: Annotated[Ahead | None, Meta(description="seconds from now; or give expires")] = None
    expires: Annotated[Moment | None, Meta(description="not started by then: cancelled; UTC seconds")] = None


Batch = Annotated[list[NewTask], Meta(min_length=1, max_length=MAX_BATCH)]
Body = NewTask | Batch
_decode = msgspec.json.Decoder(Body).decode
_WHOLE = ("priority", "max_attempts")


class Accepted(msgspec.Struct, frozen=True):
    """The task that stands for one that was to be added; `created` is false where its id or key was taken."""

    id: str
    created: bool


class Reason(msgspec.Struct, frozen=True):
    """What is wrong with one field."""

    field: str
    reason: str


class Problem(msgspec.Struct, frozen=True, omit_defaults=True):
    """Why a request was not done (RFC 9457, application/problem+json)."""

    title: str
    status: int
    detail: str = ""
    errors: list[Reason] = []
    type: str = "about:blank"


class TaskSummary(msgspec.Struct, frozen=True):
    """A task without what may be large: its payload, result, history and log."""

    id: str
    type: str
    queue: str
    status: Status
    priority: int
    attempts: int
    max_attempts: int
    progress: float
    note: str
    run_at: float
    created_at: float
    started_at: float | None
    finished_at: float | None
    worker: str | None
    error: ErrorInfo | None

    @classmethod
    def of(cls, task: Task) -> TaskSummary:
        fields = {name: getattr(task, name) for name in cls.__struct_fields__ if name != "error"}
        return cls(**fields, error=task.error and _short(task.error))


class TaskPage(msgspec.Struct, frozen=True):
    """Some tasks in the order of their ids, and where those behind them are, relative to this page's address."""

    tasks: list[TaskSummary]
    next: str | None


class NodeView(msgspec.Struct, frozen=True):
    """A process that runs tasks; `alive` is false for one of this machine that is gone and was not yet missed."""

    id: str
    host: str
    pid: int
    started_at: float
    seen_at: float
    workers: int
    busy: int
    types: tuple[str, ...]
    metrics: dict[str, Any]
    alive: bool


class WorkersView(msgspec.Struct, frozen=True):
    """Workers of the nodes that are alive."""

    total: int
    active: int
    idle: int


class StatsView(msgspec.Struct, frozen=True):
    """What is in the queue at this moment (`at`, UTC seconds)."""

    at: float
    counts: Counts
    queues: dict[str, Counts]
    types: dict[str, Counts]
    unfinished: int
    oldest: float | None
    workers: WorkersView
    nodes: list[NodeView]
    limits: list[Limit]

    @classmethod
    def of(cls, stats: Stats) -> StatsView:
        nodes = [NodeView(**asdict(node), alive=is_alive(node)) for node in stats.nodes]
        total, active = (sum(getattr(n, name) for n in nodes if n.alive) for name in ("workers", "busy"))
        return cls(
            time.time(), stats.counts, stats.queues, stats.types, stats.unfinished, stats.oldest,
            WorkersView(total, active, total - active), nodes, stats.limits,
        )  # fmt: skip


class Health(msgspec.Struct, frozen=True):
    """Whether something can be relied upon, and if not, why."""

    healthy: bool
    detail: str


class QueueView(msgspec.Struct, frozen=True):
    """A queue, how many of its tasks are where, and whether it is paused."""

    queue: str
    paused: bool
    counts: Counts


# --- in -------------------------------------------------------------------------------------------------------------


def decode_body(content: bytes) -> NewTask | list[NewTask]:
    """The task, or tasks, of a body. Raises msgspec.DecodeError, or its child ValidationError, which names the
    field."""
    try:
        return _decode(content)  # type: ignore[no-any-return]
    except msgspec.ValidationError as error:
        if "got `float`" not in str(error):
            raise
    plain = msgspec.json.decode(content)  # to JSON, 3.0 is as whole a number as 3
    for one in plain if isinstance(plain, list) else [plain]:
        for name in _WHOLE:
            if isinstance(one, dict) and isinstance(value := one.get(name), float) and value.is_integer():
                one[name] = int(value)
    return msgspec.convert(plain, Body)  # type: ignore[no-any-return]


def to_task(new: NewTask, now: float, key: str | None) -> Task:
    """The task that this describes. Raises InvalidTask, as Task does, where a field is out of its bounds."""
    fields = {name: getattr(new, name) for name in _SAME}
    return Task(
        **fields,
        id=new.id or new_id(now),
        key=key or new.key,
        after=tuple(new.after),
        run_at=now + new.delay if new.delay is not None else new.run_at or now,
        expires=now + new.expires_in if new.expires_in is not None else new.expires,
    )


_SAME = tuple(name for name in NewTask.__struct_fields__ if name in Task.__struct_fields__ and name not in (
    "id", "key", "after", "run_at", "expires",
))  # fmt: skip


def is_same(wanted: Task, stored: Task) -> bool:
    """Whether the stored task was asked for by the same request: all that never changes is equal."""
    return all(getattr(wanted, name) == getattr(stored, name) for name in (*_SAME, "after") if name != "priority")


def is_too_deep(value: Any, limit: int = MAX_DEPTH) -> bool:
    """Whether there are more than `limit` arrays and objects within each other."""
    level = [value]
    for _ in range(limit):
        level = [child for parent in level for child in _children(parent)]
        if not level:
            return False
    return any(isinstance(value, (dict, list)) for value in level)


def _children(value: Any) -> Sequence[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else ()


# --- out ------------------------------------------------------------------------------------------------------------


def _short(error: ErrorInfo) -> ErrorInfo:
    return msgspec.structs.replace(error, message=error.message[:LONGEST_ERROR], traceback="")


def is_alive(node: Node) -> bool:
    """False where the node's process was on this machine and is gone (a store may not have missed it yet)."""
    if node.host != socket.gethostname() or node.pid <= 0:
        return True
    try:
        os.kill(node.pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # of another user
    return True
