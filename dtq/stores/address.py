"""Address: parse the URL of a store on a server, and hide the secrets in any URL before it is shown."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from dtq.errors import StoreError


def redacted(url: str) -> str:
    """Return the URL of any store with its user and password hidden, even if they are options."""
    url = re.sub(r"^([\w+.-]+://)(?!/)[^?]*@", r"\1***@", url)  # three slashes: a path, where @ means nothing
    return re.sub(r"(?i)([?&][^=&]*(?:password|username)[^=&]*=)[^&]*", r"\1***", url)


def parse_address(url: str) -> tuple[str, dict[str, Any]]:
    """Return the URL without the options of dtq, and those options. Raises StoreError for an invalid one."""
    parts = urlsplit(url)
    if parts.scheme not in ("redis", "rediss") or not parts.hostname:
        raise StoreError(f"{redacted(url)!r} names no server: write redis://host:6379/0")
    options: dict[str, Any] = {}
    rest = []
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name == "namespace":
            options[name] = value
        elif name == "timeout":
            options[name] = _positive(url, value)
        elif name == "cluster":
            options[name] = value not in ("0", "false", "no")
        elif name == "replicas":
            options[name] = _whole(url, value)
        elif name.startswith("ssl_"):
            rest.append((name, value))
        else:
            raise StoreError(
                f"{redacted(url)!r} has the option {name!r}; there are: cluster, namespace, replicas, timeout, and "
                "with rediss: the TLS options of redis-py (ssl_ca_certs, ssl_certfile, ssl_keyfile, ...)"
            )
    return urlunsplit(parts._replace(query=urlencode(rest))), options


def _whole(url: str, text: str) -> int:
    if text.isdecimal():
        return int(text)
    raise StoreError(f"{redacted(url)!r}: replicas is {text!r}; allowed: a whole number")


def _positive(url: str, text: str) -> float:
    with suppress(ValueError):
        if float(text) > 0:
            return float(text)
    raise StoreError(f"{redacted(url)!r}: timeout is {text!r}; allowed: a number of seconds, more than 0")
