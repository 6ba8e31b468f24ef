"""Bodies: from what a request carries to what a route asks for, and nothing else.

Content-Type --> JSON, strictly of the route's shape --> payloads not too deep --> a secret for admins only
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import msgspec
from litestar import Request
from litestar.datastructures import State

from dtq.api.auth import ADMIN
from dtq.api.problems import HTTPProblem, of_body
from dtq.api.requests import NewFlow, NewSchedule, NewWork, decoder
from dtq.api.responses import Reason
from dtq.task.codec import MAX_DEPTH, is_nested, is_too_deep

JSON = "application/json"

Asked = Request[Any, Any, State]


class Body:
    """What a route takes: `opt={"body": Body(shape)}` tells the document, `await BODY.of(request)` gives it."""

    def __init__(self, shape: Any) -> None:
        self.shape = shape
        self._decode: Callable[[bytes], Any] = decoder(shape)

    async def of(self, request: Asked) -> Any:
        """Raises HTTPProblem, which says what is wrong with it."""
        _require_json(request)
        content = await request.body()
        value = self._decoded(content)
        if is_too_deep(content) and any(is_nested(work.payload) for work in _works(value)):
            raise _too_deep()
        if request.scope["state"].get("level", ADMIN) < ADMIN and any(map(_names_secret, _works(value))):
            raise HTTPProblem(403, "a webhook with a secret needs a token of scope admin")
        return value

    def _decoded(self, content: bytes) -> Any:
        try:
            return self._decode(content)
        except msgspec.DecodeError as error:
            raise of_body(error) from None
        except RecursionError:
            raise _too_deep() from None


def _require_json(request: Asked) -> None:
    given = request.headers.get("content-type", "")
    kind, _, parameters = given.partition(";")
    if kind.strip().lower() != JSON or parameters.strip().lower().replace('"', "") not in ("", "charset=utf-8"):
        raise HTTPProblem(415, f"the body is {given[:100] or 'of no type'!r}: send JSON, as Content-Type: {JSON}")


def _too_deep() -> HTTPProblem:
    reason = f"there are more than {MAX_DEPTH} levels of nested arrays and objects"
    return HTTPProblem(422, reason, [Reason("payload", reason)])


def _names_secret(work: NewWork) -> bool:
    """Whoever may name a secret may have anything signed with it, and sent anywhere."""
    return work.webhook is not None and work.webhook.secret is not None


def _works(value: Any) -> Iterator[NewWork]:
    match value:
        case NewWork():
            yield value
        case NewSchedule():
            yield value.task
        case NewFlow():
            yield from value.steps.values()
        case list():
            yield from value
