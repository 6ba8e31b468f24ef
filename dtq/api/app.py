"""The REST application: routes, guards and errors put together, and the document that describes them.

Gate (Host, Origin, headers) --> Litestar: routing --> authorise --> handler --> Desk --> manager, combiner, feed
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager

import msgspec
from litestar import Litestar
from litestar.config.cors import CORSConfig
from litestar.datastructures import State
from litestar.types import ASGIApp

from dtq.api import routes, views
from dtq.api.desk import Desk
from dtq.api.document import describe
from dtq.api.guards import Gate, Tokens, authoriser
from dtq.api.problems import to_response
from dtq.api.rates import Rates
from dtq.manager import QueueManager

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
    on_desk: Callable[[Desk], None] = lambda desk: None,
) -> ASGIApp:
    """The application over this manager, which stays open. `on_desk` hears of the desk when the server has started."""

    @asynccontextmanager
    async def life(app: Litestar) -> AsyncIterator[None]:
        app.state.desk = desk = Desk(manager)
        on_desk(desk)
        try:
            yield
        finally:
            await desk.close()

    handlers = [*routes.ROUTES, *views.ROUTES]
    app = Litestar(
        handlers,
        guards=[authoriser(tokens, rates)],
        exception_handlers={Exception: to_response},
        lifespan=[life],
        state=State({"document": msgspec.json.encode(describe(handlers))}),
        request_max_body_size=max_body,
        cors_config=_cors(origins) if origins else None,
        openapi_config=None,
        debug=False,
    )
    return Gate(app, hosts, origins, hub)


def _cors(origins: Collection[str]) -> CORSConfig:
    headers = ["Authorization", "Content-Type", "Idempotency-Key"]
    return CORSConfig(list(origins), allow_methods=["GET", "POST", "DELETE"], allow_headers=headers)
