"""Delivery: sign one webhook, send it to a checked address, and interpret the response.

It uses httpcore and no client above it: httpcore opens connections in one place, the network backend, and the address
guard stands there. TLS and the Host header keep the name of the URL, redirects are not followed, and proxies of the
environment are not used.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpcore
import msgspec
from standardwebhooks.webhooks import Webhook

from dtq.errors import Retry
from dtq.task.codec import to_json
from dtq.webhooks.address_guard import AddressGuard, Refused, Secrets

TIMEOUT = 20.0  # seconds for one delivery
MAX_BODY = 2048  # bytes that are read of a response, and only of one without success
MAX_WAIT = 86400.0  # seconds that a Retry-After header may demand
Resolve = Callable[[str, int], Awaitable[list[str]]]


class DeliveryError(Exception):
    """The receiver did not accept this attempt."""


class Gone(Exception):
    """The receiver answered 410: it accepts no more of these webhooks."""


class SignedRequest(msgspec.Struct, frozen=True):
    """The POST request of one delivery."""

    url: str
    headers: dict[str, str]
    content: bytes

    @classmethod
    def of(cls, payload: dict[str, Any], id: str, secrets: Secrets) -> SignedRequest:
        """Return the request for a delivery with this payload and id, signed at this moment. Raise LookupError if this
        node does not have the secret."""
        content, now = to_json(payload["body"]), datetime.now(UTC)
        headers = {
            "content-type": "application/json",
            "user-agent": "dtq",
            "webhook-id": id,
            "webhook-timestamp": str(int(now.timestamp())),
        }
        if payload["secret"] is not None:
            keys = secrets.of(payload["secret"])
            headers["webhook-signature"] = " ".join(Webhook(key).sign(id, now, content.decode()) for key in keys)
        return cls(payload["url"], headers, content)


async def resolve(host: str, port: int) -> list[str]:
    """Return the addresses of a host, each once."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


class GuardedBackend(httpcore.AsyncNetworkBackend):
    """Opens connections only to checked addresses: resolves a name once, checks all its addresses, and connects to one
    of these."""

    def __init__(
        self, guard: AddressGuard, resolve: Resolve = resolve, inner: httpcore.AsyncNetworkBackend | None = None
    ) -> None:
        self._guard = guard
        self._resolve = resolve
        self._inner = inner or httpcore.AnyIOBackend()

    async def connect_tcp(
        self, host: str, port: int, timeout: float | None = None, local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:  # fmt: skip
        addresses = await self._resolve(host, port)
        self._guard.check(host, addresses)
        problem: Exception = Refused(f"{host} has no address")
        for address in addresses:
            try:
                return await self._inner.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                problem = error
        raise problem

    async def sleep(self, seconds: float) -> None:
        await self._inner.sleep(seconds)


async def post(
    message: SignedRequest, guard: AddressGuard, backend: httpcore.AsyncNetworkBackend | None = None
) -> dict[str, Any]:
    """Send the request. Return {"status": 204}. Raise Refused or Gone if further attempts are useless, Retry if the
    receiver names a time, DeliveryError after any other response without success."""
    url = httpcore.URL(message.url)
    guard.check_scheme(url.scheme.decode())
    async with (
        httpcore.AsyncConnectionPool(network_backend=backend or GuardedBackend(guard)) as pool,
        pool.stream("POST", url, headers=list(message.headers.items()), content=message.content) as response,
    ):
        if not 200 <= response.status < 300:
            await _raise_for_status(response, url.host.decode())
        return {"status": response.status}


async def _raise_for_status(response: httpcore.Response, host: str) -> None:
    """Raise the exception for a response without success."""
    answered = f"{host} answered {response.status}{await _excerpt(response)}"
    if response.status == 410:
        raise Gone(f"{answered}: it accepts no more of these webhooks")
    if 300 <= response.status < 400:
        raise DeliveryError(f"{answered}: redirects are not followed")
    if (wait := _retry_after(response)) is not None:
        raise Retry(answered, delay=wait)
    raise DeliveryError(answered)


async def _excerpt(response: httpcore.Response) -> str:
    """Return the beginning of the body, in parentheses; "" if it is empty."""
    body = b""
    async for chunk in response.aiter_stream():
        body += chunk
        if len(body) >= MAX_BODY:
            break
    text = " ".join(body[:MAX_BODY].decode("utf-8", "replace").split())[:200]
    return f" ({text})" if text else ""


def _retry_after(response: httpcore.Response) -> float | None:
    """Return the seconds that the Retry-After header demands, as a number or a date: at least one, at most a day. None
    without a valid header."""
    given = {name.lower(): value for name, value in response.headers}.get(b"retry-after")
    if given is None:
        return None
    text = given.decode("latin-1").strip()
    try:
        seconds = float(text) if text.isdecimal() else (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds()
    except (ValueError, TypeError):
        return None
    return min(max(seconds, 1.0), MAX_WAIT)
