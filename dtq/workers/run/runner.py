"""Run one call, wherever that is: in a worker process, in a thread, or in the thread that dispatches it.

    Call --> start --> load --> decode --> call --> encode --> Done     (a step that raises --> Done with an ErrorInfo)
               |                             |
               +--> Started                  +--> Progress, Log

No exception of a handler escapes: each becomes an ErrorInfo. What the handler prints becomes the task's log. Only the
death of the process is left to the pool. `perform` and `perform_async` are the same pipeline, sync and async.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from time import time
from typing import Any

from dtq.errors import MAX_DELAY, Discard, HandlerError, InvalidTask, Retry
from dtq.task.codec import TOO_DEEP, from_json, is_too_deep, to_json
from dtq.task.model import ErrorInfo
from dtq.workers import wire
from dtq.workers.run.context import Context as Context
from dtq.workers.run.context import Send, current, encodable, route_prints
from dtq.workers.run.loader import Handlers as Handlers
from dtq.workers.run.loader import Loaded as Loaded
from dtq.workers.wire import MAX_RESULT

MakeInterruptible = Callable[[Context], AbstractContextManager[Any]]

MAX_MESSAGE = 4 << 10  # characters
MAX_TRACEBACK = 16 << 10  # characters
MAX_FRAMES = 200  # the innermost frames of a traceback

_OWN_FILES = str(Path(__file__).parents[1]) + os.sep  # all files of dtq/workers


class Interrupted(BaseException):
    """Raised in a handler from outside. A BaseException, so that `except Exception` does not swallow it."""


class TimedOut(Interrupted):
    """The attempt has run longer than its timeout."""


class Stopped(Interrupted):
    """The task was cancelled while it ran."""


# --- the pipeline ----------------------------------------------------------------------------------------------------


def perform(
    handlers: Handlers,
    call: wire.Call,
    worker_id: str,
    send: Send,
    interruptible: MakeInterruptible = nullcontext,
    max_result: int = MAX_RESULT,
) -> wire.Done:
    """Run the call and return its report, which the caller sends. Never raise, whatever the handler does.

    `interruptible(context)` is entered around the handler alone: only there may an Interrupted be raised in this
    thread. The handler may be inside `send` at that moment, so `send` must not leave half a message.
    """
    context = Context(call, worker_id, send)
    token = current.set(context)
    try:
        loaded = _start(handlers, call, context, is_async=False)
        payload = from_json(call.payload)
        with interruptible(context):
            value = loaded.function(payload, context)
        return _succeed(context, value, max_result)
    except BaseException as error:
        return _fail(handlers, call, context, error)
    finally:
        current.reset(token)


async def perform_async(
    handlers: Handlers,
    call: wire.Call,
    worker_id: str,
    send: Send,
    interruptible: MakeInterruptible = nullcontext,
    max_result: int = MAX_RESULT,
) -> wire.Done:
    """Run the call of an `async def` handler. To stop it, set its context's `cancelled` and cancel the asyncio task."""
    context = Context(call, worker_id, send)
    token = current.set(context)
    try:
        loaded = _start(handlers, call, context, is_async=True)
        payload = from_json(call.payload)
        with interruptible(context):
            value = await _within_timeout(loaded.function, payload, context)
        return _succeed(context, value, max_result)
    except BaseException as error:
        return _fail(handlers, call, context, error)
    finally:
        current.reset(token)


def is_async(handlers: Handlers, call: wire.Call, send: Send) -> bool:
    """Return whether `perform_async` must run the call. Load the handler if necessary, and send Started before.

    If the handler cannot be loaded, return False: `perform` then reports the reason.
    """
    if not handlers.is_loaded(call.type):
        send(wire.Started(call.number, time(), loading=True))
    try:
        return handlers.load(call.type).is_async
    except HandlerError:
        return False


def was_interrupted(done: wire.Done) -> bool:
    """Return whether the attempt was interrupted: at its timeout, or because it was to stop."""
    return done.error is not None and done.error.type in ("Timeout", "Cancelled")


def _start(handlers: Handlers, call: wire.Call, context: Context, is_async: bool) -> Loaded:
    route_prints()
    loading = not handlers.is_loaded(call.type)
    context.start(loading)
    loaded = handlers.load(call.type)
    if loading:
        context.start(False)  # the timeout limits the handler's work, not its imports
    if loaded.is_async is not is_async:  # it was redefined after the caller called is_async
        raise HandlerError(f"the handler of {call.type!r} has just changed between `def` and `async def`: try again")
    return loaded


async def _within_timeout(function: Callable[..., Any], payload: Any, context: Context) -> Any:
    try:
        async with asyncio.timeout(context.timeout) as timer:
            return await function(payload, context)
    except TimeoutError as error:
        if timer.expired():
            raise TimedOut from error.__cause__
        raise  # the handler's own
    except asyncio.CancelledError as error:
        if context.cancelled:
            raise Stopped from error
        raise


def _succeed(context: Context, value: Any, limit: int) -> wire.Done:
    try:
        result = to_json(value)
    except InvalidTask as error:
        return _refuse(context, f"a handler returns plain data, but {error}{_hint(value)}")
    if is_too_deep(result):
        return _refuse(context, f"the result {TOO_DEEP}: flatten it, or return it as text")
    if len(result) > limit:
        size = f"{len(result):,} bytes of JSON, more than the limit of {limit:,}"
        return _refuse(context, f"the result is {size}: return a path or a key to it")
    return context.end(result)


def _refuse(context: Context, message: str) -> wire.Done:
    return context.end(error=ErrorInfo("ResultError", encodable(message)[:MAX_MESSAGE]), final=True)


def _hint(value: Any) -> str:
    if inspect.iscoroutine(value):
        value.close()  # else Python warns that it was never awaited
        return "; make the handler `async def` and await it there"
    if hasattr(value, "__next__") or hasattr(value, "__anext__"):
        return "; a handler returns its result at once: collect it in a list"
    return ""


# --- errors ----------------------------------------------------------------------------------------------------------


def _fail(handlers: Handlers, call: wire.Call, context: Context, error: BaseException) -> wire.Done:
    info = describe(error, context.timeout)
    if isinstance(error, Discard):
        return context.end(error=info, discarded=True)
    if isinstance(error, Retry):
        return context.end(error=info, delay=_delay(error))
    return context.end(error=info, final=not isinstance(error, Interrupted) and handlers.gives_up_on(call.type, error))


def _delay(error: Retry) -> float | None:
    """Return the delay that the handler asked for, or None, for the usual backoff, if it is not a valid delay."""
    delay: Any = getattr(error, "delay", None)
    is_number = isinstance(delay, (int, float)) and not isinstance(delay, bool)
    return float(delay) if is_number and 0 <= delay <= MAX_DELAY else None


def describe(error: BaseException, timeout: float) -> ErrorInfo:
    """Return the class, message and traceback of an exception, each within its limit, without frames of dtq."""
    name, message = type(error).__name__, _message(error)
    if isinstance(error, TimedOut):
        name, message = "Timeout", f"ran longer than its timeout of {timeout:g} s"
    elif isinstance(error, Stopped):
        name, message = "Cancelled", "stopped while it ran"
    elif isinstance(error, Discard):
        name, message = "Discarded", message or "its handler dropped it"
    elif isinstance(error, Retry):
        message = message or _cause(error) or "its handler asked for it"
    elif isinstance(error, (SystemExit, KeyboardInterrupt)):
        message = f"the handler raised {error!r}"
    return ErrorInfo(name, encodable(message)[:MAX_MESSAGE], encodable(_traceback(error))[-MAX_TRACEBACK:])


def _cause(error: BaseException) -> str:
    cause = error.__cause__
    return f"{type(cause).__name__}: {_message(cause)}" if cause is not None else ""


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as broken:
        return f"(its message cannot be shown: __str__ raised {type(broken).__name__})"


def _traceback(error: BaseException) -> str:
    if error.__traceback__ is None:
        return ""  # it was never raised
    try:
        trace = traceback.TracebackException(type(error), error, error.__traceback__, limit=-MAX_FRAMES, compact=True)
        _hide_own_frames(trace)
        return "".join(trace.format())
    except Exception as broken:  # an exception may be broken in many ways, and none of them may end the worker
        return f"(no traceback: formatting it raised {type(broken).__name__})"


def _hide_own_frames(trace: traceback.TracebackException) -> None:
    chain: list[traceback.TracebackException | None] = [trace]
    while chain:
        link = chain.pop()
        if link is not None:
            link.stack = traceback.StackSummary.from_list([f for f in link.stack if not _is_own(f.filename)])
            chain += [link.__cause__, link.__context__, *(link.exceptions or ())]


def _is_own(filename: str) -> bool:
    return filename.startswith((_OWN_FILES, "<frozen importlib"))
