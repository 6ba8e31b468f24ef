"""The REST application: routes, authorisation and error handling put together, and the document that describes them.

HostMiddleware (Host, Origin, headers) --> Litestar: routing --> Authoriser --> handler --> AppState --> manager
                                       `-> Express: adding tasks, with another routing
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager

import msgspec
from litestar import Litestar, Response, route
from litestar.config.cors import CORSConfig
from litestar.datastructures import State
from litestar.handlers import HTTPRouteHandler
from litestar.types import ASGIApp

from dtq.api.auth import Authoriser, HostMiddleware, Tokens
from dtq.api.document import describe
from dtq.api.express import Express
from dtq.api.problems import to_response
from dtq.api.rates import Rates
from dtq.api.routes import dead_letters, flows, limits, schedules, status, tasks
from dtq.api.state import AppState
from dtq.queue.manager import QueueManager

MIB = 1 << 20


def create_app(
    manager: QueueManager,
    *,
    tokens: Tokens,
    rates: Rates,
    hosts: Collection[str] = (),
    origins: Collection[str] = (),
    hub: str = "",
    max_body: int = MIB,
    on_state: Callable[[AppState], None] = lambda state: None,
) -> ASGIApp:
    """Return the application over this manager, which it never closes. It calls `on_state` when it starts up."""

    @asynccontextmanager
    async def lifespan(app: Litestar) -> AsyncIterator[None]:
        app.state.app_state = state = AppState(manager)
        on_state(state)
        try:
            yield
        finally:
            await state.close()

    authorise = Authoriser(tokens, rates)
    handlers = [route for module in (tasks, flows, dead_letters, schedules, limits, status) for route in module.ROUTES]
    app = Litestar(
        [*_options(handlers), *handlers],
        before_request=authorise,
        exception_handlers={Exception: to_response},
        lifespan=[lifespan],
        state=State({"document": msgspec.json.encode(describe(handlers))}),
        request_max_body_size=max_body,
        cors_config=_cors(origins) if origins else None,
        openapi_config=None,
        logging_config=None,  # the default would set up logging for the whole process
        debug=False,
    )
    outer = app if origins else Express(app, authorise)  # only the framework answers to pages of other origins (CORS)
    return HostMiddleware(outer, hosts, origins, hub)


def _options(handlers: Sequence[HTTPRouteHandler]) -> list[HTTPRouteHandler]:
    """Return an OPTIONS handler for each path. (Litestar's own lists the methods of the path's first handler only.)"""
    methods: dict[str, set[str]] = {}
    for handler in handlers:
        for path in handler.paths:
            methods.setdefault(path, {"OPTIONS"}).update(handler.http_methods)
    return [_options_of(path, ", ".join(sorted(allowed))) for path, allowed in methods.items()]


def _options_of(path: str, allowed: str) -> HTTPRouteHandler:
    @route(path, http_method="OPTIONS", opt={"needs": "nothing"}, include_in_schema=False)
    async def options() -> Response[None]:
        return Response(None, status_code=204, media_type=None, headers={"Allow": allowed})

    return options


def _cors(origins: Collection[str]) -> CORSConfig:
    headers = ["Authorization", "Content-Type", "Idempotency-Key"]
    return CORSConfig(list(origins), allow_methods=["GET", "POST", "PUT", "DELETE"], allow_headers=headers)
