"""Options: the dictionary that `add` is given, and the task that it describes.

    {"type": "mail", "payload": "hi", "delay": 5} --task_of--> Task        whatever is not allowed is named: InvalidTask

They are the fields of Task that say what it is, and `delay` and `expires_in` in seconds from now. Many tasks that are
added together differ in their payload alone: the others of their options are looked at once.
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
OWN = frozenset({"id", "key", "after", "webhook", "run_at", "expires", *RELATIVE})  # of one task


def task_of(given: Mapping[str, Any], now: float) -> Task:
    """The task that these options describe. Raises InvalidTask, naming the option, what it is and what is allowed, also
    for a reserved name."""
    if not isinstance(given, Mapping):
        raise InvalidTask(f"a task is {given!r}; allowed: a Task, or a dictionary with 'type', 'payload' and options")
    options = dict(given)
    payload = options.pop("payload", None)
    task = _like_others(options) if OWN.isdisjoint(options) else _described(options, now)
    force_setattr(task, "payload", payload)
    return task


def _like_others(options: dict[str, Any]) -> Task:
    try:
        return copy(_remembered(**options))
    except TypeError:  # not every value can be remembered, nor every name
        return _described(options, 0.0)


@lru_cache(256, typed=True)
def _remembered(**options: Any) -> Task:
    return _described(options, 0.0)


def _described(options: dict[str, Any], now: float) -> Task:
    for relative, name in RELATIVE.items():
        if (seconds := options.pop(relative, None)) is not None:
            options[name] = now + _seconds(relative, seconds)
        elif isinstance(options.get(name), datetime):
            options[name] = options[name].timestamp()
    if strange := options.keys() - NAMES:
        _refuse_names(strange)
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


def _refuse_names(strange: Set[str]) -> NoReturn:
    if strange & set(unique.OPTIONS):
        raise InvalidTask(
            "window and on_conflict are options of `add`, which takes one task; many are added by key alone"
        )
    raise InvalidTask(
        f"no option is named {min(strange, key=str)!r}; there are: {', '.join(sorted(NAMES | RELATIVE.keys()))}"
    )
