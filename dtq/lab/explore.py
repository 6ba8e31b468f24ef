"""Explorer: try every order in which the steps of small processes can interleave, and find the shortest one that breaks
a promise.

A process is a generator function of a model and the name of the process. All that it does up to a `yield` is one atomic
step, and the yielded text describes the step:

    def claimer(store, me):
        task = store.select_pending()
        yield f"{me} selects {task}"             <-- here other processes may run, or this one crashes for ever
        store.update(task, worker=me)
        yield f"{me} updates {task}"

    schedule: A, B, A, A crashes --run on a fresh model--> its steps, and the processes that can move next
                  ^                                                        |
                  +---------- longer by one move, the shortest first ------+--> a promise is broken: nothing is shorter

Nothing is random, and time is a number in the model: the same schedule always produces the same steps. The search does
not continue from a state that it has seen before. (Breadth-first over states, as in TLC for TLA+: Yu, Manolios, Lamport
1999. It reaches a state by running the code itself from the start, as in Godefroid's VeriSoft, 1997.)
"""

from __future__ import annotations

import heapq
import inspect
from collections import deque
from collections.abc import Callable, Generator, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from types import GeneratorType
from typing import Any, NamedTuple

Gate = Callable[[], object]  # yielded instead of a label: the process waits until this is true
Steps = Generator[str | Gate, None, None]
Process = Callable[[Any, str], Steps]
Promise = Callable[[Any], object]  # of the model: raises AssertionError, or returns False or a text, if it is broken
Move = tuple[str, bool]  # the process that moves, and whether it crashes
CRASHES = "crashes"
ENDED = object()
ATOMS = frozenset({type(None), bool, int, float, str, bytes})


class Step(NamedTuple):
    """What a process did; CRASHES if it crashed."""

    process: str
    label: str


@dataclass(frozen=True)
class Exploration:
    """The result: the shortest `steps` after which a promise is `broken`, and which. If `broken` is None, the promises
    hold in all `states`: in every state there is if `complete`, else in those that `max_steps` steps can reach."""

    processes: tuple[str, ...]
    states: int
    broken: str | None = None
    steps: tuple[Step, ...] = ()
    complete: bool = True

    def __str__(self) -> str:
        if self.broken is None:
            bound = "" if self.complete else " within max_steps; there are more"
            return f"No counterexample: what was promised holds in all {self.states} states{bound}."
        width = max(map(len, self.processes))
        lines = [f"{n:3}  {process:{width}}  {label}" for n, (process, label) in enumerate(self.steps, 1)]
        return "\n".join([*lines, f"     broken: {self.broken}"])


def explore(
    make_model: Callable[[], Any],
    processes: Mapping[str, Process],
    promise: Promise | None = None,
    *,
    at_end: Promise | None = None,
    world: Mapping[str, Process] | None = None,
    crashes: int = 0,
    max_steps: int = 30,
    key: Callable[[Any], Hashable] | None = None,
) -> Exploration:
    """Search for the shortest schedule that breaks a promise. A process that raises breaks one too.

    Args:
        make_model: Returns a fresh model, which has everything that the processes share. It is closed if it has a
            `close`.
        processes: The processes by name.
        promise: Checked after each step.
        at_end: Checked when no process can move: all have ended, wait for something that never happens, or crashed.
        world: Processes that never crash and move at any time: `{"clock": time_passes(30)}`, or a repeated message.
        crashes: How many processes may crash, each at any of its steps.
        max_steps: The length of the longest schedules.
        key: Returns the part of a model that distinguishes states; by default, all of it.

    Returns:
        The shortest counterexample, or how many states were searched without one.

    Raises:
        TypeError: A process is not a generator function, or yields something that is not allowed.
        RuntimeError: The same schedule produced different steps.
    """
    cast = _Cast(make_model, {**processes, **(world or {})}, tuple(processes), crashes, promise, at_end, key)
    serial = count()  # of two schedules of the same length, the earlier comes first
    ahead = [(0, next(serial), _Run(cast, ()))]
    seen: set[Hashable] = set()
    complete = True
    while ahead:
        length, _, run = heapq.heappop(ahead)
        if run.key in seen:
            continue
        seen.add(run.key)
        if run.broken is not None:
            return Exploration(tuple(cast.processes), len(seen), run.broken, tuple(run.steps))
        if length >= max_steps and run.moves:
            complete = False
            continue
        for move in run.moves:
            longer = _Run(cast, (*run.schedule, move), run.steps)
            if longer.key not in seen:
                heapq.heappush(ahead, (len(longer.steps), next(serial), longer))
    return Exploration(tuple(cast.processes), len(seen), complete=complete)


def time_passes(seconds: float, when: Callable[[Any], object] | None = None) -> Process:
    """Return a process for the `world` that at some moment adds `seconds` to `model.now`. It does so once or, if `when`
    is given, as often as that is true of the model: `when=lambda store: store.has_a_lease_that_runs()`."""

    def clock(model: Any, me: str) -> Steps:
        while True:
            if when is not None:
                yield lambda: when(model)
            model.now += seconds
            yield f"{seconds:g} s pass"
            if when is None:
                return

    return clock


# --- one schedule ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Cast:
    """The arguments of `explore`."""

    make_model: Callable[[], Any]
    processes: Mapping[str, Process]
    mortal: Sequence[str]
    crashes: int
    promise: Promise | None
    at_end: Promise | None
    key: Callable[[Any], Hashable] | None


class _Run:
    """A schedule, run on a fresh model: its `steps`, the promise that is `broken`, the `moves` that may follow, and the
    `key` of the state at its end. `before` has the steps of the same schedule without its last move."""

    def __init__(self, cast: _Cast, schedule: tuple[Move, ...], before: Sequence[Step] = ()) -> None:
        model = cast.make_model()
        actors = {name: _start(name, process, model) for name, process in cast.processes.items()}
        self.schedule = schedule
        self.steps: list[Step] = []
        self.broken: str | None = None
        for name, crashes in schedule:
            label = actors[name].crash() if crashes else self._move(actors[name])
            self.steps += [Step(name, label)] if label else []
        _require_same(before, self.steps)
        self.moves = [(name, False) for name, actor in actors.items() if actor.can_move()]
        self.broken = self.broken or _ask(cast.promise, model) or (None if self.moves else _ask(cast.at_end, model))
        if sum(actor.state == "crashed" for actor in actors.values()) < cast.crashes:
            self.moves += [(name, True) for name in cast.mortal if actors[name].state == "alive"]
        known = model if cast.key is None else cast.key(model)
        self.key = _key(known, *(actor.place(model) for actor in actors.values()))
        getattr(model, "close", lambda: None)()

    def _move(self, actor: _Actor) -> str | None:
        try:
            said = next(actor.steps, ENDED)
        except Exception as error:
            self.broken = f"{actor.name} raised {type(error).__name__}: {error}"
            return f"raises {type(error).__name__}"
        return actor.hear(said)


@dataclass
class _Actor:
    """A process that is running."""

    name: str
    steps: GeneratorType[str | Gate, None, None]
    said: list[str] = field(default_factory=list)
    gate: Gate = lambda: True
    state: str = "alive"  # or "ended", or "crashed"

    def can_move(self) -> bool:
        return self.state == "alive" and bool(self.gate())

    def crash(self) -> str:
        self.state = "crashed"
        return CRASHES

    def hear(self, said: object) -> str | None:
        """Return the label of the step. A move that ends the process, or reaches a gate, has no label and is not
        counted."""
        self.gate = lambda: True
        if isinstance(said, str):
            self.said.append(said.removeprefix(f"{self.name} "))
            return self.said[-1]
        if said is ENDED:
            self.state = "ended"
        elif callable(said):
            self.gate = said
        else:
            raise TypeError(
                f"process {self.name} yields {said!r}; allowed: a text that describes the step, or a function that "
                "returns whether the process can continue"
            )
        return None

    def place(self, model: Any) -> object:
        """Return the state of the process: its labels so far, its position in the code, and its variables. Nothing else
        determines its next step."""
        if self.state != "alive" or (frame := self.steps.gi_frame) is None:
            return self.state
        return self.said, frame.f_lasti, [value for value in frame.f_locals.values() if value is not model]


def _start(name: str, process: Process, model: Any) -> _Actor:
    steps: Any = process(model, name)
    if not isinstance(steps, GeneratorType):
        raise TypeError(f"process {name} has no yield; allowed: a generator function, with a yield after each step")
    return _Actor(name, steps)


def _require_same(before: Sequence[Step], steps: Sequence[Step]) -> None:
    """Raise RuntimeError if a schedule does not repeat the steps that it had before."""
    for old, new in zip(before, steps, strict=False):
        if old != new:
            raise RuntimeError(
                f"{old.process} {old.label!r} when this schedule was first run, and now {new.label!r}: keep everything "
                "that processes share in the model, and use neither random numbers nor the real time"
            )


def _ask(promise: Promise | None, model: Any) -> str | None:
    """Return the promise that is broken; None if it holds."""
    if promise is None:
        return None
    name = inspect.getdoc(promise) or promise.__name__.replace("_", " ")
    try:
        answer = promise(model)
    except AssertionError as error:
        return str(error).partition("\n")[0] or name
    return name if answer is False else answer if isinstance(answer, str) and answer else None


def _spell(thing: Any, seen: dict[int, int], out: list[Hashable]) -> None:
    """Append the content of an object to `out`, so that equal content produces equal entries. An object that was seen
    before is written as its number: two names of one list differ from two equal lists."""
    kind = type(thing)
    if kind in ATOMS:
        out.append(thing)
    elif id(thing) in seen:
        out += "again", seen[id(thing)]
    else:
        seen[id(thing)] = len(seen)
        _spell_new(thing, kind.__qualname__, seen, out)


def _spell_new(thing: Any, kind: str, seen: dict[int, int], out: list[Hashable]) -> None:
    if isinstance(thing, dict):
        out += kind, len(thing)
        for key, value in thing.items():
            _spell(key, seen, out)
            _spell(value, seen, out)
    elif isinstance(thing, (list, tuple, deque)):
        out += kind, len(thing)
        for item in thing:
            _spell(item, seen, out)
    elif isinstance(thing, (set, frozenset)):
        out += kind, frozenset(map(_key, thing))
    elif hasattr(thing, "__dict__") and not callable(thing):
        out.append(kind)
        _spell(vars(thing), seen, out)
    elif _has_hash(thing):
        out.append(thing)
    else:
        out.append(object())  # equals nothing, so the state counts as new: this costs time but hides no error


def _key(*things: Any) -> tuple[Hashable, ...]:
    seen: dict[int, int] = {}
    out: list[Hashable] = []
    for thing in things:
        _spell(thing, seen, out)
    return tuple(out)


def _has_hash(thing: Any) -> bool:
    try:
        hash(thing)
    except TypeError:
        return False
    return True
