"""The REST application: the table of operations behind Starlette's router and two middlewares.

HostMiddleware --> CORSMiddleware --> router --> Resource --> handler --> AppState --> manager
auth.py            (if configured)               routing.py   routes/     state.py
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from dtq.api.auth import Authoriser, HostMiddleware, Tokens
from dtq.api.config import ServerConfig
from dtq.api.document import describe
from dtq.api.operations import OPERATIONS
from dtq.api.problems import to_response
from dtq.api.rates import Rates
from dtq.api.routing import routes_of
from dtq.api.state import AppState
from dtq.queue.manager import QueueManager


def create_app(
    manager: QueueManager, config: ServerConfig, rates: Rates, on_state: Callable[[AppState], None] = lambda state: None
) -> Starlette:
    """Return the application over this manager, which it never closes. It calls `on_state` when it starts up."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[dict[str, AppState]]:
        state = AppState(manager, config.max_body)
        on_state(state)
        try:
            yield {"app_state": state}  # of each request
        finally:
            await state.close()

    app = Starlette(
        routes=routes_of(OPERATIONS, Authoriser(Tokens(config.tokens), rates)),
        middleware=[Middleware(HostMiddleware, config), *_cors(config.origins)],
        exception_handlers={HTTPException: to_response},  # of the router; a Resource handles all others
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False  # a redirect would lose the prefix of a proxy
    app.state.document = msgspec.json.encode(describe(OPERATIONS))
    return app


def _cors(origins: Collection[str]) -> list[Middleware]:
    """Return what lets pages of these origins read the responses; HostMiddleware has rejected all others."""
    if not origins:
        return []
    methods, headers = ("GET", "POST", "PUT", "DELETE"), ("Authorization", "Content-Type", "Idempotency-Key")
    return [Middleware(CORSMiddleware, tuple(origins), methods, headers)]
