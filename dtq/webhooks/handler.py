"""WebhookHandler: the handler of the type "dtq.webhook". An async one: who waits for a slow receiver takes no worker
from others. It gets only deliveries that the end of a task planted (`webhooks.is_genuine`).

    secret, by its name --> sign (Standard Webhooks 1.0.0) --> resolve the name, once --> Guard: every address is public
                                                          --> connect to one of those very addresses, POST, look

    2xx            delivered                          410             given up for good
    Retry-After    tried again when it says           all else        tried again, by the backoff of the task
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
    """Whether what a delivery needs is there: pip install "dtq[webhooks]"."""
    return all(find_spec(name) for name in ("anyio", "httpcore", "standardwebhooks"))


class WebhookHandler:
    """The handler. Made in the queue's process, sent to its workers; what it needs is imported there."""

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
