"""Names: what types, queues and ids may look like, and which of them only dtq itself gives.

    begins with "dtq."            types, queues and ids of schedules and webhooks
    report@2026-11-25T10:05:00Z   the id of the task that a schedule adds at one tick
    x:webhook-2                   the id of the webhook delivery that the end of task x planted
    idempotency/...               the key of a request that came with an Idempotency-Key

`check` is for every name. `refuse_reserved` is for every task that a user adds, whichever way it comes: a task under
one of these names could run as a schedule, have a message signed, or take the id of a task that is still to come.
Schedules, outcomes and the API add their own tasks behind that check.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import NoReturn, Protocol

from dtq.errors import InvalidTask

OURS = "dtq."  # types, queues and ids that begin so are dtq's own
OWN_KEYS = "idempotency/"  # keys that begin so are the API's
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:@/-]{0,199}")
_MADE = re.compile(r"(?:@\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{3})?Z|:webhook-\d+)\Z", re.ASCII)
_is_known = lru_cache(1024)(_NAME.fullmatch)  # types and queues come again and again, ids do not
_FORM = "1 to 200 letters, digits or _ . : @ / -, the first a letter, digit or _"
_MADE_FORMS = f"that begins with {OURS!r}, or ends in '@' and a time or in ':webhook-' and a number"


class Named(Protocol):
    """What has the names of a task: a Task, or the body of a request that describes one."""

    @property
    def type(self) -> str: ...
    @property
    def queue(self) -> str: ...
    @property
    def id(self) -> str | None: ...
    @property
    def key(self) -> str | None: ...


def is_name(value: object) -> bool:
    """Return whether a type, queue or id may look like this."""
    return isinstance(value, str) and _NAME.fullmatch(value) is not None


def can_exist(id: object, field: str = "id") -> bool:
    """Return whether something can have this id. Raise InvalidTask where it is not even text."""
    if not isinstance(id, str):
        refuse(field, id, "text")
    return is_name(id)


def check(field: str, value: object, matches: Callable[[str], object] = _is_known) -> None:
    """Raise InvalidTask where no type, queue or id may look like this."""
    if not isinstance(value, str) or not matches(value):
        refuse(field, value, _FORM)


def check_id(field: str, value: object) -> None:
    """The same for an id, which is not worth remembering."""
    check(field, value, _NAME.fullmatch)


def check_text(field: str, value: object, shortest: int) -> None:
    """Raise InvalidTask where this cannot be a key or a limit key, of at least `shortest` characters."""
    if not isinstance(value, str) or not shortest <= len(value) <= 200 or not value.isprintable():
        refuse(field, value, f"{shortest} to 200 printable characters")


def check_filters(**filters: object) -> None:
    """Raise InvalidTask where a filter of tasks, if it is given, names what no task can have."""
    for field, value in filters.items():
        if value is not None:
            check(field, value)


def check_free(field: str, value: str) -> None:
    """Raise InvalidTask where this is no name of a type or queue, or a reserved one."""
    check(field, value)
    if value.startswith(OURS):
        _refuse_reserved(field, value, f"that begins with {OURS!r}")


def refuse_reserved(given: Named) -> None:
    """Raise InvalidTask where a user gives a task a name that is reserved. It runs for each task that is added."""
    if given.type.startswith(OURS):
        _refuse_reserved("type", given.type, f"that begins with {OURS!r}")
    if given.queue.startswith(OURS):
        _refuse_reserved("queue", given.queue, f"that begins with {OURS!r}")
    if given.id and is_reserved_id(given.id):
        _refuse_reserved("id", given.id, _MADE_FORMS)
    if given.key is not None and given.key.startswith(OWN_KEYS):
        _refuse_reserved("key", given.key, f"that begins with {OWN_KEYS!r}")


def is_reserved_id(id: str) -> bool:
    """Return whether only a schedule or an outcome may give a task this id."""
    return id.startswith(OURS) or (("@" in id or ":" in id) and _MADE.search(id) is not None)


def _refuse_reserved(field: str, value: str, reserved: str) -> NoReturn:
    refuse(field, value, f"any {field} but one {reserved}, which dtq itself gives: choose another")


def refuse(field: str, value: object, allowed: str) -> NoReturn:
    """Raise InvalidTask, which names the field, its value and what is allowed."""
    shown = repr(value)
    shown = shown if len(shown) <= 80 else shown[:77] + "..."
    raise InvalidTask(f"{field} is {shown}; allowed: {allowed}")
