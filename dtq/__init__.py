"""dtq: a distributed task queue to run, and to learn from."""

from typing import TYPE_CHECKING, Any

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
from dtq.policy.cron import Schedule
from dtq.policy.limits import Limit
from dtq.queue.events import Event
from dtq.queue.flow import Flow
from dtq.queue.handle import Handle
from dtq.queue.manager import QueueManager
from dtq.queue.task_queue import TaskQueue
from dtq.stores.open import open_store
from dtq.stores.protocol import Stats, Store
from dtq.task.graph import Graph, chain, chord, group, step
from dtq.task.model import ErrorInfo, Status, Task, Webhook
from dtq.workers.groups import Pool
from dtq.workers.process.pool import WorkerPool

if TYPE_CHECKING:
    from dtq.api.server import APIServer
    from dtq.monitor.monitor import Monitor

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
        from dtq.api.server import APIServer

        return APIServer
    if name == "Monitor":
        from dtq.monitor.monitor import Monitor

        return Monitor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
