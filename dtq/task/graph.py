"""Graphs: tasks that depend on each other, as plain data. A Flow adds them to a queue.

    chain(a, b, c)         a -> b -> c
    group(a, b, c)         a, b and c in parallel
    chord([a, b, c], d)    a, b and c in parallel, then d with their results
    named({"a": ..., "b": {..., "after": ["a"]}})      any graph without cycles

A part may be a step (`step(...)`, a dictionary of what `add` takes, a Task) or another graph. The id that `bind`
sets for each task begins with the id of its flow: with this prefix, a flow can be found in any store.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from graphlib import CycleError, TopologicalSorter
from typing import Any

import msgspec
from msgspec.structs import replace

from dtq.errors import InvalidTask
from dtq.task.model import Task

Step = Task | Mapping[str, Any]

MAX_DEPENDENCIES = 1_000_000  # pairs of a task and one of its parents


class Graph(msgspec.Struct, frozen=True):
    """Steps and their dependencies. `steps` may be in any order; `parents` has, for each step, the positions of its
    parents in `steps`. A step may also be `after` tasks that are stored already."""

    steps: tuple[Step, ...]
    parents: tuple[tuple[int, ...], ...]

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def first(self) -> list[int]:
        """The positions of steps without parents."""
        return [position for position, parents in enumerate(self.parents) if not parents]

    @property
    def last(self) -> list[int]:
        """The positions of steps without children."""
        awaited = {parent for parents in self.parents for parent in parents}
        return [position for position in range(len(self)) if position not in awaited]


Part = Step | Graph


def step(type: str, payload: Any = None, **options: Any) -> Step:
    """Return one task of a graph.

    Args:
        type: which handler runs it.
        payload: JSON data for the handler.
        options: those of `TaskQueue.add`. `id` is the step's name in its flow; without it, the name is a number.
    """
    return {"type": type, "payload": payload, **options}


# --- builders


def chain(*parts: Part | Iterable[Part]) -> Graph:
    """Return a graph in which the `parts` (steps or graphs) run one after the other.

    The first steps of each part depend on the last steps of the part before. Empty parts are skipped. Raises
    InvalidTask where all are empty, or something is neither a step nor a graph.
    """
    steps: list[Step] = []
    parents: list[tuple[int, ...]] = []
    last: tuple[int, ...] = ()
    for graph in filter(len, map(_graph, parts)):
        _refuse_too_many(len(last) * len(graph.first))
        start = len(steps)
        steps += graph.steps
        parents += [_shifted(waits, start) or last for waits in graph.parents]
        last = _shifted(graph.last, start)
    return _not_empty("chain", Graph(tuple(steps), tuple(parents)))


def group(*parts: Part | Iterable[Part]) -> Graph:
    """Return a graph in which the `parts` (steps, graphs, or iterables of them) do not depend on each other. Raises
    InvalidTask where something is neither a step nor a graph."""
    steps: list[Step] = []
    parents: list[tuple[int, ...]] = []
    for graph in map(_graph, parts):
        parents += [_shifted(waits, len(steps)) for waits in graph.parents]
        steps += graph.steps
    return Graph(tuple(steps), tuple(parents))


def chord(parts: Iterable[Part], then: Part) -> Graph:
    """Return a graph in which the `parts` run in parallel, and then `then`, a step or a graph, with their results in
    order (`context.parents`)."""
    return chain(group(*parts), then)


def named(steps: Mapping[str, Step]) -> Graph:
    """Return a graph of steps by name. `after` of a step lists its parents: names of steps, ids of stored tasks, or
    handles. Raises InvalidTask where there is a cycle."""
    position = {name: number for number, name in enumerate(steps)}
    inside: dict[str, list[str]] = {}
    given: list[Step] = []
    for name, one in steps.items():
        after = [getattr(parent, "id", parent) for parent in _after(_checked(one))]
        inside[name] = [parent for parent in after if parent in position]
        given.append(_with(one, id=name, after=tuple(parent for parent in after if parent not in position)))
    _refuse_cycles(inside)
    parents = (tuple(position[parent] for parent in inside[name]) for name in steps)
    return _not_empty("graph", Graph(tuple(given), tuple(parents)))


def _graph(part: Part | Iterable[Part]) -> Graph:
    if isinstance(part, Graph):
        return part
    if isinstance(part, (Task, Mapping)):
        return Graph((_checked(part),), ((),))
    if isinstance(part, str) or not isinstance(part, Iterable):
        raise InvalidTask(f"a part of a graph is {part!r}; allowed: step(type, payload, ...), a Task, or a graph")
    return group(*part)


def _checked(step: Any) -> Step:
    if not isinstance(step, (Task, Mapping)) or (isinstance(step, Mapping) and "type" not in step):
        raise InvalidTask(f"a step is {step!r}; allowed: step(type, payload, ...), or a Task")
    return step


def _shifted(positions: Iterable[int], by: int) -> tuple[int, ...]:
    return tuple(position + by for position in positions)


def _refuse_too_many(edges: int) -> None:
    if edges > MAX_DEPENDENCIES:
        raise InvalidTask(
            f"two groups in sequence make {edges:,} dependencies, more than {MAX_DEPENDENCIES:,}: "
            "put one step in between"
        )


def _not_empty(what: str, graph: Graph) -> Graph:
    if not graph.steps:
        raise InvalidTask(f"the {what} is empty; allowed: one step or more")
    return graph


def _refuse_cycles(parents: Mapping[str, Iterable[str]]) -> None:
    try:
        TopologicalSorter(parents).prepare()
    except CycleError as error:
        raise InvalidTask(
            f"after makes a cycle, in which no step could ever start: {' -> '.join(error.args[1])}"
        ) from None


# --- names


def bind(graph: Graph, flow: str) -> list[Step]:
    """Return the steps to add to a queue, with ids `flow.name`, and with ids in `after`. Raise InvalidTask where two
    steps have the same name."""
    names = _names(graph)
    return [
        _with(step, id=f"{flow}.{name}", after=(*_after(step), *(f"{flow}.{names[parent]}" for parent in parents)))
        for step, name, parents in zip(graph.steps, names, graph.parents, strict=True)
    ]


def prefix(flow: str) -> str:
    """Return the beginning of the ids of a flow's tasks. No other task's id begins with it."""
    return f"{flow}."


def flow_of(task_id: str) -> str:
    """Return the id of the flow that a task belongs to, or "" for none."""
    flow, dot, _ = task_id.partition(".")
    return flow if dot else ""


def name_in(flow: str, task_id: str) -> str:
    """Return the name of a task in this flow, or its id where it belongs to none or another one."""
    return task_id.removeprefix(prefix(flow)) if flow else task_id


def _names(graph: Graph) -> list[str]:
    """Return the name of each step: its id, or its number with leading zeros, so that ids sort like steps."""
    digits = len(str(len(graph) - 1))
    names = [_get(step, "id") or f"{number:0{digits}}" for number, step in enumerate(graph.steps)]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InvalidTask(f"two steps of the flow have the name {twice!r}; allowed: a different name for each")
    return names


def _get(step: Step, field: str) -> Any:
    return step.get(field) if isinstance(step, Mapping) else getattr(step, field)


def _after(step: Step) -> tuple[Any, ...]:
    after = _get(step, "after") or ()
    if not isinstance(after, (list, tuple, set)):
        raise InvalidTask(f"after is {after!r}; allowed: a list of names, ids or handles")
    return tuple(after)


def _with(step: Step, **fields: Any) -> Step:
    return {**step, **fields} if isinstance(step, Mapping) else replace(step, **fields)
