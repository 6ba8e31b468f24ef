"""Requests: the JSON bodies as msgspec structs, and how a body is decoded. The OpenAPI document is made of the structs.

Content-Type --> JSON, strictly of the operation's struct --> payload not nested too deep --> a secret for admins only
             --> NewTask --to_task--> Task                          errors name the field and the reason
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from operator import attrgetter
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from dtq.api.auth import ADMIN, Token
from dtq.api.problems import HTTPProblem, of_decoding
from dtq.policy.cron import Misfire
from dtq.policy.limits import MAX_COUNT, MAX_RATE
from dtq.task.codec import MAX_DEPTH, is_nested, is_too_deep
from dtq.task.model import DAY, Backoff, OnParentFailure, Task, Webhook

JSON = "application/json"
MAX_BATCH = 1000  # tasks in one request
MAX_STEPS = 10_000  # tasks in a flow
NAME = r"^[A-Za-z0-9_][A-Za-z0-9_.:@/-]{0,199}$"
WEB_ADDRESS = r"^https?://[A-Za-z0-9.-]{1,200}(:[1-9][0-9]{0,4})?(/[!-~]{0,1500})?$"

Name = Annotated[str, Meta(pattern=NAME, min_length=1, max_length=200)]
StepName = Annotated[str, Meta(pattern=NAME, min_length=1, max_length=100)]
FlowId = Annotated[str, Meta(pattern="^[A-Za-z0-9_][A-Za-z0-9_:@/-]*$", max_length=80)]
Text = Annotated[str, Meta(pattern="^[ -~]+$", min_length=1, max_length=200)]
Tenant = Annotated[str, Meta(pattern="^[ -~]*$", max_length=200, description="for example a tenant; keys take turns")]
Ending = Literal["completed", "failed", "cancelled"]
Moment = Annotated[float, Meta(ge=0, le=1e11, description="UTC seconds since 1970")]
SecondsAhead = Annotated[float, Meta(ge=0, le=1e10)]
Span = Annotated[float, Meta(ge=0, le=30 * DAY, description="seconds")]


class NewWebhook(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A URL that is notified when the task ends."""

    url: Annotated[str, Meta(pattern=WEB_ADDRESS, max_length=2000)]
    events: Annotated[tuple[Ending, ...], Meta(min_length=1, max_length=3)] = ("completed", "failed", "cancelled")
    secret: Annotated[Name | None, Meta(description="the name of a secret to sign with; needs scope admin")] = None


class NewWork(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """The fields that all tasks have, also those that a schedule adds."""

    type: Annotated[Name, Meta(description="names the handler that runs it")]
    payload: Annotated[Any, Meta(description="the handler's input: any JSON")] = None
    queue: Name = "default"
    priority: Annotated[int, Meta(ge=-1000, le=1000, description="higher runs first")] = 0
    max_attempts: Annotated[int, Meta(ge=1, le=1000)] = 3
    timeout: Annotated[float, Meta(ge=0.001, le=30 * DAY, description="seconds for each attempt")] = 30.0
    retry_delay: Span = 1.0
    retry_backoff: Backoff = "exponential"
    retry_jitter: Annotated[float, Meta(ge=0, le=1, description="0.2: delays are up to 20 % shorter")] = 0.0
    retry_cap: Span = DAY
    limit_key: Tenant = ""
    expires_in: Annotated[
        SecondsAhead | None, Meta(description="seconds from now; a task that has not started by then is cancelled")
    ] = None
    webhook: Annotated[NewWebhook | None, Meta(description="a URL to notify when the task ends")] = None

    def options(self) -> dict[str, Any]:
        """Return the options as `QueueManager.add` takes them."""
        given: dict[str, Any] = msgspec.to_builtins(self)
        return given


class NewStep(NewWork, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A task of a flow. `after` names other steps of the flow, or ids of tasks that are already stored."""

    key: Annotated[Text | None, Meta(description="unique; adding it again returns the task that has it")] = None
    after: Annotated[list[Name], Meta(max_length=1000, description="tasks that must end first")] = []
    on_parent_failure: OnParentFailure = "fail"
    delay: Annotated[SecondsAhead | None, Meta(description="seconds from now; instead of run_at")] = None
    run_at: Annotated[Moment | None, Meta(description="the earliest start; UTC seconds")] = None
    expires: Annotated[Moment | None, Meta(description="instead of expires_in; UTC seconds")] = None


class NewTask(NewStep, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A task to add, with the options of `TaskQueue.add`."""

    id: Annotated[Name | None, Meta(description="if missing, the queue makes one")] = None


Batch = Annotated[list[NewTask], Meta(min_length=1, max_length=MAX_BATCH)]
OneOrMany = NewTask | Batch
_WHOLE = {"priority", "max_attempts", "burst", "max_running", "limit"}


class NewFlow(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A graph of tasks by name, added as a whole or not at all."""

    steps: Annotated[dict[StepName, NewStep], Meta(min_length=1, max_length=MAX_STEPS)]
    id: Annotated[
        FlowId | None, Meta(description="if missing, the queue makes one; adding the same id again returns that flow")
    ] = None


class NewSchedule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A task and when to add it: by `cron`, or `every` number of seconds. Its `expires_in` counts from the tick."""

    task: NewWork
    cron: Annotated[str, Meta(max_length=200, description="for example */5 * * * *")] | None = None
    every: Annotated[float, Meta(ge=0.1, le=1e9, description="seconds")] | None = None
    tz: Annotated[str, Meta(max_length=100, description="for example Europe/Berlin")] = "UTC"
    misfire: Annotated[Misfire, Meta(description="what to do about ticks that passed while no node ran")] = "once"


class NewLimit(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A limit for the tasks of this queue, type and limit key. Null matches any of them; the key "*" limits each key on
    its own. An option that is left out keeps its value; 0 removes it."""

    queue: Name | None = None
    type: Name | None = None
    key: Annotated[str, Meta(pattern="^[ -~]*$", max_length=200)] | None = None
    rate: Annotated[float, Meta(ge=0, le=MAX_RATE, description="tasks started per second")] | None = None
    burst: Annotated[int, Meta(ge=1, le=MAX_COUNT, description="how many may start at once")] | None = None
    max_running: Annotated[int, Meta(ge=0, le=MAX_COUNT)] | None = None


class Selection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Selects dead letters: by their ids, or those that match all of the given fields, or `all`."""

    ids: Annotated[list[Name], Meta(min_length=1, max_length=MAX_BATCH)] = []
    all: bool = False
    queue: Name | None = None
    type: Name | None = None
    error: Annotated[str, Meta(max_length=200, description="the type of the last error")] | None = None
    since: Annotated[Moment | None, Meta(description="only what failed after this time; UTC seconds")] = None

    def filters(self) -> dict[str, Any]:
        """Return the filters as `DeadLetters` takes them."""
        names = ("queue", "type", "error", "since")
        return {name: value for name in names if (value := getattr(self, name)) is not None}


class Redrive(Selection, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Dead letters to start again."""

    rate: Annotated[float, Meta(ge=0.001, le=MAX_RATE, description="how many become due per second")] | None = None
    limit: Annotated[int, Meta(ge=1, le=MAX_COUNT, description="how many at most; first failed first")] | None = None


class Purge(Selection, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Dead letters to remove for good."""

    age: Annotated[float, Meta(ge=0, le=1e10, description="only what failed at least this many seconds ago")] = 0.0


# --- decoding ---------------------------------------------------------------------------------------------------------


def decoder(shape: Any) -> Callable[[bytes], Any]:
    """Return a function that decodes a body to this type. It raises msgspec.DecodeError, or its subclass
    ValidationError, which names the field."""
    decode_strictly = msgspec.json.Decoder(shape).decode

    def decode(content: bytes) -> Any:
        try:
            return decode_strictly(content)
        except msgspec.ValidationError as error:
            if "got `float`" not in str(error):
                raise
        return msgspec.convert(_with_whole_numbers(msgspec.json.decode(content)), shape)

    return decode


def _with_whole_numbers(value: Any) -> Any:
    """Convert floats as 3.0 to integers where a field needs one: JSON does not tell them apart."""
    if isinstance(value, list):
        return [_with_whole_numbers(one) for one in value]
    if not isinstance(value, dict):
        return value
    return {
        name: int(one) if name in _WHOLE and isinstance(one, float) and one.is_integer()
        else one if name == "payload" else _with_whole_numbers(one)
        for name, one in value.items()
    }  # fmt: skip


def parse_body(content: bytes, decode: Callable[[bytes], Any], token: Token) -> Any:
    """Return the decoded body of a request with this token. Raises HTTPProblem, which names what is wrong with it."""
    try:
        value = decode(content)
    except msgspec.DecodeError as error:
        raise of_decoding(error) from None
    except RecursionError:
        raise _too_deep() from None
    if is_too_deep(content) and any(is_nested(work.payload) for work in _works(value)):
        raise _too_deep()
    if token.level < ADMIN and any(map(_names_secret, _works(value))):
        raise HTTPProblem(403, "a webhook with a secret needs a token of scope admin")
    return value


def require_json(content_type: str) -> None:
    """Raise HTTPProblem if this header does not declare the body as JSON."""
    kind, _, parameters = content_type.partition(";")
    if kind.strip().lower() != JSON or parameters.strip().lower().replace('"', "") not in ("", "charset=utf-8"):
        found = f"is {content_type[:100]!r}" if content_type else "is missing"
        raise HTTPProblem(415, f"the Content-Type of the body {found}; send JSON, with Content-Type: {JSON}")


def _too_deep() -> HTTPProblem:
    return HTTPProblem.of_field(422, "payload", f"there are more than {MAX_DEPTH} levels of nested arrays and objects")


def _names_secret(work: NewWork) -> bool:
    """Return whether the task names a secret. A client that may do so can have any message signed and sent anywhere."""
    return work.webhook is not None and work.webhook.secret is not None


def _works(value: Any) -> Iterator[NewWork]:
    """Yield every task that a body contains."""
    match value:
        case NewWork():
            yield value
        case NewSchedule():
            yield value.task
        case NewFlow():
            yield from value.steps.values()
        case list():
            yield from value


# --- from a request to a task -----------------------------------------------------------------------------------------


def to_task(new: NewTask, now: float, key: str | None, id: str) -> Task:
    """Return the task that this request describes. Raises InvalidTask if a field is out of its bounds."""
    return Task(
        **dict(zip(_SAME, _same(new), strict=True)),
        id=id,
        key=key,
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
    """Return whether the same request may have added the stored task: all fields that never change are equal."""
    return all(
        getattr(wanted, name) == getattr(stored, name) for name in (*_SAME, "after", "webhook") if name != "priority"
    )
