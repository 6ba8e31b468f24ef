"""Names: the form of types, queues and ids, and the names that are reserved for dtq itself.

    begins with "dtq."            types, queues and ids of schedules and webhooks
    report@2026-11-25T10:05:00Z   the id of the task that a schedule adds at one tick
    x:webhook-2                   the id of a webhook delivery for the end of task x
    idempotency/...               the key of a request with the header Idempotency-Key

`check` applies to every name, `refuse_reserved` to every task that a user adds, whether from Python, the command line
or the API. A task with a reserved name could run as a schedule, have a message signed, or take the id of a later task.
Schedules, outcomes and the API add their own tasks after that check.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import NoReturn, Protocol

from dtq.errors import InvalidTask

RESERVED = "dtq."  # the beginning of dtq's own types, queues and ids
RESERVED_KEYS = "idempotency/"  # the beginning of the API's own keys
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:@/-]{0,199}")
_MADE = re.compile(r"(?:@\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{3})?Z|:webhook-\d+)\Z", re.ASCII)
_is_known = lru_cache(1024)(_NAME.fullmatch)  # types and queues recur, ids do not
_FORM = "1 to 200 letters, digits or _ . : @ / -, the first a letter, digit or _"
_MADE_FORMS = f"that begins with {RESERVED!r}, or ends in '@' and a time or in ':webhook-' and a number"


class Named(Protocol):
    """An object with the names of a task: a Task, or the body of a request that describes one."""

    @property
    def type(self) -> str: ...
    @property
    def queue(self) -> str: ...
    @property
    def id(self) -> str | None: ...
    @property
    def key(self) -> str | None: ...


def is_name(value: object) -> bool:
    """Return whether the value has the form of a type, queue or id."""
    return isinstance(value, str) and _NAME.fullmatch(value) is not None


def can_exist(id: object, field: str = "id") -> bool:
    """Return whether a task can have this id. Raise InvalidTask where it is not text."""
    if not isinstance(id, str):
        refuse(field, id, "text")
    return is_name(id)


def check(field: str, value: object, matches: Callable[[str], object] = _is_known) -> None:
    """Raise InvalidTask where the value does not have the form of a type, queue or id."""
    if not isinstance(value, str) or not matches(value):
        refuse(field, value, _FORM)


def check_id(field: str, value: object) -> None:
    """Check an id, without caching the answer: ids rarely recur."""
    check(field, value, _NAME.fullmatch)


def check_text(field: str, value: object, shortest: int) -> None:
    """Raise InvalidTask where the value is no key or limit key of at least `shortest` characters."""
    if not isinstance(value, str) or not shortest <= len(value) <= 200 or not value.isprintable():
        refuse(field, value, f"{shortest} to 200 printable characters")


def check_filters(**filters: object) -> None:
    """Raise InvalidTask where a filter is given and does not have the form of a name."""
    for field, value in filters.items():
        if value is not None:
            check(field, value)


def check_free(field: str, value: str) -> None:
    """Raise InvalidTask where the value is no name of a type or queue, or a reserved one."""
    check(field, value)
    if value.startswith(RESERVED):
        _refuse_reserved(field, value, f"that begins with {RESERVED!r}")


def refuse_reserved(given: Named) -> None:
    """Raise InvalidTask where a user's task has a reserved name. Called for each task that is added."""
    if given.type.startswith(RESERVED):
        _refuse_reserved("type", given.type, f"that begins with {RESERVED!r}")
    if given.queue.startswith(RESERVED):
        _refuse_reserved("queue", given.queue, f"that begins with {RESERVED!r}")
    if given.id and is_reserved_id(given.id):
        _refuse_reserved("id", given.id, _MADE_FORMS)
    if given.key is not None and given.key.startswith(RESERVED_KEYS):
        _refuse_reserved("key", given.key, f"that begins with {RESERVED_KEYS!r}")


def is_reserved_id(id: str) -> bool:
    """Return whether only schedules and outcomes may use this id."""
    return id.startswith(RESERVED) or (("@" in id or ":" in id) and _MADE.search(id) is not None)


def _refuse_reserved(field: str, value: str, reserved: str) -> NoReturn:
    refuse(field, value, f"any {field} but one {reserved}, which is reserved for dtq itself: choose another")


def refuse(field: str, value: object, allowed: str) -> NoReturn:
    """Raise InvalidTask, which names the field, its value and what is allowed."""
    shown = repr(value)
    shown = shown if len(shown) <= 80 else shown[:77] + "..."
    raise InvalidTask(f"{field} is {shown}; allowed: {allowed}")
