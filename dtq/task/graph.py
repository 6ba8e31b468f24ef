"""Graphs of tasks that wait for each other: how they are put together, as plain data. Nothing is added here.

    chain(a, b, c)         a -> b -> c
    group(a, b, c)         a, b, c beside each other
    chord([a, b, c], d)    a, b, c, then d with their results
    named({"a": ..., "b": {..., "after": ["a"]}})      any graph without circles

A part may be a step (`step(...)`, a dictionary of what `add` takes, a Task) or a graph again. `bind` gives the tasks,
each with an id that begins with that of the flow: by this prefix a flow is found again, in any store, at any time.
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

MAX_EDGES = 1_000_000  # waits of one task for another


class Graph(msgspec.Struct, frozen=True):
    """Steps in an order in which parents may come anywhere, and for each of them the positions of its parents. A step
    may also be `after` tasks that are stored already."""

    steps: tuple[Step, ...]
    parents: tuple[tuple[int, ...], ...]

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def first(self) -> list[int]:
        """The positions of those that wait for no other."""
        return [position for position, parents in enumerate(self.parents) if not parents]

    @property
    def last(self) -> list[int]:
        """The positions of those that no other waits for."""
        awaited = {parent for parents in self.parents for parent in parents}
        return [position for position in range(len(self)) if position not in awaited]


Part = Step | Graph


def step(type: str, payload: Any = None, **options: Any) -> Step:
    """One task of a graph; the options are those of `add`. With `id=` it has a name in its flow, else it has a
    number."""
    return {"type": type, "payload": payload, **options}


# --- builders


def chain(*parts: Part | Iterable[Part]) -> Graph:
    """One after the other: the first steps of each part wait for the last ones of the part before. An empty part is
    passed over."""
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
    """Beside each other: nobody waits. A part may be a list or a generator of parts."""
    steps: list[Step] = []
    parents: list[tuple[int, ...]] = []
    for graph in map(_graph, parts):
        parents += [_shifted(waits, len(steps)) for waits in graph.parents]
        steps += graph.steps
    return Graph(tuple(steps), tuple(parents))


def chord(parts: Iterable[Part], then: Part) -> Graph:
    """Many, then one: `then` waits for all of them, and gets their results in their order (`context.parents`)."""
    return chain(group(*parts), then)


def named(steps: Mapping[str, Step]) -> Graph:
    """Any graph: name -> step, where `after` tells the names of the steps (or the ids of stored tasks, or handles) that
    a step waits for. Raises InvalidTask where there is a circle."""
    position = {name: number for number, name in enumerate(steps)}
    inside: dict[str, list[str]] = {}
    given: list[Step] = []
    for name, one in steps.items():
        after = [getattr(parent, "id", parent) for parent in _after(_checked(one))]
        inside[name] = [parent for parent in after if parent in position]
        given.append(_with(one, id=name, after=tuple(parent for parent in after if parent not in position)))
    _refuse_circles(inside)
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
    if edges > MAX_EDGES:
        raise InvalidTask(
            f"two groups after each other make {edges:,} waits, more than {MAX_EDGES:,}: put one step between them"
        )


def _not_empty(what: str, graph: Graph) -> Graph:
    if not graph.steps:
        raise InvalidTask(f"the {what} is empty; allowed: one step or more")
    return graph


def _refuse_circles(parents: Mapping[str, Iterable[str]]) -> None:
    try:
        TopologicalSorter(parents).prepare()
    except CycleError as error:
        raise InvalidTask(
            f"after makes a circle, in which nothing could ever start: {' -> '.join(error.args[1])}"
        ) from None


# --- names


def bind(graph: Graph, flow: str) -> list[Step]:
    """The steps as they are added: ids are `flow.name`, and `after` names ids. Raises InvalidTask where two steps have
    the same name."""
    names = _names(graph)
    return [
        _with(step, id=f"{flow}.{name}", after=(*_after(step), *(f"{flow}.{names[parent]}" for parent in parents)))
        for step, name, parents in zip(graph.steps, names, graph.parents, strict=True)
    ]


def prefix(flow: str) -> str:
    """What the ids of a flow's tasks begin with, and those of no other flow."""
    return f"{flow}."


def flow_of(task_id: str) -> str:
    """The flow that a task belongs to; "" for one that belongs to none."""
    flow, dot, _ = task_id.partition(".")
    return flow if dot else ""


def name_in(flow: str, task_id: str) -> str:
    """The name of a task in its flow; a task of no flow, or of another, has its id."""
    return task_id.removeprefix(prefix(flow)) if flow else task_id


def _names(graph: Graph) -> list[str]:
    """The id that a step was given, or its number, with zeros, so that the order of ids is that of the steps."""
    digits = len(str(len(graph) - 1))
    names = [_get(step, "id") or f"{number:0{digits}}" for number, step in enumerate(graph.steps)]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InvalidTask(f"two steps of the flow have the name {twice!r}; allowed: a name of its own for each")
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
