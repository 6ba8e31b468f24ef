"""Forks: what becomes of a store and a queue when this process forks (multiprocessing, gunicorn --preload).

    before_fork   parent   let go of what a child must not inherit
    after_fork    parent   go on
    in_child      child    close inherited descriptors, make locks anew, forget what belongs to the parent

The child has one thread: whatever lock another thread held at that moment would never be released. Its descriptors are
those of the parent, so they may be closed and must not be used otherwise.
"""

from __future__ import annotations

import logging
import os
import threading
from weakref import WeakSet

log = logging.getLogger("dtq")


class Forkable:
    """Something that has to know of forks. It calls `follow_forks` when it is made."""

    def follow_forks(self) -> None:
        _followers.add(self)

    def before_fork(self) -> None:
        """Get ready, in the parent. `after_fork` or `in_child` follows."""

    def after_fork(self) -> None:
        """Go on in the parent."""

    def in_child(self) -> None:
        """Begin anew in the child."""


_followers: WeakSet[Forkable] = WeakSet()
_forking: list[Forkable] = []
_turn = threading.Lock()  # one fork at a time


def _tell(name: str) -> None:
    """Call this method of all that follow. What one of them raises must not keep the others from it."""
    for follower in _forking:
        try:
            getattr(follower, name)()
        except Exception:
            log.exception("%r could not follow a fork", follower)


def _before() -> None:
    _turn.acquire()
    _forking[:] = list(_followers)
    _tell("before_fork")


def _after() -> None:
    _tell("after_fork")
    _forking.clear()
    _turn.release()


def _in_child() -> None:
    global _turn
    _turn = threading.Lock()
    _tell("in_child")
    _forking.clear()


if hasattr(os, "register_at_fork"):  # not on Windows, where nothing is forked
    os.register_at_fork(before=_before, after_in_parent=_after, after_in_child=_in_child)
