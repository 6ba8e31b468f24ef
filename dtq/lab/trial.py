"""Trial: run code that may do anything, and explain in a few lines, without a traceback, what went wrong.

in_time(seconds, call) --> (result, None) | (None, exception) --> explain: the expected and the actual value
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
STOPS_WITHIN = 0.5  # seconds that code has to end after it was interrupted
LENGTH = 120  # the most characters of a value that are shown
DIFFERENCE = re.compile(r"(?s)(?:(?P<what>.*?): )?expected (?P<wanted>.*), got (?P<got>.*)")


def in_time(seconds: float, call: Callable[[], T]) -> tuple[T | None, BaseException | None]:
    """Return the result of the call, or what it raised, even SystemExit; a TimeoutError if it takes longer.

    The call runs on its own thread, which is then interrupted. Code that cannot be interrupted, such as a call into C,
    continues there until the process ends.
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
    finally:  # also if the notebook's stop button interrupts
        late = not came and thread.is_alive()
        if late:
            _stop(thread)
    return (None, TimeoutError(f"took longer than {seconds:g} s")) if late else came[0]


def _stop(thread: threading.Thread) -> None:
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(SystemExit))
    thread.join(STOPS_WITHIN)


def explain(error: BaseException, candidate: Any = None) -> str:
    """Return what went wrong in a few lines: the expected and the actual value, the assertion that does not hold, or
    the line that raised."""
    if isinstance(error, AssertionError):
        return difference(str(error)) if str(error) else f"This does not hold: {_asserted(error)}"
    if isinstance(error, TimeoutError) and error.__traceback__ is None:
        return f"It {error}."
    return f"It raised {in_words(error)}{_where(error, candidate)}"


def difference(text: str) -> str:
    """Return `what: expected x, got y` with x and y below each other, cut to the part that differs."""
    if not (match := DIFFERENCE.fullmatch(text)):
        return text
    wanted, got = _around_difference(match["wanted"], match["got"])
    return f"{match['what'] or 'it'}:\n  expected  {wanted}\n  got       {got}"


def _around_difference(*texts: str) -> list[str]:
    """Return short texts unchanged, and long ones from the item in which they differ."""
    if max(map(len, texts)) <= LENGTH:
        return [*texts]
    same = sum(1 for _ in takewhile(lambda letters: letters[0] == letters[1], zip(*texts, strict=False)))
    start = max(0, texts[0].rfind(", ", 0, same) + 2) if same > LENGTH / 4 else 0
    return [clipped(text, start) for text in texts]


def clipped(text: str, start: int = 0) -> str:
    """Return LENGTH characters of the text from `start` on, with dots where something is left out."""
    end = start + LENGTH
    return f"{'... ' if start else ''}{text[start:end]}{' ...' if end < len(text) else ''}"


def in_words(error: BaseException | None) -> str:
    """Return the name of the exception and its message, as in "ValueError: too large"."""
    name, colon, text = traceback.format_exception_only(error)[-1].strip().partition(": ")
    return name.rpartition(".")[2] + colon + text


def _asserted(error: AssertionError) -> str:
    return f"`{traceback.extract_tb(error.__traceback__)[-1].line}`"


def _where(error: BaseException, candidate: Any) -> str:
    """Return the last line of the candidate itself that was reached."""
    with contextlib.suppress(TypeError, OSError, ValueError, SyntaxError):
        found = excerpt(candidate)
        for frame in reversed(traceback.extract_tb(error.__traceback__)):
            if frame.filename == found.file and found.first <= (frame.lineno or 0) <= found.last:
                return f"\n  at `{frame.line}`"
    return ""
