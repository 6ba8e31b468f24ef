"""Express: a shorter way for requests that add tasks.

The framework's routing and response cost as much as everything else together, so POST /tasks goes around both:

HostMiddleware --POST /tasks--> Express: Authoriser --> add_tasks --> response
               --all others---> Litestar: routing --> Authoriser --> handler --> response

The handler, the checks before it and the errors are the same.
"""

from __future__ import annotations

from litestar import Litestar
from litestar.enums import ScopeType
from litestar.routes import HTTPRoute
from litestar.types import Receive, Scope, Send

from dtq.api.auth import Authoriser
from dtq.api.problems import send_response, to_response
from dtq.api.requests import Asked
from dtq.api.routes.tasks import add_tasks

PATH = "/tasks"


class Express:
    """An ASGI application that answers POST /tasks, and passes all other requests on to the framework."""

    def __init__(self, app: Litestar, authorise: Authoriser) -> None:
        self._app = app
        self._authorise = authorise
        routes = {route.path: route for route in app.routes if isinstance(route, HTTPRoute)}
        self._handler, _ = routes[PATH].route_handler_map["POST"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != ScopeType.HTTP or scope["path"] != PATH or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        scope["litestar_app"], scope["route_handler"], scope["state"] = self._app, self._handler, {}
        request = Asked(scope, receive, send)
        try:
            await self._authorise(request)
            response = await add_tasks.fn(request)
        except Exception as error:
            response = to_response(request, error)
        await send_response(response, send)
