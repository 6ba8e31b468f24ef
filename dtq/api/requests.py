"""What comes in as JSON, as msgspec structs: the OpenAPI document is made of them.

request body --decoder, strictly--> NewTask --to_task--> Task      errors name the field and the reason
"""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from dtq.policy.cron import Misfire
from dtq.policy.limits import MAX_COUNT, MAX_RATE
from dtq.task.model import DAY, Backoff, OnParentFailure, Task, Webhook, new_id

MIB = 1 << 20
MAX_BATCH = 1000  # tasks in one request
MAX_STEPS = 10_000  # tasks in a flow
NAME = r"^[A-Za-z0-9_][A-Za-z0-9_.:@/-]{0,199}$"
WEB_ADDRESS = r"^https?://[A-Za-z0-9.-]{1,200}(:[1-9][0-9]{0,4})?(/[!-~]{0,1500})?$"

Name = Annotated[str, Meta(pattern=NAME, min_length=1, max_length=200)]
StepName = Annotated[str, Meta(pattern=NAME, min_length=1, max_length=100)]
FlowId = Annotated[str, Meta(pattern="^[A-Za-z0-9_][A-Za-z0-9_:@/-]*$", max_length=80)]
Text = Annotated[str, Meta(pattern="^[ -~]+$", min_length=1, max_length=200)]
Tenant = Annotated[str, Meta(pattern="^[ -~]*$", max_length=200, description="a tenant, say: tenants take turns")]
Ending = Literal["completed", "failed", "cancelled"]
Moment = Annotated[float, Meta(ge=0, le=1e11, description="UTC seconds since 1970")]
Ahead = Annotated[float, Meta(ge=0, le=1e10)]
Span = Annotated[float, Meta(ge=0, le=30 * DAY, description="seconds")]


class NewWebhook(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Who is told when the task ends."""

    url: Annotated[str, Meta(pattern=WEB_ADDRESS, max_length=2000)]
    events: Annotated[tuple[Ending, ...], Meta(min_length=1, max_length=3)] = ("completed", "failed", "cancelled")
    secret: Annotated[Name | None, Meta(description="the name of a secret; needs a token of scope admin")] = None


class NewWork(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What is to be done, and how: what every task has, also those of a schedule."""

    type: Annotated[Name, Meta(description="which handler runs it")]
    payload: Annotated[Any, Meta(description="what the handler gets: any JSON")] = None
    queue: Name = "default"
    priority: Annotated[int, Meta(ge=-1000, le=1000, description="higher first")] = 0
    max_attempts: Annotated[int, Meta(ge=1, le=1000)] = 3
    timeout: Annotated[float, Meta(ge=0.001, le=30 * DAY, description="seconds for each attempt")] = 30.0
    retry_delay: Span = 1.0
    retry_backoff: Backoff = "exponential"
    retry_jitter: Annotated[float, Meta(ge=0, le=1, description="0.2: delays are up to 20 % shorter")] = 0.0
    retry_cap: Span = DAY
    limit_key: Tenant = ""
    expires_in: Annotated[Ahead | None, Meta(description="seconds; not started by then: cancelled")] = None
    webhook: Annotated[NewWebhook | None, Meta(description="who is told when it has ended")] = None

    def options(self) -> dict[str, Any]:
        """As `QueueManager.add` takes it."""
        given: dict[str, Any] = msgspec.to_builtins(self)
        return given


class NewStep(NewWork, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A task of a flow. `after` has names of its other steps, or ids of tasks that are stored."""

    key: Annotated[Text | None, Meta(description="at most one task has it; adding again gives that one")] = None
    after: Annotated[list[Name], Meta(max_length=1000, description="what must end first")] = []
    on_parent_failure: OnParentFailure = "fail"
    delay: Annotated[Ahead | None, Meta(description="seconds from now; or give run_at")] = None
    run_at: Annotated[Moment | None, Meta(description="not before; UTC seconds")] = None
    expires: Annotated[Moment | None, Meta(description="or give expires_in; UTC seconds")] = None


class NewTask(NewStep, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A task to add: what `TaskQueue.add` takes."""

    id: Annotated[Name | None, Meta(description="given by the queue where it is missing")] = None


Batch = Annotated[list[NewTask], Meta(min_length=1, max_length=MAX_BATCH)]
OneOrMany = NewTask | Batch
_WHOLE = {"priority", "max_attempts", "burst", "max_running", "limit"}


class NewFlow(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A whole graph of tasks, by name, of which all are added or none."""

    steps: Annotated[dict[StepName, NewStep], Meta(min_length=1, max_length=MAX_STEPS)]
    id: Annotated[
        FlowId | None, Meta(description="given by the queue where it is missing; added again, it is there")
    ] = None


class NewSchedule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What is added, and when: by `cron`, or `every` so many seconds. `expires_in` counts from the tick."""

    task: NewWork
    cron: Annotated[str, Meta(max_length=200, description="as in */5 * * * *")] | None = None
    every: Annotated[float, Meta(ge=0.1, le=1e9, description="seconds")] | None = None
    tz: Annotated[str, Meta(max_length=100, description="as in Europe/Berlin")] = "UTC"
    misfire: Annotated[Misfire, Meta(description="of ticks that came while nobody was there")] = "once"


class NewLimit(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What the tasks of this queue, type and limit key are held to; null is any of them, the key "*" each key on its
    own. What is left out stays as it is, 0 takes it away."""

    queue: Name | None = None
    type: Name | None = None
    key: Annotated[str, Meta(pattern="^[ -~]*$", max_length=200)] | None = None
    rate: Annotated[float, Meta(ge=0, le=MAX_RATE, description="starts a second")] | None = None
    burst: Annotated[int, Meta(ge=1, le=MAX_COUNT, description="of them at once")] | None = None
    max_running: Annotated[int, Meta(ge=0, le=MAX_COUNT)] | None = None


class Selection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Some of the dead letters: by their ids, or those that match all that is said, or, if it is said, `all`."""

    ids: Annotated[list[Name], Meta(min_length=1, max_length=MAX_BATCH)] = []
    all: bool = False
    queue: Name | None = None
    type: Name | None = None
    error: Annotated[str, Meta(max_length=200, description="the type of their last error")] | None = None
    since: Annotated[Moment | None, Meta(description="failed later than that; UTC seconds")] = None

    def filters(self) -> dict[str, Any]:
        """As `DeadLetters` takes them."""
        names = ("queue", "type", "error", "since")
        return {name: value for name in names if (value := getattr(self, name)) is not None}


class Redrive(Selection, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Dead letters that are to be started afresh."""

    rate: Annotated[float, Meta(ge=0.001, le=MAX_RATE, description="so many a second are due")] | None = None
    limit: Annotated[int, Meta(ge=1, le=MAX_COUNT, description="those that failed first")] | None = None


class Purge(Selection, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Dead letters that are to be removed for good."""

    age: Annotated[float, Meta(ge=0, le=1e10, description="only what failed so many seconds ago, or more")] = 0.0


def decoder(shape: Any) -> Callable[[bytes], Any]:
    """What makes this of a body. Raises msgspec.DecodeError, or its child ValidationError, which names the field."""
    strictly = msgspec.json.Decoder(shape).decode

    def decode(content: bytes) -> Any:
        try:
            return strictly(content)
        except msgspec.ValidationError as error:
            if "got `float`" not in str(error):
                raise
        return msgspec.convert(_with_whole_numbers(msgspec.json.decode(content)), shape)

    return decode


def _with_whole_numbers(value: Any) -> Any:
    """To JSON, 3.0 is as whole a number as 3."""
    if isinstance(value, list):
        return [_with_whole_numbers(one) for one in value]
    if not isinstance(value, dict):
        return value
    return {
        name: int(one) if name in _WHOLE and isinstance(one, float) and one.is_integer()
        else one if name == "payload" else _with_whole_numbers(one)
        for name, one in value.items()
    }  # fmt: skip


def to_task(new: NewTask, now: float, key: str | None) -> Task:
    """The task that this describes. Raises InvalidTask, as Task does, where a field is out of its bounds."""
    return Task(
        **dict(zip(_SAME, _same(new), strict=True)),
        id=new.id or new_id(now),
        key=key or new.key,
        after=tuple(new.after),
        run_at=now + new.delay if new.delay is not None else new.run_at or now,
        expires=now + new.expires_in if new.expires_in is not None else new.expires,
        webhook=_webhook(new.webhook),
    )


def _webhook(new: NewWebhook | None) -> Webhook | None:
    return None if new is None else Webhook(new.url, new.events, new.secret)


_SAME = tuple(name for name in NewTask.__struct_fields__ if name in Task.__struct_fields__ and name not in (
    "id", "key", "after", "run_at", "expires", "webhook",
))  # fmt: skip
_same = attrgetter(*_SAME)


def is_same(wanted: Task, stored: Task) -> bool:
    """Whether the stored task was asked for by the same request: all that never changes is equal."""
    return all(
        getattr(wanted, name) == getattr(stored, name) for name in (*_SAME, "after", "webhook") if name != "priority"
    )
