"""Describe an exception that dtq itself raised while it handled a task."""

from __future__ import annotations

import traceback

from dtq.task.model import ErrorInfo

MAX_TRACEBACK = 16 << 10  # characters
MAX_MESSAGE = 4 << 10
MAX_WORDS = 500  # characters


def internal_error(error: Exception) -> ErrorInfo:
    """Describe an exception that a step of the loop raised, not the handler."""
    text = "".join(traceback.format_exception(error))
    return ErrorInfo("InternalError", printable(describe(error))[:MAX_MESSAGE], printable(text)[-MAX_TRACEBACK:])


def printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def describe(error: Exception) -> str:
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:
        return type(error).__name__
