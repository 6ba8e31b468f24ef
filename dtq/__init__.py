"""dtq: a distributed task queue to run, and to learn from."""

from typing import TYPE_CHECKING, Any

from dtq.cron import Schedule
from dtq.errors import (
    Discard,
    DTQError,
    DuplicateTask,
    HandlerError,
    IllegalTransition,
    InvalidTask,
    QueueFull,
    Retry,
    StoreError,
    TaskCancelled,
    TaskFailed,
    UnknownSchedule,
    UnknownTask,
    UnknownType,
)
from dtq.events import Event
from dtq.flow import Flow
from dtq.graph import Graph, chain, chord, group, step
from dtq.handle import Handle
from dtq.limits import Limit
from dtq.manager import QueueManager
from dtq.pool import WorkerPool
from dtq.queue import TaskQueue
from dtq.staff import Pool
from dtq.stores import Stats, Store, open_store
from dtq.task import ErrorInfo, Status, Task, Webhook

if TYPE_CHECKING:
    from dtq.api import APIServer
    from dtq.monitor import Monitor

__version__ = "0.1.0"
__all__ = [
    "APIServer",
    "DTQError",
    "Discard",
    "DuplicateTask",
    "ErrorInfo",
    "Event",
    "Flow",
    "Graph",
    "Handle",
    "HandlerError",
    "IllegalTransition",
    "InvalidTask",
    "Limit",
    "Monitor",
    "Pool",
    "QueueFull",
    "QueueManager",
    "Retry",
    "Schedule",
    "Stats",
    "Status",
    "Store",
    "StoreError",
    "Task",
    "TaskCancelled",
    "TaskFailed",
    "TaskQueue",
    "UnknownSchedule",
    "UnknownTask",
    "UnknownType",
    "Webhook",
    "WorkerPool",
    "chain",
    "chord",
    "group",
    "open_store",
    "step",
]


def __getattr__(name: str) -> Any:
    """What needs an extra, and more time than all the rest, is loaded when it is asked for."""
    if name == "APIServer":
        from dtq.api import APIServer

        return APIServer
    if name == "Monitor":
        from dtq.monitor import Monitor

        return Monitor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
