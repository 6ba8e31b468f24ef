"""Responses: the JSON that routes return, as msgspec structs. The OpenAPI document is made of them.

Task, Stats, Schedule --> TaskSummary, StatsView, ScheduleView --> response
"""

from __future__ import annotations

import os
import socket
import time

import msgspec
from msgspec.structs import asdict

from dtq.policy.cron import Schedule
from dtq.policy.limits import Limit
from dtq.stores.protocol import Counts, Node, Stats
from dtq.task.model import ErrorInfo, Status, Task

MAX_ERROR_LENGTH = 500  # characters of an error's message in lists


class Redriven(msgspec.Struct, frozen=True):
    """The ids of the tasks that were started again."""

    ids: list[str]


class Removed(msgspec.Struct, frozen=True):
    """How many tasks were removed."""

    removed: int


class Accepted(msgspec.Struct, frozen=True):
    """The id of the task. `created` is false if a task with this id or key already existed: then it is that one."""

    id: str
    created: bool


class Reason(msgspec.Struct, frozen=True):
    """A field and what is wrong with it."""

    field: str
    reason: str


class Problem(msgspec.Struct, frozen=True, omit_defaults=True):
    """Why a request was rejected or failed (RFC 9457, application/problem+json)."""

    title: str
    status: int
    detail: str = ""
    errors: list[Reason] = []
    type: str = "about:blank"


class TaskSummary(msgspec.Struct, frozen=True):
    """A task without the fields that may be large: payload, result, history and log."""

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
    """Some tasks in the order of their ids, and the address of the next page, relative to this one."""

    tasks: list[TaskSummary]
    next: str | None


class NodeView(Node, frozen=True, kw_only=True, omit_defaults=False):
    """A process that runs tasks. `alive` is false if it ran on this machine and has ended while its lease lasts."""

    alive: bool


class WorkersView(msgspec.Struct, frozen=True):
    """The workers of all nodes that are alive."""

    total: int
    active: int
    idle: int


class StatsView(msgspec.Struct, frozen=True):
    """The state of the queue at one moment (`at`, UTC seconds)."""

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
    """Whether the server or the queue is healthy, and details."""

    healthy: bool
    detail: str


class QueueView(msgspec.Struct, frozen=True):
    """A queue, whether it is paused, and the number of its tasks by status."""

    queue: str
    paused: bool
    counts: Counts


class ScheduleView(msgspec.Struct, frozen=True):
    """A schedule and its next ticks (UTC seconds); none while it is paused."""

    schedule: Schedule
    upcoming: list[float]


def _short(error: ErrorInfo) -> ErrorInfo:
    return msgspec.structs.replace(error, message=error.message[:MAX_ERROR_LENGTH], traceback="")


def is_alive(node: Node) -> bool:
    """Return False if the node's process ran on this machine and has ended, which the store may not know yet."""
    if node.host != socket.gethostname() or node.pid <= 0:
        return True
    try:
        os.kill(node.pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # it belongs to another user
    return True
