"""From an error to the answer that tells of it: problem details (RFC 9457), whatever raised it.

what a handler, a guard or the framework raises --> status, title, detail, fields, headers --> application/problem+json
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

import msgspec
from litestar import Request, Response
from litestar.exceptions import HTTPException, ValidationException
from litestar.types import Message, Send

from dtq.api.responses import Problem, Reason
from dtq.errors import (
    DTQError,
    IllegalTransition,
    InvalidTask,
    QueueFull,
    StoreError,
    UnknownSchedule,
    UnknownTask,
    UnknownType,
)

log = logging.getLogger("dtq")
MEDIA_TYPE = "application/problem+json"
LATER = {"Retry-After": "1"}


class HTTPProblem(Exception):
    """The request is not done, for this reason."""

    def __init__(
        self, status: int, detail: str, errors: Sequence[Reason] = (), headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(detail)
        self.status, self.detail, self.errors, self.headers = status, detail, list(errors), dict(headers or {})


def to_response(_: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """The answer to a request that ended in this error."""
    return response_of(as_refusal(error))


def response_of(refusal: HTTPProblem) -> Response[bytes]:
    return Response(body(refusal), status_code=refusal.status, media_type=MEDIA_TYPE, headers=refusal.headers)


async def give(response: Response[Any], send: Send) -> None:
    """Sends an answer whose content is bytes, without the framework."""
    content: bytes = response.content
    headers = {"content-type": str(response.media_type), "content-length": str(len(content)), **response.headers}
    start: Message = {
        "type": "http.response.start", "status": response.status_code or 200,
        "headers": [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()],
    }  # fmt: skip
    await send(start)
    await send({"type": "http.response.body", "body": content, "more_body": False})


def body(refusal: HTTPProblem) -> bytes:
    title = HTTPStatus(refusal.status).phrase
    return msgspec.json.encode(Problem(title, refusal.status, refusal.detail, refusal.errors))


def as_refusal(error: Exception) -> HTTPProblem:
    match error:
        case HTTPProblem():
            return error
        case UnknownTask() | UnknownSchedule():
            return HTTPProblem(404, str(error))
        case IllegalTransition():
            return HTTPProblem(409, str(error))
        case InvalidTask():
            field = _field(str(error))
            return HTTPProblem(
                409 if field.field == "after" else 422, str(error), [field]
            )  # other tasks are against it
        case UnknownType():
            return HTTPProblem(409, str(error), [Reason("type", str(error))])
        case QueueFull():
            return HTTPProblem(429, str(error), headers=LATER)
        case StoreError():
            log.error("the store failed: %s", error)
            return HTTPProblem(
                503, "the store cannot be reached or written: nothing was stored; try again", headers=LATER
            )
        case DTQError():
            return HTTPProblem(409, str(error))
        case ValidationException():
            return _of_parameters(error)
        case HTTPException():
            return _of_framework(error)
    log.error("a request failed", exc_info=error)
    return HTTPProblem(500, "the server failed; its log says more")


def of_body(error: msgspec.DecodeError) -> HTTPProblem:
    """The body is no JSON (400), or not of the right form (422)."""
    if not isinstance(error, msgspec.ValidationError):
        return HTTPProblem(400, f"the body is not JSON: {error}")
    reason, _, path = str(error).partition(" - at `$")
    field = path.removesuffix("`").lstrip(".") or "body"
    return HTTPProblem(422, f"{field}: {reason}", [Reason(field, reason)])


def _field(message: str) -> Reason:
    """dtq's errors begin with the name of the field."""
    found = re.match(r"(\[\d+\]\.)?([a-z_]+) (?:is|names|makes) ", message)
    return Reason(f"{found[1] or ''}{found[2]}" if found else "body", message)


def _of_parameters(error: ValidationException) -> HTTPProblem:
    extra = error.extra if isinstance(error.extra, list) else []
    reasons = [Reason(str(one.get("key", "")), str(one.get("message", ""))) for one in extra]
    detail = "; ".join(f"{one.field}: {one.reason}" for one in reasons) or str(error.detail)
    return HTTPProblem(422, detail, reasons)


def _of_framework(error: HTTPException) -> HTTPProblem:
    headers = {name: value for name, value in (error.headers or {}).items() if name.lower() != "content-type"}
    return HTTPProblem(error.status_code, str(error.detail), headers=headers)
