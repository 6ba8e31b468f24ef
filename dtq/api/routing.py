"""Routing: from a request to the handler of its operation, and from what that returns to the response.

router --path--> Resource --method--> Operation: token and scope --> query, headers, body --> handler --> response
                 HEAD as GET; OPTIONS             401, 403, 429      400, 413, 415, 422

The table of operations is in operations.py.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar
from urllib.parse import unquote

import msgspec
import starlette.requests
from starlette.convertors import Convertor, register_url_convertor
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from dtq.api.auth import ANYONE, Authoriser, Token
from dtq.api.parameters import parse_headers, parse_query
from dtq.api.problems import HTTPProblem, to_response
from dtq.api.requests import JSON, decoder, parse_body, require_json
from dtq.api.state import AppState
from dtq.queue.manager import QueueManager

T = TypeVar("T")


class Request(starlette.requests.Request):
    """A request, as handlers get it. `token` is the one that it was sent with."""

    token: Token = ANYONE

    @property
    def app_state(self) -> AppState:
        state: AppState = self.scope["state"]["app_state"]
        return state

    @property
    def manager(self) -> QueueManager:
        return self.app_state.manager

    async def call(self, function: Callable[..., T], *arguments: Any, **options: Any) -> T:
        """Return what the function returns. It runs in a thread, as it may block on the store."""
        return await self.app_state.call(function, *arguments, **options)

    async def body(self) -> bytes:
        """Return the body. Raises HTTPProblem (413) if it is too large."""
        if not hasattr(self, "_body"):
            received, limit = bytearray(), self.app_state.max_body
            async for chunk in self.stream():
                received += chunk
                if len(received) > limit:
                    raise HTTPProblem(413, f"the body has more than {limit:,} bytes")
            self._body = bytes(received)
        return self._body


class JSONResponse(Response):
    """A response with this value as JSON."""

    media_type = JSON

    def render(self, content: Any) -> bytes:
        return msgspec.json.encode(content)


@dataclass(frozen=True)
class Operation:
    """One operation of the API: a line of the table, from which the route and its description are made.

    Args:
        method: the HTTP method; a GET also answers HEAD.
        path: the path. The handler gets each {name} in it.
        scope: the scope of the tokens that may use it; None: no token is needed.
        handler: takes the Request, the names in the path, and `query`, `headers` and `body` if these have a type.
        responses: status -> type of the body. The first is for a value that the handler returns; it returns a Response
            for the others. Empty: the operation is not in the document.
        query: the struct of the query's parameters.
        headers: the struct of the request's headers.
        body: the type of the body.
        media_type: of the responses.
    """

    method: str
    path: str
    scope: str | None
    handler: Callable[..., Awaitable[Any]]
    responses: dict[int, Any]
    query: type[msgspec.Struct] | None = None
    headers: type[msgspec.Struct] | None = None
    body: Any = None
    media_type: str = JSON

    @property
    def names(self) -> list[str]:
        """The names in the path."""
        return re.findall(r"{(\w+)}", self.path)

    @cached_property
    def _decode(self) -> Callable[[bytes], Any]:
        return decoder(self.body)

    async def respond(self, request: Request) -> Response:
        """Return the response to an authorised request. Raises HTTPProblem, or what the handler raises."""
        arguments: dict[str, Any] = {}
        if self.query is not None:
            arguments["query"] = parse_query(request.query_params.multi_items(), self.query)
        if self.headers is not None:
            arguments["headers"] = parse_headers(request.headers, self.headers)
        if self.body is not None:
            require_json(request.headers.get("content-type", ""))
            arguments["body"] = parse_body(await request.body(), self._decode, request.token)
        returned = await self.handler(request, **request.path_params, **arguments)
        if isinstance(returned, Response):
            return returned
        status = next(iter(self.responses))
        return Response(status_code=status) if self.responses[status] is None else JSONResponse(returned, status)


class Resource:
    """The operations of one path, as an ASGI application."""

    def __init__(self, operations: Sequence[Operation], authoriser: Authoriser) -> None:
        self._operations = {operation.method: operation for operation in operations}
        if "GET" in self._operations:
            self._operations["HEAD"] = self._operations["GET"]
        self._authoriser = authoriser
        self.methods = [*self._operations, "OPTIONS"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive, send)
        try:
            response = await self._respond(request)
        except Exception as error:
            response = await to_response(request, error)
        await response(scope, receive, send)

    async def _respond(self, request: Request) -> Response:
        if request.method == "OPTIONS":
            return Response(status_code=204, headers={"Allow": ", ".join(sorted(self.methods))})
        operation = self._operations[request.method]
        if operation.scope is not None:
            authorization = request.headers.get("authorization", "")
            request.token = self._authoriser.authorise(authorization, operation.scope)
        return await operation.respond(request)


class NameConvertor(Convertor[str]):
    """Decodes a name in a path. The router sees the path as it was sent, so a %2F in a name separates nothing."""

    regex = "[^/]+"

    def convert(self, value: str) -> str:
        return unquote(value)

    def to_string(self, value: str) -> str:
        raise NotImplementedError("no handler makes the address of another route")


register_url_convertor("name", NameConvertor())


def routes_of(operations: Sequence[Operation], authoriser: Authoriser) -> list[Route]:
    """Return a route for each path of the table, in its order."""
    by_path: dict[str, list[Operation]] = {}
    for operation in operations:
        by_path.setdefault(operation.path, []).append(operation)
    resources = {path: Resource(some, authoriser) for path, some in by_path.items()}
    return [Route(path.replace("}", ":name}"), each, methods=each.methods) for path, each in resources.items()]
