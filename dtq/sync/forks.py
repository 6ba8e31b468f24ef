"""Forks: prepare stores and queues for a fork of this process (multiprocessing, gunicorn --preload).

    before_fork   parent   close what a child must not inherit
    after_fork    parent   go on
    in_child      child    close inherited descriptors, make new locks, forget what belongs to the parent

The child has one thread: a lock that another thread held during the fork would never be released. Its descriptors are
the parent's: it may close them, and must not use them.
"""

from __future__ import annotations

import logging
import os
import threading
from weakref import WeakSet

log = logging.getLogger("dtq")


class Forkable:
    """An object with hooks around forks. Its constructor calls `follow_forks`."""

    def follow_forks(self) -> None:
        """Register this object, weakly: its hooks are called at each later fork."""
        _followers.add(self)

    def before_fork(self) -> None:
        """Prepare for the fork, in the parent. `after_fork` or `in_child` follows."""

    def after_fork(self) -> None:
        """Go on in the parent."""

    def in_child(self) -> None:
        """Reset everything in the child."""


_followers: WeakSet[Forkable] = WeakSet()
_forking: list[Forkable] = []
_turn = threading.Lock()  # one fork at a time


def _call_all(name: str) -> None:
    """Call this hook of all followers, even if one of them raises."""
    for follower in _forking:
        try:
            getattr(follower, name)()
        except Exception:
            log.exception("%r could not handle a fork", follower)


def _before() -> None:
    _turn.acquire()
    _forking[:] = list(_followers)
    _call_all("before_fork")


def _after() -> None:
    _call_all("after_fork")
    _forking.clear()
    _turn.release()


def _in_child() -> None:
    global _turn
    _turn = threading.Lock()
    _call_all("in_child")
    _forking.clear()


if hasattr(os, "register_at_fork"):  # not on Windows, where nothing is forked
    os.register_at_fork(before=_before, after_in_parent=_after, after_in_child=_in_child)
