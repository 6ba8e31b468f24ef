"""dtq: a distributed task queue to run, and to learn from."""

from dtq.errors import (
    Discard,
    DTQError,
    HandlerError,
    IllegalTransition,
    InvalidTask,
    QueueFull,
    Retry,
    StoreError,
    TaskCancelled,
    TaskFailed,
    UnknownTask,
    UnknownType,
)
from dtq.events import Event
from dtq.handle import Handle
from dtq.manager import QueueManager
from dtq.pool import WorkerPool
from dtq.queue import TaskQueue
from dtq.staff import Pool
from dtq.stores import Stats, Store, open_store
from dtq.task import ErrorInfo, Status, Task, Webhook

__version__ = "0.1.0"
__all__ = [
    "DTQError",
    "Discard",
    "ErrorInfo",
    "Event",
    "Handle",
    "HandlerError",
    "IllegalTransition",
    "InvalidTask",
    "Pool",
    "QueueFull",
    "QueueManager",
    "Retry",
    "Stats",
    "Status",
    "Store",
    "StoreError",
    "Task",
    "TaskCancelled",
    "TaskFailed",
    "TaskQueue",
    "UnknownTask",
    "UnknownType",
    "Webhook",
    "WorkerPool",
    "open_store",
]
