"""Who may ask what: hosts, origins, tokens with their scopes, and how often.

request --> Gate (ASGI, before all else): Host, Origin --> router --> Authoriser: token, scope, rate --> handler

A browser can be made to send requests by any page that it shows. So a request must name this server as its Host (which
defeats DNS rebinding), and one that comes from a page must come from ours, or from one that was allowed.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

from litestar import Request
from litestar.enums import ScopeType
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from dtq.api.problems import HTTPProblem, give, response_of
from dtq.api.rates import Rates
from dtq.api.responses import Reason
from dtq.errors import DTQError

SCOPES = ("read", "submit", "admin")  # each may do what those before it may
ADMIN = SCOPES.index("admin")
SHORTEST_TOKEN = 16
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
SLASH = "\ufdd0"  # a slash within a segment of a path: Unicode has no such character, and none is let in
SECURITY_HEADERS = [
    (b"cache-control", b"no-store"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
    (b"cross-origin-resource-policy", b"same-origin"),
]
NO_PAGE = (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'")
CHALLENGE = {"WWW-Authenticate": "Bearer"}
_TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]+")


class Tokens:
    """The tokens and what each may do. Only their hashes are kept, so that no message or dump can show one.

    `given` is one token, which may do everything, or a dictionary of tokens and scopes. Without any, everybody may do
    everything: that is for loopback only. Raises DTQError where a token or a scope cannot be one.
    """

    def __init__(self, given: str | Mapping[str, str] | None) -> None:
        pairs = {given: "admin"} if isinstance(given, str) else dict(given or {})
        for token, scope in pairs.items():
            _check_token(token, scope)
        self._known = [(_hash(token), SCOPES.index(scope)) for token, scope in pairs.items()]

    def __len__(self) -> int:
        return len(self._known)

    def find(self, header: str) -> tuple[int, int] | None:
        """(number of the token, its level) for an Authorization header. Compares with every token, in a time that
        tells nothing of them."""
        scheme, _, token = header.partition(" ")
        digest = _hash(token.strip() if scheme.lower() == "bearer" else "")
        found = None
        for number, (known, level) in enumerate(self._known):
            if hmac.compare_digest(digest, known):
                found = number, level
        return found


def _check_token(token: object, scope: object) -> None:
    if not isinstance(token, str) or len(token) < SHORTEST_TOKEN or not _TOKEN.fullmatch(token):
        raise DTQError(
            f"a token is not what it must be: at least {SHORTEST_TOKEN} letters, digits or . _ ~ + / = -; this makes "
            'one: python -c "import secrets; print(secrets.token_urlsafe())"'
        )
    if scope not in SCOPES:
        raise DTQError(f"the scope of a token is {scope!r}; allowed: one of {', '.join(SCOPES)}")


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


# --- token, scope, rate ---------------------------------------------------------------------------------------------


class Authoriser:
    """Called with each request before its handler. What a route needs stands in its `opt`: needs="read"; one that says
    nothing is for admins. (Litestar's own guards copy the handler each time, which costs more than all of this.)"""

    def __init__(self, tokens: Tokens, rates: Rates) -> None:
        self._tokens = tokens
        self._rates = rates

    async def __call__(self, request: Request[Any, Any, Any]) -> None:
        options = request.route_handler.opt
        needs = options.get("needs", "admin")
        if needs == "nothing":
            return
        number, level = self._who(request, needs) if self._tokens else (0, ADMIN)
        request.scope["state"].update(client=number, level=level)
        if seconds := self._rates.wait_for(number):
            wait = {"Retry-After": str(max(1, round(seconds)))}
            raise HTTPProblem(429, "too many requests with this token", headers=wait)
        if "query" in options:
            _require_plain(request.query_params.multi_items(), options["query"])

    def _who(self, request: Request[Any, Any, Any], needs: str) -> tuple[int, int]:
        """Which token it is that came along, and the level of its scope. Raises HTTPProblem where it is none, or may
        not do what is asked."""
        found = self._tokens.find(request.headers.get("authorization", ""))
        if found is None:
            raise HTTPProblem(401, "this needs a token: send it as Authorization: Bearer TOKEN", headers=CHALLENGE)
        _, level = found
        if level < SCOPES.index(needs):
            raise HTTPProblem(403, f"this needs a token of scope {needs}, and yours is of scope {SCOPES[level]}")
        return found


def _require_plain(given: Iterable[tuple[str, str]], allowed: Collection[str]) -> None:
    """Each parameter that the route knows at most once, and no other one. (The framework takes the last of several,
    ignores what it does not know, and "null" is to it as if nothing was said.)"""
    seen = set()
    for name, value in given:
        if name not in allowed:
            reason = f"there is no such parameter; there are: {', '.join(sorted(allowed))}"
        elif name in seen:
            reason = "it is given more than once"
        elif value == "null" and name not in ("queue", "type", "after"):
            reason = "it is null: leave it out"
        else:
            seen.add(name)
            continue
        raise HTTPProblem(422, f"{name[:200]}: {reason}", [Reason(name[:200], reason)])


# --- Host and Origin ------------------------------------------------------------------------------------------------


class HostMiddleware:
    """The outermost ASGI layer: lets in what names this server and comes from its own pages, and puts the headers of
    security on every answer."""

    def __init__(self, app: ASGIApp, hosts: Collection[str], origins: Collection[str] = (), hub: str = "") -> None:
        self._app = app
        self._hosts = LOOPBACK_NAMES | {host.lower() for host in hosts}
        self._origins = frozenset(origins)
        self._hub = hub
        self._known = LOOPBACK_NAMES | self._hosts  # as they most often stand in the header

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != ScopeType.HTTP:
            await self._app(scope, receive, send)
            return
        guarded = _with_headers(send)
        try:
            self._check(dict(scope["headers"]))
            scope["path"] = _path_of(scope)
        except HTTPProblem as refusal:
            await give(response_of(refusal), guarded)
            return
        await self._app(scope, receive, guarded)

    def _check(self, headers: Mapping[bytes, bytes]) -> None:
        host = headers.get(b"host", b"").decode("latin-1")
        if host not in self._known:
            name = _name(host)
            if name not in self._hosts and not self._is_of_hub(headers):
                raise HTTPProblem(
                    403, f"this server is not known as {name!r}: name the host by which it is reached in allowed_hosts"
                )
        origin = headers.get(b"origin")
        if origin is not None and not self._is_ours(origin.decode("latin-1"), host):
            raise HTTPProblem(403, f"a page of {origin[:200]!r} may not use this server: see cors_origins")

    def _is_of_hub(self, headers: Mapping[bytes, bytes]) -> bool:
        """Whether jupyter-server-proxy of our own Jupyter server passed it on: it says for which prefix. (No page can
        reach this server otherwise: there it has no browser beside it.)"""
        return bool(self._hub) and headers.get(b"x-proxycontextpath", b"").decode("latin-1").startswith(self._hub)

    def _is_ours(self, origin: str, host: str) -> bool:
        if origin in self._origins:
            return True
        netloc = urlsplit(origin).netloc.lower()
        return bool(netloc) and (netloc == host.lower() or _name(netloc) in self._hosts - LOOPBACK_NAMES)


def _name(netloc: str) -> str:
    """The host without its port, in lower case; nothing where it is no host."""
    try:
        return (urlsplit(f"//{netloc}").hostname or "").lower()
    except ValueError:
        return ""


def _path_of(scope: Scope) -> str:
    """The path, where %2F within a segment is no slash: ids may have one. (uvicorn has decoded it to one.)"""
    if SLASH in scope["path"]:
        raise HTTPProblem(404, "there is nothing of this name")
    raw = scope.get("raw_path", b"").lower()
    if b"%2f" not in raw:
        return str(scope["path"])
    from_raw = scope["raw_path"].decode("latin-1")
    return re.sub("%2f", SLASH, _unquoted_but_slashes(from_raw), flags=re.IGNORECASE)


def _unquoted_but_slashes(path: str) -> str:
    return "%2F".join(unquote(part) for part in re.split("%2f", path, flags=re.IGNORECASE))


def _with_headers(send: Send) -> Send:
    async def guarded(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = list(message["headers"])
            is_page = any(name.lower() == NO_PAGE[0] for name, _ in headers)
            message["headers"] = headers + SECURITY_HEADERS + ([] if is_page else [NO_PAGE])
        await send(message)

    return guarded


# --- where a server may be reached ----------------------------------------------------------------------------------


def is_loopback(host: str) -> bool:
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_exposure(host: str, tokens: Tokens) -> None:
    """Raises DTQError where everybody in the network could do everything."""
    if not is_loopback(host) and not tokens:
        raise DTQError(
            f"host is {host!r}, which others can reach, and no token is set: anyone could add, read and delete tasks. "
            "Set token=..., or stay on 127.0.0.1 and let a reverse proxy or an SSH tunnel lead here"
        )


def hub_hosts(environment: Mapping[str, str] = os.environ) -> set[str]:
    """The hosts by which a JupyterHub says that it is reached."""
    names = ("JUPYTERHUB_HOST", "JUPYTERHUB_PUBLIC_URL", "JUPYTERHUB_PUBLIC_HUB_URL")
    return set(_hosts_of(environment.get(name, "") for name in names))


def _hosts_of(urls: Iterable[str]) -> Iterable[str]:
    return (host for url in urls if (host := urlsplit(url).hostname))
