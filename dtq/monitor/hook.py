"""Webhook for alerts: a URL is told of each, signed and guarded as the webhooks of tasks are.

    alert --> bounded queue --> thread of its own --sign, look at the address, POST--> URL

It goes out from the process of the monitor, and not as a task of the queue that is watched: what there is to say may be
that nobody works there. So it is tried for about three minutes, not for a day, and what is left when the monitor stops
has one more attempt. What could not be delivered is counted, and told of.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from dtq.errors import DTQError, Retry
from dtq.monitor.alerts import Alert
from dtq.task.model import new_id
from dtq.webhooks import handler as webhook_handler
from dtq.webhooks.address_guard import AddressGuard, Refused, Secrets

log = logging.getLogger("dtq")

CAPACITY = 100  # alerts that may wait
PAUSES = (1.0, 5.0, 30.0, 120.0)  # seconds before another attempt


class AlertWebhook:
    """Where alerts are posted: `Monitor(webhook=AlertWebhook(url, secret="whsec_..."))`.

    `webhook_networks` are those that it may reach beside public addresses, `webhook_http` allows a URL without TLS.
    Raises DTQError.
    """

    def __init__(
        self, url: str, secret: str | None = None, *, webhook_networks: Sequence[str] = (), webhook_http: bool = False
    ) -> None:
        if not webhook_handler.is_installed():
            raise DTQError('a webhook needs further packages: pip install "dtq[webhooks]"')
        if not isinstance(url, str) or not url.startswith(("https://", "http://") if webhook_http else "https://"):
            raise DTQError(f"the webhook's URL is {url!r}; allowed: https://..., http://... with webhook_http=True")
        self.url = url
        self.secrets = Secrets({} if secret is None else {"alerts": secret})
        self.guard = AddressGuard(webhook_networks, webhook_http)
        self._secret = None if secret is None else "alerts"

    def payload(self, alert: Alert) -> dict[str, Any]:
        data = {"metric": alert.metric, "value": alert.value, "threshold": alert.threshold, "message": alert.message}
        timestamp = f"{datetime.fromtimestamp(alert.at, UTC):%Y-%m-%dT%H:%M:%S.%f}Z"
        body = {"type": alert.name.replace(":", "."), "timestamp": timestamp, "data": data}
        return {"url": self.url, "secret": self._secret, "body": body}

    async def deliver(self, alert: Alert, id: str) -> None:
        """One attempt. Raises what went wrong."""
        from dtq.webhooks import delivery

        async with asyncio.timeout(delivery.TIMEOUT):
            await delivery.post(delivery.SignedRequest.of(self.payload(alert), id, self.secrets), self.guard)


class Hook:
    """Delivers alerts, one after the other, and never keeps whoever raises them."""

    def __init__(self, target: AlertWebhook) -> None:
        self.lost = 0
        self.trouble: str | None = None  # of the latest attempt
        self._target = target
        self._queue: queue.Queue[Alert | None] = queue.Queue(CAPACITY)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="dtq-alerts", daemon=True)
        self._thread.start()

    def tell(self, alert: Alert) -> None:
        try:
            self._queue.put_nowait(alert)
        except queue.Full:
            self.lost += 1

    def _run(self) -> None:
        while not (self._closing.is_set() and self._queue.empty()):
            alert = self._queue.get()
            if alert is not None and not self._deliver(alert):
                self.lost += 1
                log.error("nobody was told by webhook that %s: %s", alert.message, self.trouble)

    def _deliver(self, alert: Alert) -> bool:
        id = new_id(alert.at)  # the same at every attempt
        for pause in (*PAUSES, None):
            try:
                asyncio.run(self._target.deliver(alert, id))
                self.trouble = None
                return True
            except Exception as error:
                self.trouble = f"{type(error).__name__}: {error}"
                if pause is None or _is_final(error) or self._closing.is_set():
                    break
                wait = error.delay if isinstance(error, Retry) and error.delay is not None else pause
                self._closing.wait(min(wait, max(PAUSES)))
        return False

    def close(self, timeout: float = 5.0) -> None:
        """Each that waits has one more attempt, but all no longer than this."""
        self._closing.set()
        with suppress(queue.Full):
            self._queue.put(None, timeout=timeout)
            self._thread.join(timeout)


def _is_final(error: Exception) -> bool:
    from dtq.webhooks.delivery import Gone

    return isinstance(error, (Refused, Gone, LookupError))
