"""Pass the results of parents to the task that waited for them: from the store to its handler.

    claimed children --gather: one read of the store for all--> JSON for each child --Call--> context.parents

Workers see only their socket, so the results travel with the call. A task without parents costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from dtq.task.codec import to_json
from dtq.task.graph import flow_of, name_in
from dtq.task.model import ErrorInfo, Status, Task

MAX_PARENTS = 4 << 20  # bytes of JSON: the limit for the results of all parents of a task together
PARENTS_PER_READ = 256  # tasks; results can be large


class ParentResults(msgspec.Struct, omit_defaults=True):
    """The message: the results by name, and the reason for each parent without a result."""

    results: dict[str, msgspec.Raw] = {}
    missing: dict[str, str] = {}


class Parents(dict[str, Any]):
    """The results of the parents by name, in the order in which the task names them.

    `missing` maps each parent without a result to the reason: it failed, was cancelled, or is no longer stored. Its
    lookup raises a KeyError with that reason.
    """

    def __init__(self, results: Mapping[str, Any], missing: Mapping[str, str]) -> None:
        super().__init__(results)
        self.missing = dict(missing)

    def __missing__(self, name: str) -> Any:
        why = self.missing.get(name, f"there is no parent of this name; there are: {', '.join(self) or 'none'}")
        raise KeyError(f"no result of {name!r}: {why}")

    @classmethod
    def of(cls, encoded: bytes) -> Parents:
        """Decode what `gather` returned for a task. Empty for a task without parents."""
        if not encoded:
            return cls({}, {})
        decoded = msgspec.json.decode(encoded)
        return cls(decoded.get("results", {}), decoded.get("missing", {}))


class Gathered(NamedTuple):
    """What `gather` found: `left` holds the encoded results of the parents by the child's id. `orphans` are children
    that need a parent which is no longer stored: their own records decide whether they may run."""

    left: dict[str, bytes]
    orphans: list[Task]


def gather(get: Callable[[list[str]], Sequence[Task]], children: Sequence[Task], limit: int) -> Gathered:
    """Read the results of the parents of these children.

    A child is missing from `left` if the results of its parents exceed `limit` bytes of JSON.
    """
    wanted = list(dict.fromkeys(parent for child in children for parent in child.after))
    known: dict[str, msgspec.Raw | str] = {}
    for start in range(0, len(wanted), PARENTS_PER_READ):
        known.update((parent.id, _result_of(parent)) for parent in get(wanted[start : start + PARENTS_PER_READ]))
    encoded = ((child.id, _encode(child, known, limit)) for child in children)
    left = {child_id: body for child_id, body in encoded if body}
    if len(known) == len(wanted):
        return Gathered(left, [])
    strict = (child for child in children if child.on_parent_failure == "fail")
    return Gathered(left, [child for child in strict if not known.keys() >= set(child.after)])


def too_large(child: Task, limit: int) -> ErrorInfo:
    """Return the error of a child that `gather` left out."""
    return ErrorInfo(
        "ParentsTooLarge",
        f"the results of its {len(child.after):,} parents have more than {limit:,} bytes of JSON together: "
        "return paths or keys from them, or raise max_parents",
    )


def _result_of(parent: Task) -> msgspec.Raw | str:
    if parent.status == Status.COMPLETED:
        return msgspec.Raw(to_json(parent.raw_result))
    return f"it is {parent.status}: {parent.error}" if parent.error else f"it is {parent.status}"


def _encode(child: Task, known: Mapping[str, msgspec.Raw | str], limit: int) -> bytes:
    """Return the results for this child, or b"" if they are too large."""
    flow = flow_of(child.id)
    message = ParentResults({}, {})
    for parent in child.after:
        result = known.get(parent, "it is no longer stored: deleted, or cleaned up")
        if isinstance(result, str):
            message.missing[name_in(flow, parent)] = result
        else:
            message.results[name_in(flow, parent)] = result
    return msgspec.json.encode(message) if _size(message.results.values()) <= limit else b""


def _size(results: Iterable[msgspec.Raw]) -> int:
    return sum(memoryview(result).nbytes for result in results)
