"""dtq: a distributed task queue to run, and to learn from.

    import dtq             loads nothing else
    dtq.TaskQueue          loads the module that defines TaskQueue, when the name is first used

Workers, short commands and Monitor or APIServer, which need extras, each load only what they use (PEP 562).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

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

_MODULE_OF = {  # where each public name is defined
    "APIServer": "dtq.api.server",
    "DTQError": "dtq.errors",
    "Discard": "dtq.errors",
    "DuplicateTask": "dtq.errors",
    "ErrorInfo": "dtq.task.model",
    "Event": "dtq.queue.events",
    "Flow": "dtq.queue.flow",
    "Graph": "dtq.task.graph",
    "Handle": "dtq.queue.handle",
    "HandlerError": "dtq.errors",
    "IllegalTransition": "dtq.errors",
    "InvalidTask": "dtq.errors",
    "Limit": "dtq.policy.limits",
    "Monitor": "dtq.monitor.monitor",
    "Pool": "dtq.workers.groups",
    "QueueFull": "dtq.errors",
    "QueueManager": "dtq.queue.manager",
    "Retry": "dtq.errors",
    "Schedule": "dtq.policy.cron",
    "Stats": "dtq.stores.protocol",
    "Status": "dtq.task.model",
    "Store": "dtq.stores.protocol",
    "StoreError": "dtq.errors",
    "Task": "dtq.task.model",
    "TaskCancelled": "dtq.errors",
    "TaskFailed": "dtq.errors",
    "TaskQueue": "dtq.queue.task_queue",
    "UnknownSchedule": "dtq.errors",
    "UnknownTask": "dtq.errors",
    "UnknownType": "dtq.errors",
    "Webhook": "dtq.task.model",
    "WorkerPool": "dtq.workers.process.pool",
    "chain": "dtq.task.graph",
    "chord": "dtq.task.graph",
    "group": "dtq.task.graph",
    "open_store": "dtq.stores.open",
    "step": "dtq.task.graph",
}

if TYPE_CHECKING:  # the same table for type checkers and editors, which do not run __getattr__
    from dtq.api.server import APIServer
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
    from dtq.monitor.monitor import Monitor
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
else:

    def __getattr__(name: str) -> Any:
        """Load the module that defines a public name, when the name is first used. Raise AttributeError for others."""
        if name not in _MODULE_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(_MODULE_OF[name]), name)  # the next use finds it here
        return value


def __dir__() -> list[str]:
    """Return the public names too, whether loaded or not."""
    return sorted({*globals(), *__all__})
