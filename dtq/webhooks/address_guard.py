"""Guard: where webhooks may go, and the secrets that they are signed with.

A URL comes from whoever adds a task, and the request is made from inside: without a guard it could reach what only the
inside can (server-side request forgery). So every address that a name has must be public, or of a network that the
configuration names.
"""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Mapping, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from dtq.errors import DTQError

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_NAT64 = IPv6Network("64:ff9b::/96")
_IPV4_MASK = 0xFFFFFFFF


class Refused(Exception):
    """This is not sent: the URL leads where webhooks may not go. Another attempt would be of no use."""


class AddressGuard:
    """Which addresses webhooks may reach: public ones, and those in `networks`. `http` allows URLs without TLS."""

    def __init__(self, networks: Sequence[str] = (), http: bool = False) -> None:
        self.http = http
        self._networks = [_network(text) for text in networks]

    def check_scheme(self, scheme: str) -> None:
        """Raises Refused."""
        if scheme != "https" and not (scheme == "http" and self.http):
            raise Refused(f"the URL is {scheme}:; allowed: https:, and http: with webhook_http=True")

    def check(self, host: str, addresses: Sequence[str]) -> None:
        """Raises Refused, unless every address is allowed: a name with one bad address is not to be trusted."""
        for text in addresses:
            address = ip_address(text.partition("%")[0])
            if not (
                is_public(address) or any(seen in network for seen in _unwrapped(address) for network in self._networks)
            ):
                raise Refused(f"{host} is {text}, no public address; webhook_networks can allow it")


def is_public(address: Address) -> bool:
    """Whether it is the address of somebody on the internet, whatever it is wrapped in."""
    real = _unwrapped(address)[-1]
    return real.is_global and not (real.is_multicast or real.is_reserved or getattr(real, "is_site_local", False))


def _unwrapped(address: Address) -> list[Address]:
    """The address, and the IPv4 address that it leads to: mapped, translated (NAT64), or tunnelled (6to4)."""
    if isinstance(address, IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if inner is None and address in _NAT64:
            inner = IPv4Address(int(address) & _IPV4_MASK)
        if inner is not None:
            return [address, inner]
    return [address]


def _network(text: str) -> Network:
    try:
        return ip_network(text)
    except ValueError as error:
        raise DTQError(f"webhook_networks has {text!r}; allowed: networks, as in '10.0.0.0/8': {error}") from None


class Secrets:
    """Secrets by name. No way leads from here to a message, a log or a repr but `of`, which signs with them.

    A secret is base64, with or without "whsec_" before it; several, separated by spaces, sign side by side while one
    replaces another.
    """

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = dict(values)
        for name, value in self._values.items():
            _check_secret(name, value)

    def __repr__(self) -> str:
        return f"<Secrets {', '.join(sorted(self._values)) or 'none'}>"

    def of(self, name: str) -> list[str]:
        """Raises LookupError."""
        if name not in self._values:
            raise LookupError(
                f"this node has no secret {name!r}: TaskQueue(secrets=...), or dtq run --secret, gives it"
            )
        return self._values[name].split()


def _check_secret(name: str, value: object) -> None:
    parts = value.split() if isinstance(value, str) else []
    if not parts or not all(24 <= _size(part.removeprefix("whsec_")) <= 64 for part in parts):
        raise DTQError(f"the secret {name!r} is none (not shown here); allowed: whsec_ and base64 of 24 to 64 bytes")


def _size(text: str) -> int:
    """Bytes that this base64 stands for, with or without its padding; 0 where it is none."""
    try:
        return len(b64decode(text + "=" * (-len(text) % 4), validate=True))
    except ValueError:
        return 0
