"""Options: the dictionary that `add` takes, and the task that it describes.

    {"type": "mail", "payload": "hi", "delay": 5} --task_of--> Task    or InvalidTask, which names what is not allowed

Options are the fields of Task that describe the request, and `delay` and `expires_in` in seconds from now. Tasks that
are added together often differ only in their payload, so other options are checked once and the task is copied.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from copy import copy
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

import msgspec
from msgspec.structs import force_setattr

from dtq.errors import InvalidTask
from dtq.task import names, unique
from dtq.task.model import STATE, Task, Webhook

NAMES = frozenset(Task.__struct_fields__) - (set(STATE) - {"priority", "run_at", "expires"}) - {"version", "created_at"}
RELATIVE = {"delay": "run_at", "expires_in": "expires"}
NOT_SHARED = frozenset({"id", "key", "after", "webhook", "run_at", "expires", *RELATIVE})  # differ from task to task


def task_of(given: Mapping[str, Any], now: float) -> Task:
    """Return the task that these options describe; `now` is in UTC seconds. Raise InvalidTask where an option is not
    allowed or a name is reserved."""
    if not isinstance(given, Mapping):
        raise InvalidTask(f"a task is {given!r}; allowed: a Task, or a dictionary with 'type', 'payload' and options")
    options = dict(given)
    payload = options.pop("payload", None)
    task = _copy_of_similar(options) if NOT_SHARED.isdisjoint(options) else _checked(options, now)
    force_setattr(task, "raw_payload", payload)
    return task


def _copy_of_similar(options: dict[str, Any]) -> Task:
    try:
        return copy(_cached(**options))
    except TypeError:  # a value is not hashable, or a name is no text
        return _checked(options, 0.0)


@lru_cache(256, typed=True)
def _cached(**options: Any) -> Task:
    return _checked(options, 0.0)


def _checked(options: dict[str, Any], now: float) -> Task:
    for relative, name in RELATIVE.items():
        if (seconds := options.pop(relative, None)) is not None:
            options[name] = now + _seconds(relative, seconds)
        elif isinstance(options.get(name), datetime):
            options[name] = options[name].timestamp()
    if unknown := options.keys() - NAMES:
        _refuse_unknown(unknown)
    if "type" not in options:
        raise InvalidTask("type is missing; allowed: the name under which a handler is registered")
    if isinstance(options.get("after"), (list, tuple, set)):
        options["after"] = tuple(getattr(parent, "id", parent) for parent in options["after"])
    if isinstance(options.get("webhook"), (str, Mapping)):
        options["webhook"] = _webhook(options["webhook"])
    task = Task(**options)
    names.refuse_reserved(task)
    return task


def _seconds(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1e10:
        raise InvalidTask(f"{name} is {value!r}; allowed: a number of seconds from now, 0 or more")
    return value


def _webhook(value: str | Mapping[str, Any]) -> Webhook:
    try:
        return msgspec.convert({"url": value} if isinstance(value, str) else value, Webhook)
    except msgspec.ValidationError as error:
        raise InvalidTask(
            f"webhook is {value!r}; allowed: a URL, or a dictionary with 'url', 'events', 'secret': {error}"
        ) from None


def _refuse_unknown(unknown: Set[str]) -> NoReturn:
    if unknown & set(unique.OPTIONS):
        raise InvalidTask(
            "window and on_conflict are options of `add`, which takes one task; use only key= to add many"
        )
    raise InvalidTask(
        f"no option is named {min(unknown, key=str)!r}; allowed: {', '.join(sorted(NAMES | RELATIVE.keys()))}"
    )
