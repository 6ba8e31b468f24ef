"""Deliveries: which task ends lead to a webhook, and what it contains. Pure policy; handler.py and delivery.py send it.

    task with webhook= --ends--> its outcome plants a delivery, a task of the type "dtq.webhook"
                                 {"url", "secret": its name, "body"}  --WebhookHandler--> POST

A delivery is an ordinary task with the queue, priority and limit key of the task that ended. It is retried for about a
day; if the receiver never accepts it, it fails and can be redriven. A delivery cannot itself have a webhook. Its id is
the `webhook-id`, the same at every attempt, so that the receiver can recognise repeats.

A user who could add deliveries could have any message signed. Therefore their type and their form of id are reserved
(dtq.task.names), and the loop dispatches only genuine deliveries.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from dtq.task.model import ErrorInfo, Task
from dtq.task.transitions import fail

TYPE = "dtq.webhook"
MAX_ATTEMPTS = 15  # with these delays, 5, 10, 20, 40 s ... 4 h, about a day in total
RETRY_DELAY = 5.0
RETRY_CAP = 4 * 3600.0
RETRY_JITTER = 0.2
TIMEOUT = 30.0

Outcome = tuple[Task, Sequence[Task]]


def with_deliveries(outcomes: Sequence[Outcome], now: float) -> Sequence[Outcome]:
    """Return the outcomes with the deliveries that they plant."""
    return [(task, (*successors, *deliveries(task, now))) for task, successors in outcomes]


def deliveries(task: Task, now: float) -> tuple[Task, ...]:
    """Return the delivery that the end of this task plants; none if it has not ended or wants no webhook for its
    status."""
    if task.webhook is None or not task.is_terminal or task.status not in task.webhook.events:
        return ()
    payload = {"url": task.webhook.url, "secret": task.webhook.secret, "body": body(task, now)}
    return (
        Task(
            type=TYPE, id=f"{task.id}:webhook-{task.version}", payload=payload, queue=task.queue,
            priority=task.priority, limit_key=task.limit_key, max_attempts=MAX_ATTEMPTS, timeout=TIMEOUT,
            retry_delay=RETRY_DELAY, retry_cap=RETRY_CAP, retry_jitter=RETRY_JITTER, created_at=now, run_at=now,
        ),
    )  # fmt: skip


def is_genuine(delivery: Task) -> bool:
    """Return whether `deliveries` made this task. A user cannot forge one: its body would have to predict, to the
    microsecond, when the task is created."""
    match delivery.payload:
        case {"url": str(), "secret": _, "body": {"timestamp": timestamp, "data": {"id": str(ended)}}}:
            form = re.escape(ended) + r":webhook-\d+"
            return timestamp == _iso(delivery.created_at) and re.fullmatch(form, delivery.id) is not None
    return False


def refuse(delivery: Task, now: float) -> Task:
    """Fail a claimed delivery that is not genuine, so that nothing is signed for it."""
    error = ErrorInfo("Forged", "no end of a task planted this delivery: it is neither signed nor sent")
    return fail(delivery, error, now, lambda: 0.0, final=True)


def body(task: Task, now: float) -> dict[str, Any]:
    """Return the body of the request, in the form that Standard Webhooks recommends. The task's payload is left out: it
    may have data that the receiver must not see."""
    error = None if task.error is None else {"type": task.error.type, "message": task.error.message}
    data = {
        "id": task.id, "type": task.type, "queue": task.queue, "status": str(task.status), "attempts": task.attempts,
        "created_at": _iso(task.created_at), "finished_at": _iso(task.finished_at), "result": task.result,
        "error": error,
    }  # fmt: skip
    return {"type": f"task.{task.status}", "timestamp": _iso(now), "data": data}


def _iso(at: float | None) -> str | None:
    return None if at is None else f"{datetime.fromtimestamp(at, UTC):%Y-%m-%dT%H:%M:%S.%f}Z"
