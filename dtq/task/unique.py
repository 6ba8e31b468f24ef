"""Unique tasks: what happens when a task is added with a key that another task has. Pure functions; QueueManager uses
them.

    no window          the key is taken as long as its task is stored: what was done once is not done again
    window=0           the key is taken until its task has ended: at most one at a time
    window=3600        the key is also taken for 3,600 s after its task was added: at most one an hour

    on_conflict        "existing"   return the task that has the key
                       "reject"     raise DuplicateTask
                       "replace"    cancel the task that has the key, if it still waits, and add the new one

The key passes to the new task in one step, by compare-and-set: the outcome of the old task adds the new one, and is
accepted only if the old task has not changed. A process that is killed before that step has changed nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import msgspec

from dtq.errors import InvalidTask
from dtq.task.model import WAITING, Task
from dtq.task.transitions import cancel

OnConflict = Literal["existing", "replace", "reject"]
OPTIONS = ("window", "on_conflict")


class Rule(msgspec.Struct, frozen=True):
    """When a key is free again (`window` in seconds; None: when its task is deleted), and what to do before."""

    window: float | None = None
    on_conflict: OnConflict = "existing"


def rule_of(options: Mapping[str, Any]) -> Rule:
    """Return the rule that the options of `add` state. Raise InvalidTask where they are not allowed."""
    rule = Rule(options.get("window"), options.get("on_conflict", "existing"))
    if options.get("key") is None:
        raise InvalidTask("window and on_conflict need a key: pass key= too")
    if rule.on_conflict not in get_args(OnConflict):
        allowed = ", ".join(map(repr, get_args(OnConflict)))
        raise InvalidTask(f"on_conflict is {rule.on_conflict!r}; allowed: one of {allowed}")
    if rule.window is not None and (isinstance(rule.window, bool) or not 0 <= rule.window <= 1e10):
        raise InvalidTask(f"window is {rule.window!r}; allowed: seconds, 0 or more, or None")
    return rule


def release_key(holder: Task, newcomer: Task, rule: Rule, now: float) -> Task | None:
    """Return the new state of `holder` if `newcomer` may have its key, else None."""
    if holder.is_terminal and rule.window is not None and now >= holder.created_at + rule.window:
        return holder
    if rule.on_conflict == "replace" and holder.status in WAITING:
        return cancel(holder, now, f"replaced by {newcomer.id}", "Replaced")
    return None
