"""WebhookHandler: the handler of the type "dtq.webhook". It is async, so that a slow receiver does not occupy a worker.
It gets only genuine deliveries (`deliveries.is_genuine`).

    secret, by its name --> sign (Standard Webhooks 1.0.0) --> resolve the host name, once
        --> AddressGuard: every address is public or allowed --> connect to one of these addresses --> POST

    2xx            delivered                          410             never retried
    Retry-After    retried at that time               all else        retried, by the backoff of the delivery
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from dtq.webhooks.address_guard import AddressGuard, Secrets

CONCURRENCY = 32  # deliveries at once, in each worker
GIVE_UP_ON = ("dtq.webhooks.address_guard.Refused", "dtq.webhooks.delivery.Gone")


def is_installed() -> bool:
    """Return whether the packages that a delivery needs are installed: pip install "dtq[webhooks]"."""
    return all(find_spec(name) for name in ("anyio", "httpcore", "standardwebhooks"))


class WebhookHandler:
    """Signs and sends deliveries. The queue makes it and sends it to its workers, which import what it needs.

    Args:
        secrets: Name -> secret (whsec_...).
        networks: Networks that webhooks may reach besides public addresses.
        http: Allow URLs without TLS.
    """

    def __init__(self, secrets: Mapping[str, str], networks: Sequence[str] = (), http: bool = False) -> None:
        self.secrets = Secrets(secrets)
        self.guard = AddressGuard(networks, http)

    def __repr__(self) -> str:
        return f"<WebhookHandler {self.secrets!r}>"

    async def __call__(self, payload: dict[str, Any], context: Any) -> dict[str, Any]:
        from dtq.webhooks import delivery

        message = delivery.SignedRequest.of(payload, context.task_id, self.secrets)
        async with asyncio.timeout(delivery.TIMEOUT):
            return await delivery.post(message, self.guard)
