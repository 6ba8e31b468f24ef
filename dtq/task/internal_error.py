"""Describe an exception that dtq itself raised while it handled a task."""

from __future__ import annotations

import traceback

from dtq.task.model import ErrorInfo

MAX_TRACEBACK = 16 << 10  # characters
MAX_MESSAGE = 4 << 10
MAX_WORDS = 500  # characters


def internal_error(error: Exception) -> ErrorInfo:
    """Return the ErrorInfo of a task for an exception that the loop raised, not the handler."""
    text = "".join(traceback.format_exception(error))
    return ErrorInfo("InternalError", printable(describe(error))[:MAX_MESSAGE], printable(text)[-MAX_TRACEBACK:])


def printable(text: str) -> str:
    """Return the text with lone surrogates escaped, so that it can be stored as UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode()


def describe(error: Exception) -> str:
    """Return type and message of an exception; only the type where its `__str__` fails."""
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:
        return type(error).__name__
