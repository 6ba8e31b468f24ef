"""Webhook for alerts: posts each alert to a URL, signed and checked as the webhooks of tasks are.

    alert --> bounded queue --> thread: sign, check the address, POST --> URL

The monitor's own process delivers the alerts. They cannot be tasks of the queue, as the alert may be that no node runs.
So an alert is retried for about three minutes, not for a day, and alerts that wait when the monitor stops get one more
attempt. Alerts that could not be delivered are counted and logged.
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

QUEUE_CAPACITY = 100  # alerts that may wait
RETRY_DELAYS = (1.0, 5.0, 30.0, 120.0)  # seconds before each further attempt


class AlertWebhook:
    """A URL for alerts: `Monitor(webhook=AlertWebhook(url, secret="whsec_..."))`.

    Args:
        url: where each alert is posted.
        secret: signs the messages ("whsec_..."); None: they are not signed.
        webhook_networks: networks that may be reached besides public addresses, for example "10.0.0.0/8".
        webhook_http: whether a URL without TLS is allowed.

    Raises:
        DTQError: an option is not allowed, or the packages for webhooks are missing.
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
        """Try once to deliver the alert. Raises the error if it fails."""
        from dtq.webhooks import delivery

        async with asyncio.timeout(delivery.TIMEOUT):
            await delivery.post(delivery.SignedRequest.of(self.payload(alert), id, self.secrets), self.guard)


class AlertSender:
    """Delivers alerts in order, on its own thread. `send` never blocks."""

    def __init__(self, target: AlertWebhook) -> None:
        self.lost = 0
        self.trouble: str | None = None  # of the latest attempt
        self._target = target
        self._queue: queue.Queue[Alert | None] = queue.Queue(QUEUE_CAPACITY)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="dtq-alerts", daemon=True)
        self._thread.start()

    def send(self, alert: Alert) -> None:
        """Put the alert into the queue. If the queue is full, count it as lost."""
        try:
            self._queue.put_nowait(alert)
        except queue.Full:
            self.lost += 1

    def _run(self) -> None:
        while not (self._closing.is_set() and self._queue.empty()):
            alert = self._queue.get()
            if alert is not None and not self._deliver(alert):
                self.lost += 1
                log.error("the webhook could not be told that %s: %s", alert.message, self.trouble)

    def _deliver(self, alert: Alert) -> bool:
        id = new_id(alert.at)  # the same at every attempt
        for delay in (*RETRY_DELAYS, None):
            try:
                asyncio.run(self._target.deliver(alert, id))
                self.trouble = None
                return True
            except Exception as error:
                self.trouble = f"{type(error).__name__}: {error}"
                if delay is None or _is_final(error) or self._closing.is_set():
                    break
                wait = error.delay if isinstance(error, Retry) and error.delay is not None else delay
                self._closing.wait(min(wait, max(RETRY_DELAYS)))
        return False

    def close(self, timeout: float = 5.0) -> None:
        """Try each alert that waits once more, for at most `timeout` seconds in all."""
        self._closing.set()
        with suppress(queue.Full):
            self._queue.put(None, timeout=timeout)
            self._thread.join(timeout)


def _is_final(error: Exception) -> bool:
    from dtq.webhooks.delivery import Gone

    return isinstance(error, (Refused, Gone, LookupError))
