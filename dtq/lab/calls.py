"""Calls: a thin wrapper around a store that records each call and its result as a line of text.

    add([a, b(priority=5)]) -> ['a', 'b']
    claim('w1', 2) -> [b, a]
    update([b completed v2]) -> {'b'}

The usual arguments of the conformance checks are left out: the type "job", the time NOW, the lease LEASE.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from itertools import groupby
from typing import Any

from msgspec.structs import fields

from dtq.lab.trial import clipped, in_words
from dtq.stores.protocol import ExchangingStore, Node, Stats, Store
from dtq.task.model import Task
from dtq.testing.conformance import Make, Subject
from dtq.testing.conformance.kit import LEASE, NOW

METHODS = {name: inspect.signature(method) for name, method in inspect.getmembers(ExchangingStore, inspect.isfunction)}
BY_PLACE = {"worker", "n", "tasks", "outcomes", "node", "held", "ids", "timeout"}  # written without their names
TIMES = {"now", "before", "finished_after", "run_at", "expires"}
USUAL = {"now": NOW, "lease": LEASE, "types": {"job"}, "type": "job"}
NO_OPTIONS = {"id", "status", "version", "created_at"}
SILENT = {"set_lane", "close"}  # they return nothing
ITEMS = 5  # the most items of a list that are written
Line = list[str]  # the call, and its result


class Log:
    """The recorded lines, in the order in which the calls began."""

    def __init__(self) -> None:
        self._lines: list[Line] = []

    def __len__(self) -> int:
        return len(self._lines)

    def begin(self, asked: str, answer: str) -> Line:
        self._lines.append([asked, answer])
        return self._lines[-1]

    def lines(self) -> list[str]:
        """Return a line for each call, or for several equal calls in a row, without the close() at the end of a
        check."""
        texts = ["".join(line) for line in self._lines]
        if texts and texts[-1] == "close()":
            texts.pop()
        runs = [(text, len([*same])) for text, same in groupby(texts)]
        return [text if n == 1 else f"{text}  ({n} times)" for text, n in runs]


class Recorded:
    """Records the calls of a store, and forwards everything to it."""

    def __init__(self, store: Any, log: Log, label: str = "") -> None:
        self._store = store
        self._log = log
        self._label = label

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._store, name)
        return partial(self._call, name, value) if name in METHODS else value

    def _call(self, name: str, method: Callable[..., Any], *args: Any, **options: Any) -> Any:
        line = self._log.begin(self._label + _asked(name, args, options), " -> no answer")
        try:
            answer = method(*args, **options)
        except Exception as error:
            line[1] = f" raises {clipped(in_words(error))}"
            raise
        line[1] = "" if name in SILENT else f" -> {_short(answer, FORMS.get(name, _as_it_stands))}"
        return answer


class Watched(Subject):
    """A subject whose stores are recorded. The lines of the second and later stores begin with the store's number."""

    def __init__(self, subject: Subject, log: Log) -> None:
        self._subject = subject
        self._log = log
        self._n = 0

    def open(self) -> Store:
        self._n += 1
        recorded: Any = Recorded(self._subject.open(), self._log, f"store{self._n}." if self._n > 1 else "")
        return recorded  # type: ignore[no-any-return]

    def crash(self, store: Any) -> None:
        self._log.begin("kill -9", "")
        self._subject.crash(store._store)

    def crash_noticed(self, store: Any) -> None:
        self._log.begin("kill -9", "")
        self._subject.crash_noticed(store._store)

    def close(self) -> None:
        self._subject.close()


def recorded(make: Make, log: Log) -> Make:
    """Return a function that makes the same store or subject, recorded."""

    def made() -> Any:
        thing = make()
        return Watched(thing, log) if isinstance(thing, Subject) else Recorded(thing, log)

    return made


# --- short forms ---


def _asked(name: str, args: tuple[Any, ...], options: dict[str, Any]) -> str:
    given = METHODS[name].bind(None, *args, **options).arguments
    del given["self"]
    parts = [_argument(key, value) for key, value in given.items() if key not in USUAL or value != USUAL[key]]
    return f"{name}({', '.join(parts)})"


def _argument(name: str, value: Any) -> str:
    text = _time(value) if name in TIMES else _short(value, FORMS.get(name, _as_it_stands))
    if name == "outcomes":
        text = f"[{', '.join(_outcome(*outcome) for outcome in value)}]"
    return text if name in BY_PLACE else f"{name}={text}"


def _outcome(task: Task, successors: Any) -> str:
    return _as_it_stands(task) + (f" + {_short(successors, _as_added)}" if successors else "")


def _time(value: float | None) -> str:
    """Return the time relative to NOW, as in NOW+5, or the number if it is far from NOW."""
    if value is None or abs(value - NOW) > NOW / 2:
        return repr(value)
    return "NOW" if value == NOW else f"NOW{value - NOW:+g}"


def _short(value: Any, form: Callable[[Task], str]) -> str:
    if isinstance(value, Task):
        return form(value)
    if isinstance(value, list | tuple):
        more = [f"and {len(value) - ITEMS} more"] if len(value) > ITEMS else []
        return f"[{', '.join([*(_short(item, form) for item in value[:ITEMS]), *more])}]"
    if isinstance(value, set | frozenset):
        return f"{{{', '.join(sorted(map(repr, value)))}}}" if value else "set()"
    if isinstance(value, Stats):
        return f"Stats({', '.join(f'{name} {n}' for name, n in value.counts.items() if n)})"
    return value.id if isinstance(value, Node) else clipped(repr(value))


def _named(task: Task) -> str:
    return f"{task.id}(doomed)" if task.doom else task.id


def _as_it_stands(task: Task) -> str:
    return f"{task.id} {task.status} v{task.version}"


def _as_added(task: Task) -> str:
    """Return the id, and the options that differ from the usual ones."""
    options = [
        f"{field.name}={_option(field.name, value)}"
        for field in fields(Task)
        if (value := getattr(task, field.name)) != USUAL.get(field.name, field.default) and field.name not in NO_OPTIONS
    ]
    return f"{task.id}({', '.join(options)})" if options else task.id


def _option(name: str, value: Any) -> str:
    return _time(value) if name in TIMES else clipped(repr(value))


FORMS = {"tasks": _as_added, "claim": _named, "reap": _named, "held": _named}
