"""Authorisation: hosts, origins, tokens with their scopes, and the rate of each token.

request --> HostMiddleware (before all else): Host, Origin --> router --> Authoriser: token, scope, rate --> handler

Any web page can make a browser send requests. So a request must name this server in its Host header (which defeats DNS
rebinding), and a request from a page must come from this server's own pages or from an allowed origin.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
import re
from collections.abc import Collection, Mapping
from typing import NamedTuple
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dtq.api.config import ServerConfig
from dtq.api.problems import HTTPProblem, response_of
from dtq.api.rates import Rates
from dtq.errors import DTQError

SCOPES = ("read", "submit", "admin")  # each includes those before it
ADMIN = SCOPES.index("admin")
MIN_TOKEN_LENGTH = 16
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
SECURITY_HEADERS = [
    (b"cache-control", b"no-store"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
    (b"cross-origin-resource-policy", b"same-origin"),
]
API_POLICY = (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'")
CHALLENGE = {"WWW-Authenticate": "Bearer"}
_TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]+")


class Token(NamedTuple):
    """A token that the server knows: its number among them, its hash, and the level of its scope in SCOPES."""

    number: int
    digest: bytes
    level: int


ANYONE = Token(0, b"", ADMIN)  # stands for every client of a server without tokens


class Tokens:
    """The tokens and the scope of each. Only hashes are kept, so that no message or dump can show a token.

    Args:
        given: one token of scope "admin", or a dictionary of tokens and scopes. None: every client has scope "admin",
            which is meant for loopback only.

    Raises:
        DTQError: a token or a scope is not allowed.
    """

    def __init__(self, given: str | Mapping[str, str] | None) -> None:
        pairs = {given: "admin"} if isinstance(given, str) else dict(given or {})
        for token, scope in pairs.items():
            _check_token(token, scope)
        self._known = [Token(n, _hash(token), SCOPES.index(scope)) for n, (token, scope) in enumerate(pairs.items())]

    def __len__(self) -> int:
        return len(self._known)

    def find(self, header: str) -> Token | None:
        """Return the token in an Authorization header, or None if it is not known.

        Compare with every token in constant time, so that the time reveals nothing about them.
        """
        scheme, _, token = header.partition(" ")
        digest = _hash(token.strip() if scheme.lower() == "bearer" else "")
        found = None
        for known in self._known:
            if hmac.compare_digest(digest, known.digest):
                found = known
        return found


def _check_token(token: object, scope: object) -> None:
    if not isinstance(token, str) or len(token) < MIN_TOKEN_LENGTH or not _TOKEN.fullmatch(token):
        raise DTQError(
            f"a token is too short or has characters that are not allowed: use at least {MIN_TOKEN_LENGTH} letters, "
            'digits or . _ ~ + / = -. Make one: python -c "import secrets; print(secrets.token_urlsafe())"'
        )
    if scope not in SCOPES:
        raise DTQError(f"the scope of a token is {scope!r}; allowed: one of {', '.join(SCOPES)}")


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


# --- token, scope, rate ---------------------------------------------------------------------------------------------


class Authoriser:
    """Checks the token of a request, its scope and its rate, before the handler runs."""

    def __init__(self, tokens: Tokens, rates: Rates) -> None:
        self._tokens = tokens
        self._rates = rates

    def authorise(self, header: str, scope: str) -> Token:
        """Return the token in this Authorization header, after counting the request. Raises HTTPProblem if there is no
        valid token (401), its scope does not suffice (403), or it has sent too many requests (429)."""
        token = self._authenticate(header, scope) if self._tokens else ANYONE
        if seconds := self._rates.wait_for(token.number):
            wait = {"Retry-After": str(max(1, round(seconds)))}
            raise HTTPProblem(429, "too many requests with this token; try again later", headers=wait)
        return token

    def _authenticate(self, header: str, scope: str) -> Token:
        token = self._tokens.find(header)
        if token is None:
            raise HTTPProblem(
                401, "this request needs a token: send it as Authorization: Bearer TOKEN", headers=CHALLENGE
            )
        if token.level < SCOPES.index(scope):
            raise HTTPProblem(
                403, f"this request needs a token of scope {scope}; yours has scope {SCOPES[token.level]}"
            )
        return token


# --- Host and Origin ------------------------------------------------------------------------------------------------


class HostMiddleware:
    """Rejects requests with another Host or Origin, and adds the security headers to every response.

    It also makes the router see the path as it was sent, because a %2F in a name separates nothing. Empty segments are
    left out: /tasks/ and //tasks mean /tasks.
    """

    def __init__(self, app: ASGIApp, config: ServerConfig) -> None:
        self._app = app
        self._proxies = frozenset(host.lower() for host in config.hosts)  # serve our pages, on the port that is named
        self._hosts = LOOPBACK_NAMES | {config.host.lower(), *self._proxies, *map(_name, config.hosts)} - {""}
        self._origins = frozenset(config.origins)
        self._hub = config.hub

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        guarded = _with_headers(send)
        try:
            self._check(scope["headers"])
        except HTTPProblem as problem:
            await response_of(problem)(scope, receive, guarded)
            return
        scope["path"] = "/" + "/".join(filter(None, scope["raw_path"].decode("ascii").split("/")))
        await self._app(scope, receive, guarded)

    def _check(self, given: list[tuple[bytes, bytes]]) -> None:
        headers = dict(given)
        if len(headers) < len(given):
            _refuse_repeated([name for name, _ in given])
        host = headers.get(b"host", b"").decode("latin-1")
        if host not in self._hosts and _name(host) not in self._hosts and not self._is_from_hub(headers):
            raise HTTPProblem(
                403, f"this server does not serve the host {_name(host)!r}; to allow it, add it to allowed_hosts"
            )
        origin = headers.get(b"origin")
        if origin is not None and not self._is_allowed(origin.decode("latin-1"), host):
            raise HTTPProblem(
                403, f"pages of {origin[:200]!r} may not use this server; to allow them, add it to cors_origins"
            )

    def _is_from_hub(self, headers: Mapping[bytes, bytes]) -> bool:
        """Return whether the proxy of this user's Jupyter server passed the request on: it names our prefix. (Behind a
        hub no browser runs on this machine, so no page can send that header here.)"""
        return bool(self._hub) and headers.get(b"x-proxycontextpath", b"").decode("latin-1").startswith(self._hub)

    def _is_allowed(self, origin: str, host: str) -> bool:
        if origin in self._origins:
            return True
        netloc = urlsplit(origin).netloc.lower()
        return bool(netloc) and (netloc == host.lower() or netloc in self._proxies)


def _refuse_repeated(names: list[bytes]) -> None:
    """Raise HTTPProblem if a header that decides on access was sent more than once."""
    for name in (b"host", b"origin", b"authorization"):
        if names.count(name) > 1:
            raise HTTPProblem(400, f"the header {name.decode()} was sent more than once")


def _name(netloc: str) -> str:
    """Return the host without its port, in lower case; "" if this is not a host."""
    try:
        return (urlsplit(f"//{netloc}").hostname or "").lower()
    except ValueError:
        return ""


def _with_headers(send: Send) -> Send:
    async def guarded(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = list(message["headers"])
            is_page = any(name.lower() == API_POLICY[0] for name, _ in headers)
            message["headers"] = headers + SECURITY_HEADERS + ([] if is_page else [API_POLICY])
        await send(message)

    return guarded


# --- which addresses a server may use -------------------------------------------------------------------------------


def is_loopback(host: str) -> bool:
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_exposure(host: str, proxies: Collection[str], tokens: Tokens, without_token: bool) -> None:
    """Raise DTQError if other machines could reach the server without a token: at `host`, or through a proxy."""
    if tokens:
        return
    if not is_loopback(host):
        raise DTQError(
            f"host is {host!r}, which other machines can reach, and no token is set: anyone could add, read and delete "
            "tasks. Set token=..., or use 127.0.0.1 behind a reverse proxy or an SSH tunnel"
        )
    if proxies and not without_token:
        raise DTQError(
            f"allowed_hosts has {', '.join(proxies)}, and no token is set: all clients of that proxy could add, read "
            "and delete tasks. Set token=..., or without_token=True (--without-token) if the proxy authenticates them"
        )


def hub_hosts(environment: Mapping[str, str] = os.environ) -> set[str]:
    """Return the hosts that JupyterHub names in the environment as its own, with their ports."""
    names = ("JUPYTERHUB_HOST", "JUPYTERHUB_PUBLIC_URL", "JUPYTERHUB_PUBLIC_HUB_URL")
    return {urlsplit(environment.get(name, "")).netloc.rpartition("@")[2] for name in names} - {""}
