"""What one commit of the file store has changed, as recorded in one line of the journal.

A change states how things are afterwards, not what was done. So it has the same effect when it is applied twice, or to
a state that includes it already.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec.structs import fields

from dtq.policy.limits import Limit, Selector
from dtq.stores.protocol import Node
from dtq.task.model import STATE, Task, state_of


class Entry(msgspec.Struct, frozen=True, omit_defaults=True):
    """A whole task, its number in the order of insertion, and the parents that it still waits for."""

    number: int
    task: Task
    waits_for: tuple[str, ...] = ()


_of_task = {field.name: field for field in fields(Task)}
Moved: Any = msgspec.defstruct(
    "Moved",
    [("id", str), ("version", int), *((name, _of_task[name].type, _of_task[name].default) for name in STATE)],
    frozen=True,
    omit_defaults=True,
)
Moved.__doc__ = "The fields of a task that a transition may change; the others are as in an earlier Entry."


class Change(msgspec.Struct, omit_defaults=True):
    """What one commit has changed. Times are UTC seconds."""

    gone: list[str] = []  # ids of deleted tasks
    put: list[Entry] = []  # tasks that are new, or of which more than the state has changed
    moved: list[Moved] = []  # tasks of which only the state has changed
    limits: list[Limit] = []
    owed: list[tuple[Selector, dict[str, float]]] = []  # for each limit: when its buckets will be full again
    marks: dict[str, float] = {}  # limit key -> how much it was served
    served: float = 0.0  # the mark of the key that was served last
    nodes: list[tuple[str, Node]] = []  # the peer that the node runs in, and the node
    left: list[str] = []  # ids of nodes that signed off
    deleted: int = 0  # if tasks were deleted: the highest version that any deleted task had


NOTHING = Change()


def moved_of(task: Task) -> Any:
    """Return the state of this task, as a Moved."""
    return Moved(task.id, task.version, *state_of(task))
