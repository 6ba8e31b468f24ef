"""The reader's classes and progress, kept from chapter to chapter in notebooks/mine/ (ignored by git).

keep(MyStore) ---> mine/store.py ---> mine("store", default=SQLiteStore)
verdicts, hints, guesses ---> mine/progress.json ---> report()

A class is kept only if the reader wrote all of it: Run All of an untouched chapter writes nothing.
"""

from __future__ import annotations

import importlib.util
import os
import time
from pathlib import Path
from typing import Any

import msgspec
import pandas as pd
from IPython.display import display

from dtq.lab.grown import is_ours, members, module_text
from dtq.lab.source import Page

HINT = 0.2  # the share of an exercise's mark that each hint costs


class Tried(msgspec.Struct):
    """A reader's progress with an exercise or a part to be written. Times are UTC seconds."""

    status: str = "not yet"
    tries: int = 0
    hints: int = 0
    began: float = 0.0
    right: float = 0.0


class Progress(msgspec.Struct):
    """Exercises by number, holes by name; guesses by chapter and name."""

    tried: dict[str, Tried] = {}
    guesses: dict[str, dict[str, float]] = {}


def folder() -> Path:
    """Return the folder: DTQ_MINE, or mine/ beside the notebook."""
    return Path(os.environ.get("DTQ_MINE") or Path.cwd() / "mine")


# --- classes ---------------------------------------------------------------------------------------------------------


def keep(cls: type) -> None:
    """Write a class of the notebook to a file for later chapters, with all that it uses: MyStore to mine/store.py.

    If a part of it is still ours, nothing is written, and an earlier file stays.

    Raises:
        ValueError: The class uses a value that has no name in a module and is no plain data.
    """
    ours = [name for name, value in members(cls).items() if is_ours(value)]
    if ours:
        _say(f"Not kept: {', '.join(f'{name}' for name in ours)} of {cls.__name__} is ours for now.")
        return
    path = folder() / f"{_short(cls)}.py"
    _write(path, module_text(cls).encode())
    _say(f"{cls.__name__} is kept as mine/{path.name}.")


def mine(name: str, default: Any) -> Any:
    """Return the class that the last `keep` wrote under this name; `default` if there is none yet, or it cannot be
    loaded. Show which of the two it is."""
    path = folder() / f"{name}.py"
    if not path.exists():
        _say(f"You have kept no {name} yet, so this is {default.__name__}.")
        return default
    try:
        found = _load(name, path)
    except Exception as error:
        _say(f"Your {name} cannot be loaded ({type(error).__name__}: {error}), so this is {default.__name__}.")
        return default
    _say(f"This is your {found.__name__}.")
    return found


def _load(name: str, path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"mine_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.kept


def _short(cls: type) -> str:
    """Return the short name: "store" for MyStore."""
    return cls.__name__.removeprefix("My").lower()


# --- progress --------------------------------------------------------------------------------------------------------


def note_try(number: str, status: str) -> None:
    """Record a verdict. A stub does not count: Run All of an untouched chapter records nothing."""
    if status == "not yet":
        return
    progress = read()
    entry = progress.tried.setdefault(number, Tried(began=time.time()))
    entry.tries += 1
    if status == "right" and not entry.right:
        entry.right = time.time()
    entry.status = "right" if entry.right else status
    _save(progress)


def note_hint(number: str) -> None:
    """Record a hint."""
    progress = read()
    progress.tried.setdefault(number, Tried(began=time.time())).hints += 1
    _save(progress)


def note_guess(name: str, values: dict[str, float]) -> None:
    """Record a guess that was locked in."""
    progress = read()
    progress.guesses[name] = values
    _save(progress)


def read() -> Progress:
    """Return the progress so far; none if the file cannot be read."""
    try:
        return msgspec.json.decode((folder() / "progress.json").read_bytes(), type=Progress)
    except (OSError, msgspec.DecodeError):
        return Progress()


def report() -> pd.DataFrame:
    """Return a row for each exercise and each part that was tried: status, tries, hints, minutes, mark (of 1)."""
    rows = [
        (number, tried.status, tried.tries, tried.hints, _minutes(tried), _mark(tried))
        for number, tried in sorted(read().tried.items())
    ]
    return pd.DataFrame(rows, columns=["exercise", "status", "tries", "hints", "minutes", "mark"])


def _minutes(tried: Tried) -> float:
    """Return the minutes from the first try or hint to the first right answer; NaN without one."""
    return round((tried.right - tried.began) / 60, 1) if tried.right else float("nan")


def _mark(tried: Tried) -> float:
    return round(max(0.0, 1 - HINT * tried.hints), 1) if tried.right else 0.0


def _save(progress: Progress) -> None:
    _write(folder() / "progress.json", msgspec.json.format(msgspec.json.encode(progress)))


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_bytes(data)
    os.replace(unfinished, path)


def _say(text: str) -> None:
    display(Page(f"<p><em>{text}</em></p>", text))
