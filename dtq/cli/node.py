"""A node in its own process: it works, logs what happens, and obeys signals.

    workers ready ---.
    SIGTERM, SIGINT -+--> Inbox --> the main thread: announce, drain, force; it sleeps in between
    the loop ended --'
                                    failures and dead workers --> logging --> stderr

The first signal drains the node, the second forces it to end.
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

from dtq.cli.common import counted, readable
from dtq.queue.events import Event
from dtq.queue.task_queue import TaskQueue
from dtq.stores.address import redacted

log = logging.getLogger("dtq")

READY, ENDED = b"\x00", b"\xff"  # every other byte is the number of a signal
SIGNALS = signal.SIGTERM, signal.SIGINT


class Inbox:
    """Wakes the main thread with a byte, from any thread or from a signal. After `close`, `put` does nothing.

    It is a pipe because the kernel may deliver a signal to any thread. A main thread that waits for a lock, as in
    Queue.get, would sleep on, and Python would not call its signal handler before it wakes.
    """

    def __init__(self) -> None:
        self._reader, writer = os.pipe()
        os.set_blocking(writer, False)
        self._writer = os.fdopen(writer, "wb", buffering=0)  # a closed file object never writes to a reused descriptor

    def put(self, message: bytes) -> None:
        with suppress(ValueError):
            self._writer.write(message)

    def get(self) -> bytes:
        return os.read(self._reader, 1)

    def close(self) -> None:
        os.close(self._reader)
        self._writer.close()

    @contextmanager
    def receiving_signals(self) -> Iterator[None]:
        before = {number: signal.signal(number, lambda *_: None) for number in SIGNALS}
        woken_before = signal.set_wakeup_fd(self._writer.fileno())
        try:
            yield
        finally:
            signal.set_wakeup_fd(woken_before)
            for number, handler in before.items():
                signal.signal(number, handler)


class NodeService(TaskQueue):
    """A TaskQueue that reports how its loop ended, calls `at_end` then, and can be told to end sooner."""

    def __init__(self, store: str, **options: Any) -> None:
        super().__init__(store, **options)
        self.store_url = store
        self.size = sum(group.spec.size for group in self._groups)
        self.drained, self.given_back = False, 0
        self.at_end: Callable[[], None] = lambda: None
        for name, listener in _LISTENERS.items():
            self.on(name, listener)

    def drain(self, seconds: float) -> None:
        """Start no more tasks, and end when none runs or after this many seconds. A second call changes the time."""
        self._stop_at = time.monotonic() + seconds
        self._post(self._loop.drain)

    def _sign_off(self) -> None:
        self.drained, self.given_back = self._loop.is_drained(), len(self._loop.claimed)
        try:
            super()._sign_off()
        finally:
            self.at_end()


def serve(node: NodeService, grace: float) -> int:
    """Work until a signal comes. Return the exit code: 0 drained, 1 some tasks went back to the queue, 2 the loop
    failed."""
    with closing(Inbox()) as inbox:
        node.on("worker:ready", lambda event: inbox.put(READY))
        node.at_end = lambda: inbox.put(ENDED)
        with inbox.receiving_signals():
            node.start()
            signals = _handle_messages(node, inbox, grace)
            node.shutdown()  # ends the loop and the listeners too
    return _exit_code(node, signals)


def _handle_messages(node: NodeService, inbox: Inbox, grace: float) -> int:
    """Handle the messages of the inbox until the loop has ended. Return the number of signals."""
    inbox.put(READY)  # the loop is ready; its workers follow
    missing, signals = node.size + 1, 0
    while (message := inbox.get()) != ENDED:
        if message == READY:
            missing -= 1
            if missing == 0:
                _announce(node)
        else:
            signals += 1
            _drain(node, grace if signals == 1 else 0.0)
    return signals


def _announce(node: NodeService) -> None:
    types = ", ".join(sorted(node.registry.types()))
    typer.echo(
        f"ready: node {node.node}, {counted(node.size, 'worker')}, types {types}, store {redacted(node.store_url)}"
    )


def _drain(node: NodeService, seconds: float) -> None:
    log.info("draining: running tasks have %g s to end", seconds)
    node.drain(seconds)


def _exit_code(node: NodeService, signals: int) -> int:
    if not signals:
        return 2  # the loop has logged the reason
    if node.drained:
        log.info("drained: no task runs any more")
        return 0
    log.warning("not finished, and returned to the queue: %d", node.given_back)
    return 1


# --- logging ---------------------------------------------------------------------------------------------------


def log_to_stderr() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(formatter := logging.Formatter("%(asctime)s.%(msecs)03dZ %(levelname)s %(message)s", _TIME))
    formatter.converter = time.gmtime
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def _log_failure(event: Event) -> None:
    if task := event.task:
        log.error(
            "task %s (%s) failed after %s: %s", task.id, task.type, counted(task.attempts, "attempt"), _line(task.error)
        )


def _log_retry(event: Event) -> None:
    if task := event.task:
        log.warning(
            "task %s (%s) failed, attempt %d of %d, and runs again in %.3g s: %s",
            task.id, task.type, task.attempts, task.max_attempts, max(0, task.run_at - event.at), _line(task.error),
        )  # fmt: skip


def _log_exit(event: Event) -> None:
    """Log a worker that ended in an unexpected way."""
    number, code = event.data["signal"], event.data["exit_code"]
    if number or code or not event.data["pid"]:
        how = f" (signal {number})" if number else f" (exit code {code})" if code else ""
        log.warning("worker %s, process %d: %s%s", event.worker, event.data["pid"], event.data["reason"], how)


def _line(text: object) -> str:
    return readable(" ".join(str(text).split()))


_TIME = "%Y-%m-%dT%H:%M:%S"
_LISTENERS = {"task:failed": _log_failure, "task:retrying": _log_retry, "worker:exited": _log_exit}
