"""Running code that may do anything, and saying in a few lines what went wrong: no wall of a traceback.

in_time(seconds, call) --> (what it gives, None) | (None, what it raised) --> explain: expected against got
"""

from __future__ import annotations

import contextlib
import ctypes
import re
import threading
import traceback
from collections.abc import Callable
from itertools import takewhile
from typing import Any, TypeVar

from dtq.lab.source import excerpt

T = TypeVar("T")
STOPS_WITHIN = 0.5  # seconds that code has to end when it was told to
LENGTH = 120  # characters of a value that are shown
DIFFERENCE = re.compile(r"(?s)(?:(?P<what>.*?): )?expected (?P<wanted>.*), got (?P<got>.*)")


def in_time(seconds: float, call: Callable[[], T]) -> tuple[T | None, BaseException | None]:
    """What the call gives, or what it raises, SystemExit too; a TimeoutError when it takes longer.

    It runs on a thread of its own, which is then told to end. What does not listen, a call into C say, goes on there
    until the process ends.
    """
    came: list[tuple[T | None, BaseException | None]] = []

    def run() -> None:
        try:
            came.append((call(), None))
        except BaseException as error:
            came.append((None, error))

    thread = threading.Thread(target=run, name="trial", daemon=True)
    thread.start()
    try:
        thread.join(seconds)
    finally:  # also where the notebook's stop button interrupts
        late = not came and thread.is_alive()
        if late:
            _stop(thread)
    return (None, TimeoutError(f"took longer than {seconds:g} s")) if late else came[0]


def _stop(thread: threading.Thread) -> None:
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(SystemExit))
    thread.join(STOPS_WITHIN)


def explain(error: BaseException, candidate: Any = None) -> str:
    """What went wrong, in a few lines: expected against got, the assertion that does not hold, or the line that
    raised."""
    if isinstance(error, AssertionError):
        return difference(str(error)) if str(error) else f"This does not hold: {_asserted(error)}"
    if isinstance(error, TimeoutError) and error.__traceback__ is None:
        return f"It {error}."
    return f"It raised {in_words(error)}{_where(error, candidate)}"


def difference(text: str) -> str:
    """`what: expected x, got y` with x and y below each other, cut to where they differ."""
    if not (match := DIFFERENCE.fullmatch(text)):
        return text
    wanted, got = _around_difference(match["wanted"], match["got"])
    return f"{match['what'] or 'it'}:\n  expected  {wanted}\n  got       {got}"


def _around_difference(*texts: str) -> list[str]:
    """Short ones as they are; long ones from the item in which they differ."""
    if max(map(len, texts)) <= LENGTH:
        return [*texts]
    same = sum(1 for _ in takewhile(lambda letters: letters[0] == letters[1], zip(*texts, strict=False)))
    start = max(0, texts[0].rfind(", ", 0, same) + 2) if same > LENGTH / 4 else 0
    return [clipped(text, start) for text in texts]


def clipped(text: str, start: int = 0) -> str:
    """LENGTH characters of it from `start` on, with dots where something is left out."""
    end = start + LENGTH
    return f"{'... ' if start else ''}{text[start:end]}{' ...' if end < len(text) else ''}"


def in_words(error: BaseException | None) -> str:
    """ValueError: what it says."""
    name, colon, text = traceback.format_exception_only(error)[-1].strip().partition(": ")
    return name.rpartition(".")[2] + colon + text


def _asserted(error: AssertionError) -> str:
    return f"`{traceback.extract_tb(error.__traceback__)[-1].line}`"


def _where(error: BaseException, candidate: Any) -> str:
    """The last line of the candidate itself that was reached."""
    with contextlib.suppress(TypeError, OSError, ValueError, SyntaxError):
        found = excerpt(candidate)
        for frame in reversed(traceback.extract_tb(error.__traceback__)):
            if frame.filename == found.file and found.first <= (frame.lineno or 0) <= found.last:
                return f"\n  at `{frame.line}`"
    return ""
