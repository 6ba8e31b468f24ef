"""Unique tasks: what happens when a task is added with a key that another one has. Pure: the manager does it.

    no window          the key is taken as long as its task is stored: what was done once is not done again
    window=0           ... until its task has ended: at most one at a time
    window=3600        ... until its task has ended, and for 3,600 s since it was added: at most one an hour

    on_conflict        "existing"   the task that has the key is given
                       "reject"     DuplicateTask is raised
                       "replace"    where it still waits, it is cancelled, and the new one takes its place

A key changes hands in one step, and by compare-and-set: the old task is replaced only at the version that was looked
at, and plants the new one, which takes the key over. Whoever is killed before that has changed nothing.
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
    """When a key is free again (`window`, in seconds; None: when its task is gone), and what to do where it is not."""

    window: float | None = None
    on_conflict: OnConflict = "existing"


def rule_of(options: Mapping[str, Any]) -> Rule:
    """The rule in the options of `add`. Raises InvalidTask."""
    rule = Rule(options.get("window"), options.get("on_conflict", "existing"))
    if options.get("key") is None:
        raise InvalidTask("window and on_conflict are about a key: give key= too")
    if rule.on_conflict not in get_args(OnConflict):
        allowed = ", ".join(map(repr, get_args(OnConflict)))
        raise InvalidTask(f"on_conflict is {rule.on_conflict!r}; allowed: one of {allowed}")
    if rule.window is not None and (isinstance(rule.window, bool) or not 0 <= rule.window <= 1e10):
        raise InvalidTask(f"window is {rule.window!r}; allowed: seconds, 0 or more, or None")
    return rule


def give_way(holder: Task, newcomer: Task, rule: Rule, now: float) -> Task | None:
    """The task that has the key, as it is when it lets the newcomer have it; None where it does not."""
    if holder.is_terminal and rule.window is not None and now >= holder.created_at + rule.window:
        return holder
    if rule.on_conflict == "replace" and holder.status in WAITING:
        return cancel(holder, now, f"replaced by {newcomer.id}", "Replaced")
    return None
