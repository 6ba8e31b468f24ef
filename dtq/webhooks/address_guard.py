"""AddressGuard: where webhooks may go. Secrets: what signs them.

Any user who adds a task chooses a URL, and the request comes from inside the network: without a guard it could reach
hosts that only internal clients may reach (server-side request forgery, SSRF). Therefore every address of the URL's
host must be public, or belong to a network that the configuration allows.
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
    """The webhook was not sent: its URL leads to an address that is not allowed. Further attempts are useless."""


class AddressGuard:
    """Allows webhooks to public addresses and to those in `networks`. `http` allows URLs without TLS. Raises DTQError
    for a network that is not valid."""

    def __init__(self, networks: Sequence[str] = (), http: bool = False) -> None:
        self.http = http
        self._networks = [_network(text) for text in networks]

    def check_scheme(self, scheme: str) -> None:
        """Raise Refused unless a URL may have this scheme."""
        if scheme != "https" and not (scheme == "http" and self.http):
            raise Refused(f"the URL is {scheme}:; allowed: https:, and http: with webhook_http=True")

    def check(self, host: str, addresses: Sequence[str]) -> None:
        """Raise Refused unless every address of the host is allowed: one forbidden address makes the whole name
        suspicious."""
        for text in addresses:
            address = ip_address(text.partition("%")[0])
            if not (
                is_public(address)
                or any(inner in network for inner in _unwrapped(address) for network in self._networks)
            ):
                raise Refused(f"{host} is {text}, no public address; webhook_networks can allow it")


def is_public(address: Address) -> bool:
    """Return whether this is an address on the public internet, also when it is wrapped in another one."""
    real = _unwrapped(address)[-1]
    return real.is_global and not (real.is_multicast or real.is_reserved or getattr(real, "is_site_local", False))


def _unwrapped(address: Address) -> list[Address]:
    """Return the address, and the IPv4 address that is wrapped in it: mapped, translated (NAT64), or tunnelled
    (6to4)."""
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
    """Secrets by name. Only `of` returns them: they appear in no message, log or repr.

    A secret is base64, with or without the prefix "whsec_". During a rotation a name may have several secrets,
    separated by spaces; each of them signs. Raises DTQError for a secret that is not valid.
    """

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = dict(values)
        for name, value in self._values.items():
            _check_secret(name, value)

    def __repr__(self) -> str:
        return f"<Secrets {', '.join(sorted(self._values)) or 'none'}>"

    def of(self, name: str) -> list[str]:
        """Return the secrets with this name. Raise LookupError if this node has none."""
        if name not in self._values:
            raise LookupError(
                f"this node has no secret {name!r}: set it with TaskQueue(secrets=...) or dtq run --secret"
            )
        return self._values[name].split()


def _check_secret(name: str, value: object) -> None:
    parts = value.split() if isinstance(value, str) else []
    if not parts or not all(24 <= _size(part.removeprefix("whsec_")) <= 64 for part in parts):
        raise DTQError(f"the secret {name!r} is none (not shown here); allowed: whsec_ and base64 of 24 to 64 bytes")


def _size(text: str) -> int:
    """Return how many bytes this base64 encodes, with or without padding; 0 if it is not base64."""
    try:
        return len(b64decode(text + "=" * (-len(text) % 4), validate=True))
    except ValueError:
        return 0
