"""Map each error to its response: problem details (RFC 9457, application/problem+json).

error of a handler, of a check or of the framework --> status, title, detail, fields, headers --> response
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

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


class HTTPProblem(HTTPException):
    """A request was rejected or failed: the status, why, and which fields are wrong."""

    def __init__(
        self, status: int, detail: str, errors: Sequence[Reason] = (), headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(status, detail, headers)
        self.errors = list(errors)

    @classmethod
    def of_field(cls, status: int, field: str, reason: str) -> HTTPProblem:
        """Return a problem with one field."""
        return cls(status, f"{field}: {reason}", [Reason(field, reason)])


class ProblemResponse(Response):
    media_type = MEDIA_TYPE


async def to_response(_: Request, error: Exception) -> Response:
    """Return the response to a request that raised this error: a handler for Starlette's `exception_handlers`."""
    return response_of(problem_of(error))


def response_of(problem: HTTPProblem) -> Response:
    return ProblemResponse(content_of(problem), problem.status_code, problem.headers)


def content_of(problem: HTTPProblem) -> bytes:
    """Return the problem as JSON."""
    title = HTTPStatus(problem.status_code).phrase
    return msgspec.json.encode(Problem(title, problem.status_code, problem.detail, problem.errors))


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
        case HTTPException():  # of the router: 404, 405
            return HTTPProblem(error.status_code, error.detail, headers=error.headers)
        case ClientDisconnect():
            return HTTPProblem(400, "the client has closed the connection")
    log.error("a request failed", exc_info=error)
    return HTTPProblem(500, "the server failed; see its log")


def of_decoding(error: msgspec.DecodeError) -> HTTPProblem:
    """Return the problem of a body that is not JSON (400), or of a body or parameters of another form (422)."""
    if not isinstance(error, msgspec.ValidationError):
        return HTTPProblem(400, f"the body is not JSON: {error}")
    reason, _, path = str(error).partition(" - at `$")
    field = path.removesuffix("`").lstrip(".") or "body"
    return HTTPProblem.of_field(422, field, reason)


def _field(message: str) -> Reason:
    """Return the field that dtq's error names at its beginning."""
    found = re.match(r"(\[\d+\]\.)?([a-z_]+) (?:is|names|makes) ", message)
    return Reason(f"{found[1] or ''}{found[2]}" if found else "body", message)
