"""A node in a process of its own: it works, tells what happens, and heeds signals.

    workers ready ---.
    SIGTERM, SIGINT -+--> Inbox --> the main thread, which sleeps otherwise: announce, drain, force
    the loop ended --'
                                    events of failures and dead workers --> logging --> stderr
The first signal drains, the second forces.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any

import typer

from dtq.cli.common import readable
from dtq.queue.events import Event
from dtq.queue.task_queue import TaskQueue
from dtq.stores.address import redacted

log = logging.getLogger("dtq")

READY, LEFT = b"\x00", b"\xff"  # all other words are the numbers of signals
SIGNALS = signal.SIGTERM, signal.SIGINT


class Inbox:
    """Where the main thread sleeps until there is a word for it: one byte, from any thread or from a signal. What comes
    when it is closed is heard by nobody.

    It is a pipe because the kernel may hand a signal to any thread: a main thread that waits for a lock, as in
    Queue.get, would then sleep on, and Python would not call its handler before it wakes.
    """

    def __init__(self) -> None:
        self._reader, writer = os.pipe()
        os.set_blocking(writer, False)
        self._writer = os.fdopen(writer, "wb", buffering=0)  # once closed, it cannot be taken for another descriptor

    def put(self, word: bytes) -> None:
        with suppress(ValueError):
            self._writer.write(word)

    def get(self) -> bytes:
        return os.read(self._reader, 1)

    def close(self) -> None:
        os.close(self._reader)
        self._writer.close()

    @contextmanager
    def hearing_signals(self) -> Iterator[None]:
        before = {number: signal.signal(number, lambda *_: None) for number in SIGNALS}
        woken_before = signal.set_wakeup_fd(self._writer.fileno())
        try:
            yield
        finally:
            signal.set_wakeup_fd(woken_before)
            for number, handler in before.items():
                signal.signal(number, handler)


class Node(TaskQueue):
    """A TaskQueue that tells when its loop has ended (by `at_end`) and how, and whose end can be hastened."""

    def __init__(self, store: str, **options: Any) -> None:
        super().__init__(store, **options)
        self.where = store
        self.size = sum(group.spec.size for group in self._groups)
        self.drained, self.given_back = False, 0
        self.at_end: Callable[[], None] = lambda: None
        for name, listener in _TOLD.items():
            self.on(name, listener)

    def drain(self, seconds: float) -> None:
        """Begins nothing more, and ends when nothing runs, or after so many seconds. A second call changes the time."""
        self._stop_at = time.monotonic() + seconds
        self._post(self._loop.drain)

    def _sign_off(self) -> None:
        self.drained, self.given_back = self._loop.is_drained(), len(self._loop.claimed)
        try:
            super()._sign_off()
        finally:
            self.at_end()


def serve(node: Node, grace: float) -> int:
    """Works until it is told to stop; gives the exit code: 0 drained, 1 something went back, 2 the loop has failed."""
    with closing(Inbox()) as inbox:
        node.on("worker:ready", lambda event: inbox.put(READY))
        node.at_end = lambda: inbox.put(LEFT)
        with inbox.hearing_signals():
            node.start()
            stops = _heed(node, inbox, grace)
            node.shutdown()  # and with it the loop and the listeners
    return _verdict(node, stops)


def _heed(node: Node, inbox: Inbox, grace: float) -> int:
    """Does as the inbox says, until the loop has ended; gives how many signals there were."""
    inbox.put(READY)  # so is the loop; then its workers
    to_come, stops = node.size + 1, 0
    while (word := inbox.get()) != LEFT:
        if word == READY:
            to_come -= 1
            if to_come == 0:
                _announce(node)
        else:
            stops += 1
            _drain(node, grace if stops == 1 else 0.0)
    return stops


def _announce(node: Node) -> None:
    types = ", ".join(sorted(node.registry.types()))
    typer.echo(f"ready: node {node.node}, {node.size} workers, types {types}, store {redacted(node.where)}")


def _drain(node: Node, seconds: float) -> None:
    log.info("draining: what runs has %g s to end in", seconds)
    node.drain(seconds)


def _verdict(node: Node, stops: int) -> int:
    if not stops:
        return 2  # the loop has said why
    if node.drained:
        log.info("drained: nothing runs any more")
        return 0
    log.warning("not finished, and back in the queue: %d", node.given_back)
    return 1


# --- what is told ---------------------------------------------------------------------------------------------------


def log_to_stderr() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(formatter := logging.Formatter("%(asctime)s.%(msecs)03dZ %(levelname)s %(message)s", _TIME))
    formatter.converter = time.gmtime
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def _emit_failure(event: Event) -> None:
    if task := event.task:
        log.error("task %s (%s) failed after %d attempts: %s", task.id, task.type, task.attempts, _line(task.error))


def _emit_retry(event: Event) -> None:
    if task := event.task:
        log.warning(
            "task %s (%s) failed, attempt %d of %d, and runs again in %.3g s: %s",
            task.id, task.type, task.attempts, task.max_attempts, max(0, task.run_at - event.at), _line(task.error),
        )  # fmt: skip


def _emit_exit(event: Event) -> None:
    """Of a worker that has gone in any other way than it should."""
    number, code = event.data["signal"], event.data["exit_code"]
    if number or code or not event.data["pid"]:
        how = f" (signal {number})" if number else f" (exit code {code})" if code else ""
        log.warning("worker %s, process %d: %s%s", event.worker, event.data["pid"], event.data["reason"], how)


def _line(text: object) -> str:
    return readable(" ".join(str(text).split()))


_TIME = "%Y-%m-%dT%H:%M:%S"
_TOLD = {"task:failed": _emit_failure, "task:retrying": _emit_retry, "worker:exited": _emit_exit}
