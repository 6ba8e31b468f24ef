"""RetryTokens: what was sent to a server and not answered may have happened. Sent again, it must be known to be the
same.

Each request carries a token, and the server keeps the last one with what it has changed. A request that was not
answered keeps its token until it is: the server then knows that it has done this already, and answers as it would have.
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from dtq.errors import StoreError

MOST = 10_000  # doubts that are kept; those that nobody asks about again go first


class RetryTokens:
    """For any thread: no doubt is changed, only entered and taken out."""

    def __init__(self) -> None:
        self._tokens: dict[Hashable, tuple[str, Any]] = {}

    @contextmanager
    def tokens_for(self, requests: Sequence[tuple[Hashable, Any]]) -> Iterator[list[str]]:
        """A token for each request (its name, and what it says): the one that it had, where it was sent before and
        says the same. Where the body raises StoreError, or is interrupted, the requests are in doubt."""
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
        for name in list(self._tokens)[:-MOST]:
            self._tokens.pop(name, None)

    def has(self, name: Hashable) -> bool:
        return name in self._tokens

    def _token(self, name: Hashable, content: Any, fresh: str) -> str:
        token, known = self._tokens.get(name, (fresh, None))
        return token if known == content else fresh
