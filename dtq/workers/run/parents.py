"""What a task gets of the tasks that it waited for: the way of their results from the store to its handler.

    claimed children --gather: one look at the store for all of them--> JSON, per child --Call--> context.parents

Workers see nothing but their socket, so the results travel with the call. A task that waited for nobody costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from dtq.task.codec import to_json
from dtq.task.graph import flow_of, name_in
from dtq.task.model import ErrorInfo, Status, Task

MAX_PARENTS = 4 << 20  # bytes of JSON that the results of all parents of a task may have together
LOOK = 256  # tasks fetched at once: results are large now and then


class Handed(msgspec.Struct, omit_defaults=True):
    """What travels: results by name, and for those that have none, why."""

    results: dict[str, msgspec.Raw] = {}
    missing: dict[str, str] = {}


class Parents(dict[str, Any]):
    """The results of the parents, by name, in the order in which the task names them. `missing` tells of those that
    have none: they failed, were cancelled, or are no longer stored; to ask for one of them is a KeyError that says
    so."""

    def __init__(self, results: Mapping[str, Any], missing: Mapping[str, str]) -> None:
        super().__init__(results)
        self.missing = dict(missing)

    def __missing__(self, name: str) -> Any:
        why = self.missing.get(name, f"there is no parent of this name; there are: {', '.join(self) or 'none'}")
        raise KeyError(f"no result of {name!r}: {why}")

    @classmethod
    def of(cls, handed: bytes) -> Parents:
        """From what `gather` gave; nothing for a task without parents."""
        if not handed:
            return cls({}, {})
        got = msgspec.json.decode(handed)
        return cls(got.get("results", {}), got.get("missing", {}))


class Gathered(NamedTuple):
    """What `gather` found. `left` is by the child's id. `orphans` are the children that need a parent that is no longer
    stored: their own records tell whether they may run."""

    left: dict[str, bytes]
    orphans: list[Task]


def gather(get: Callable[[list[str]], Sequence[Task]], children: Sequence[Task], limit: int) -> Gathered:
    """Read what the parents of these children left. A child whose parents left more than `limit` bytes is not in
    `left`."""
    wanted = list(dict.fromkeys(parent for child in children for parent in child.after))
    known: dict[str, msgspec.Raw | str] = {}
    for start in range(0, len(wanted), LOOK):
        known.update((parent.id, _left_by(parent)) for parent in get(wanted[start : start + LOOK]))
    handed = ((child.id, _hand(child, known, limit)) for child in children)
    left = {child_id: body for child_id, body in handed if body}
    if len(known) == len(wanted):
        return Gathered(left, [])
    strict = (child for child in children if child.on_parent_failure == "fail")
    return Gathered(left, [child for child in strict if not known.keys() >= set(child.after)])


def too_large(child: Task, limit: int) -> ErrorInfo:
    """Why a child that `gather` left out cannot run."""
    return ErrorInfo(
        "ParentsTooLarge",
        f"the results of its {len(child.after):,} parents have more than {limit:,} bytes of JSON together: "
        "return paths or keys from them, or raise max_parents",
    )


def _left_by(parent: Task) -> msgspec.Raw | str:
    if parent.status == Status.COMPLETED:
        return msgspec.Raw(to_json(parent.result))
    return f"it is {parent.status}: {parent.error}" if parent.error else f"it is {parent.status}"


def _hand(child: Task, known: Mapping[str, msgspec.Raw | str], limit: int) -> bytes:
    """Empty where it would be too large."""
    flow = flow_of(child.id)
    handed = Handed({}, {})
    for parent in child.after:
        left = known.get(parent, "it is no longer stored: deleted, or cleaned up")
        if isinstance(left, str):
            handed.missing[name_in(flow, parent)] = left
        else:
            handed.results[name_in(flow, parent)] = left
    return msgspec.json.encode(handed) if _size(handed.results.values()) <= limit else b""


def _size(results: Iterable[msgspec.Raw]) -> int:
    return sum(memoryview(result).nbytes for result in results)
