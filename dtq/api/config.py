"""Setup: what an API server is told, in a form that goes to other processes."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from litestar.types import ASGIApp

from dtq.api.app import create_app
from dtq.api.auth import Tokens
from dtq.api.rates import Rates
from dtq.api.state import AppState
from dtq.queue.manager import QueueManager

MIB = 1 << 20


class ServerConfig(msgspec.Struct, frozen=True):
    """The store (its URL; empty for the one of a manager), and the options of APIServer. Holds secrets: not to be
    shown."""

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
        return f"Setup({self.store!r}, {len(self.tokens)} tokens)"

    def app(self, manager: QueueManager, rates: Rates, on_desk: Callable[[AppState], None]) -> ASGIApp:
        """The application over this manager."""
        return create_app(
            manager, tokens=Tokens(self.tokens), rates=rates, hosts=self.hosts, origins=self.origins, hub=self.hub,
            max_body=self.max_body, on_desk=on_desk,
        )  # fmt: skip
