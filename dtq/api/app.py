"""The REST application: routes, guards and errors put together, and the document that describes them.

Gate (Host, Origin, headers) --> Litestar: routing --> Authoriser --> handler --> Desk --> manager, combiner, feed
                             `-> Express: adding tasks, the same but for the routing
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
from dtq.api.routes import flows, schedules, status, tasks
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
    on_desk: Callable[[AppState], None] = lambda desk: None,
) -> ASGIApp:
    """The application over this manager, which stays open. `on_desk` hears of the desk when the server has started."""

    @asynccontextmanager
    async def life(app: Litestar) -> AsyncIterator[None]:
        app.state.desk = desk = AppState(manager)
        on_desk(desk)
        try:
            yield
        finally:
            await desk.close()

    authorise = Authoriser(tokens, rates)
    handlers = [*tasks.ROUTES, *flows.ROUTES, *schedules.ROUTES, *status.ROUTES]
    app = Litestar(
        [*_options(handlers), *handlers],
        before_request=authorise,
        exception_handlers={Exception: to_response},
        lifespan=[life],
        state=State({"document": msgspec.json.encode(describe(handlers))}),
        request_max_body_size=max_body,
        cors_config=_cors(origins) if origins else None,
        openapi_config=None,
        logging_config=None,  # or it would set up the logging of the whole process
        debug=False,
    )
    outer = app if origins else Express(app, authorise)  # pages of other servers: only the framework knows of CORS
    return HostMiddleware(outer, hosts, origins, hub)


def _options(handlers: Sequence[HTTPRouteHandler]) -> list[HTTPRouteHandler]:
    """For each path what tells its methods. (Litestar's own knows those of the first handler only.)"""
    methods: dict[str, set[str]] = {}
    for handler in handlers:
        for path in handler.paths:
            methods.setdefault(path, {"OPTIONS"}).update(handler.http_methods)
    return [_tell_methods(path, ", ".join(sorted(known))) for path, known in methods.items()]


def _tell_methods(path: str, allowed: str) -> HTTPRouteHandler:
    @route(path, http_method="OPTIONS", opt={"needs": "nothing"}, include_in_schema=False)
    async def tell_methods() -> Response[None]:
        return Response(None, status_code=204, media_type=None, headers={"Allow": allowed})

    return tell_methods


def _cors(origins: Collection[str]) -> CORSConfig:
    headers = ["Authorization", "Content-Type", "Idempotency-Key"]
    return CORSConfig(list(origins), allow_methods=["GET", "POST", "PUT", "DELETE"], allow_headers=headers)
