"""ServerConfig: the options of an API server, in a form that can be sent to another process."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from starlette.types import ASGIApp

from dtq.api.app import create_app
from dtq.api.auth import Tokens
from dtq.api.rates import Rates
from dtq.api.state import MIB, AppState
from dtq.queue.manager import QueueManager


class ServerConfig(msgspec.Struct, frozen=True):
    """The store's URL (empty: the manager is passed in) and the options of APIServer. It contains the tokens, so its
    repr leaves them out."""

    store: str = ""
    tokens: dict[str, str] = {}
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    hub: str = ""
    rate_limit: float | None = None
    max_body: int = MIB
    backlog_limit: int | None = None
    max_payload: int = MIB

    def __repr__(self) -> str:
        return f"ServerConfig({self.store!r}, {len(self.tokens)} tokens)"

    def app(self, manager: QueueManager, rates: Rates, on_state: Callable[[AppState], None]) -> ASGIApp:
        """Return the application over this manager."""
        return create_app(
            manager, tokens=Tokens(self.tokens), rates=rates, hosts=self.hosts, origins=self.origins, hub=self.hub,
            max_body=self.max_body, on_state=on_state,
        )  # fmt: skip
