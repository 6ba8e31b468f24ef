"""Map each error to its response: problem details (RFC 9457, application/problem+json).

error of a handler, of a check or of the framework --> status, title, detail, fields, headers --> response
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
    """A request was rejected or failed: the status, why, and which fields are wrong."""

    def __init__(
        self, status: int, detail: str, errors: Sequence[Reason] = (), headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(detail)
        self.status, self.detail, self.errors, self.headers = status, detail, list(errors), dict(headers or {})

    @classmethod
    def of_field(cls, status: int, field: str, reason: str) -> HTTPProblem:
        """Return a problem with one field."""
        return cls(status, f"{field}: {reason}", [Reason(field, reason)])


def to_response(_: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """Return the response to a request that raised this error."""
    return response_of(problem_of(error))


def response_of(problem: HTTPProblem) -> Response[bytes]:
    return Response(content_of(problem), status_code=problem.status, media_type=MEDIA_TYPE, headers=problem.headers)


async def send_response(response: Response[Any], send: Send) -> None:
    """Send a response whose content is bytes, without the framework."""
    content: bytes = response.content
    headers = {"content-type": str(response.media_type), "content-length": str(len(content)), **response.headers}
    start: Message = {
        "type": "http.response.start", "status": response.status_code or 200,
        "headers": [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()],
    }  # fmt: skip
    await send(start)
    await send({"type": "http.response.body", "body": content, "more_body": False})


def content_of(problem: HTTPProblem) -> bytes:
    """Return the problem as JSON."""
    title = HTTPStatus(problem.status).phrase
    return msgspec.json.encode(Problem(title, problem.status, problem.detail, problem.errors))


def problem_of(error: Exception) -> HTTPProblem:
    """Return the problem that this error is to the client. Log it if it is the server's."""
    match error:
        case HTTPProblem():
            return error
        case UnknownTask() | UnknownSchedule():
            return HTTPProblem(404, str(error))
        case IllegalTransition():
            return HTTPProblem(409, str(error))
        case InvalidTask():
            field = _field(str(error))
            is_conflict = field.field == "after"  # the state of other tasks does not allow it
            return HTTPProblem(409 if is_conflict else 422, str(error), [field])
        case UnknownType():
            return HTTPProblem(409, str(error), [Reason("type", str(error))])
        case QueueFull():
            return HTTPProblem(429, str(error), headers=LATER)
        case StoreError():
            log.error("the store failed: %s", error)
            detail = "the store cannot be reached or written: nothing was stored; try again later"
            return HTTPProblem(503, detail, headers=LATER)
        case DTQError():
            return HTTPProblem(409, str(error))
        case ValidationException():
            return _of_parameters(error)
        case HTTPException():
            return _of_framework(error)
    log.error("a request failed", exc_info=error)
    return HTTPProblem(500, "the server failed; see its log")


def of_body(error: msgspec.DecodeError) -> HTTPProblem:
    """Return the problem of a body that is not JSON (400) or does not have the required form (422)."""
    if not isinstance(error, msgspec.ValidationError):
        return HTTPProblem(400, f"the body is not JSON: {error}")
    reason, _, path = str(error).partition(" - at `$")
    field = path.removesuffix("`").lstrip(".") or "body"
    return HTTPProblem.of_field(422, field, reason)


def _field(message: str) -> Reason:
    """Return the field that dtq's error names at its beginning."""
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
