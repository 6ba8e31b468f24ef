"""ResultPoller: resolves the futures of tasks that end in another process, or that are deleted.

    result() --future--> Waiters <--resolve-- the loop, for each outcome that it has committed
       |                    ^
       +--start--> ResultPoller --get--> store
                        ^---- the store's descriptor, or a hint from the loop that reads it

The thread starts with the first waiter and ends a second after the last one. If the store fails, the thread tries again
after growing pauses for as long as there are waiters.
"""

from __future__ import annotations

import logging
import select
import threading
import time
from collections.abc import Callable

from dtq.errors import StoreError
from dtq.queue.handle import POLL_INTERVAL, Waiters
from dtq.stores.protocol import Store
from dtq.sync.waits import Wakeup

log = logging.getLogger("dtq")

LINGER = 1.0  # seconds for which the thread outlives its last waiter, to save starting a thread for each result
MIN_INTERVAL_BESIDE_LOOP = 0.02  # seconds between two reads, at least, while a loop resolves the tasks that end here
REST_FACTOR = 2  # the thread rests this many times as long as the read before took
JOIN_TIMEOUT = 10.0  # seconds that `close` waits for a read that the store does not answer
MAX_STORE_BACKOFF = 2.0  # seconds between two reads of a store that fails, at most


class ResultPoller:
    """Polls `store` for the tasks of `waiters`, on a separate thread. `has_loop` returns whether a loop reads the
    store's descriptor now; that loop calls `hint` instead. Any thread may call all methods."""

    def __init__(self, store: Store, waiters: Waiters, has_loop: Callable[[], bool] = lambda: False) -> None:
        self._store = store
        self._waiters = waiters
        self._has_loop = has_loop
        self._lock = threading.Lock()
        self._run: PollerThread | None = None

    def start(self) -> None:
        """Start to poll, and continue for as long as there are waiters."""
        with self._lock:
            if self._run is None or not self._run.thread.is_alive():
                run = PollerThread(self._poll)
                run.start()
                self._run = run  # only now: Ctrl-C may interrupt the start

    def hint(self) -> None:
        """Poll soon: the store has changed."""
        if self._waiters:
            with self._lock:
                if self._run is not None:
                    self._run.wakeup.wake()

    def in_child(self) -> None:
        """Forget the thread after a fork: it is in the parent."""
        self._lock, self._run = threading.Lock(), None

    def close(self) -> None:
        """End the thread. A later `start` makes a new one."""
        with self._lock:
            run, self._run = self._run, None
        if run is not None:
            run.end()

    # --- on the thread ---------------------------------------------------------------------------------------------

    def _poll(self, run: PollerThread) -> None:
        while not run.ended.is_set() and self._is_needed(run):
            try:
                began = time.monotonic()
                sources = self._sources(run.wakeup)  # before the read: some stores announce only later changes
                self._waiters.poll(self._store.get)
                self._rest(run, REST_FACTOR * (time.monotonic() - began))
                self._wait(run, sources)
                run.backoff = 0.0
            except Exception as error:
                self._back_off(run, error)

    def _is_needed(self, run: PollerThread) -> bool:
        with self._lock:
            now = time.monotonic()
            if self._waiters:
                run.needed_at = now
            if now < run.needed_at + LINGER:
                return True
            if self._run is run:
                self._run = None
            return False

    def _sources(self, wakeup: Wakeup) -> select.poll:
        """Return a poll object with everything that ends a wait. (`select` fails for descriptors above 1,023.)"""
        sources = select.poll()
        sources.register(wakeup, select.POLLIN)
        if not self._has_loop():
            sources.register(self._store.fileno(), select.POLLIN)
        return sources

    def _rest(self, run: PollerThread, seconds: float) -> None:
        run.ended.wait(max(seconds, MIN_INTERVAL_BESIDE_LOOP) if self._has_loop() else seconds)

    def _wait(self, run: PollerThread, sources: select.poll) -> None:
        """Wait for a hint, POLL_INTERVAL seconds at most. Raise StoreError if the store's descriptor is closed."""
        for fd, event in sources.poll(POLL_INTERVAL * 1000):
            if fd == run.wakeup.fileno():
                run.wakeup.wait(0)
            elif not event & select.POLLIN:
                raise StoreError("the store cannot be watched: its descriptor is closed")
            elif not run.ended.is_set():
                self._store.wait(0)

    def _back_off(self, run: PollerThread, error: Exception) -> None:
        if not run.backoff and self._waiters:
            log.warning("the store failed while callers wait for results; trying again: %r", error)
        run.backoff = min(run.backoff * 2 or 0.05, MAX_STORE_BACKOFF)
        run.ended.wait(run.backoff)


class PollerThread:
    """One thread of the poller, from its start to its end."""

    def __init__(self, poll: Callable[[PollerThread], None]) -> None:
        self.wakeup = Wakeup()
        self.ended = threading.Event()
        self.needed_at = time.monotonic()
        self.backoff = 0.0  # seconds until the next try; 0 while the store answers
        self.thread = threading.Thread(target=self._main, args=[poll], name="dtq-results", daemon=True)

    def start(self) -> None:
        try:
            self.thread.start()
        except BaseException:  # Ctrl-C: if the thread has started anyway, it ends at once
            self.ended.set()
            raise

    def _main(self, poll: Callable[[PollerThread], None]) -> None:
        try:
            poll(self)
        finally:
            self.wakeup.close()

    def end(self) -> None:
        self.ended.set()
        self.wakeup.wake()
        if self.thread.is_alive() and self.thread is not threading.current_thread():
            self.thread.join(JOIN_TIMEOUT)
