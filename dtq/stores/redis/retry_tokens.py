"""Retry tokens: a request without a reply may have been executed; its retry must carry the same token.

Each request carries a token, and the server keeps the last one with what it has changed. A retry with that token is
recognised: the server changes nothing and replies as it would have done the first time.
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from dtq.errors import StoreError

MAX_TOKENS = 10_000  # tokens of unanswered requests that are kept; the oldest go first


class RetryTokens:
    """The tokens of requests that have no reply yet. Any thread may use it: entries are added and removed, and never
    changed."""

    def __init__(self) -> None:
        self._tokens: dict[Hashable, tuple[str, Any]] = {}

    @contextmanager
    def tokens_for(self, requests: Sequence[tuple[Hashable, Any]]) -> Iterator[list[str]]:
        """Yield a token for each request (name, content): a new one, or that of the same request without a reply.

        The body sends the requests. Where it raises StoreError or is interrupted, their tokens are kept.
        """
        fresh = os.urandom(8).hex()
        tokens = [self._token(name, content, fresh) for name, content in requests]
        try:
            yield tokens
        except BaseException as error:
            if isinstance(error, StoreError) or not isinstance(error, Exception):
                self._keep(requests, tokens)
            raise
        if self._tokens:
            for name, _ in requests:
                self._tokens.pop(name, None)

    def _keep(self, requests: Sequence[tuple[Hashable, Any]], tokens: Sequence[str]) -> None:
        for (name, content), token in zip(requests, tokens, strict=True):
            self._tokens[name] = token, content
        for name in list(self._tokens)[:-MAX_TOKENS]:
            self._tokens.pop(name, None)

    def has(self, name: Hashable) -> bool:
        """Return whether a request of this name has no reply yet."""
        return name in self._tokens

    def _token(self, name: Hashable, content: Any, fresh: str) -> str:
        token, known = self._tokens.get(name, (fresh, None))
        return token if known == content else fresh
