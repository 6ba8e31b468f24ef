"""ServerConfig: the options of an API server, in a form that can be sent to another process."""

from __future__ import annotations

import msgspec

MIB = 1 << 20


class ServerConfig(msgspec.Struct, frozen=True):
    """The store's URL (empty: the manager is passed in) and the options of APIServer. `hosts` are those of proxies. It
    contains the tokens, so its repr leaves them out."""

    store: str = ""
    tokens: dict[str, str] = {}
    host: str = ""
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    hub: str = ""
    rate_limit: float | None = None
    max_body: int = MIB
    backlog_limit: int | None = None
    max_payload: int = MIB

    def __repr__(self) -> str:
        return f"ServerConfig({self.store!r}, {len(self.tokens)} tokens)"
