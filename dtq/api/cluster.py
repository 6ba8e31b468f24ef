"""A cluster: several processes serve one port, and a supervisor replaces those that die.

supervisor --the listening socket, inherited; the setup, by stdin--> process --accept--> clients
           --SIGTERM--> drains and ends                            process
           <--"ready", or what is wrong, by stdout--               process

All share one listening socket, so that a process which dies takes with it only the connections that it had accepted;
those that still wait at the port are accepted by the others. (With SO_REUSEPORT each would have a line of its own, and
take it along.) A process whose supervisor is gone, which it sees by the end of its stdin, drains and ends.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import closing, suppress
from functools import partial

import msgspec

from dtq.api.config import ServerConfig
from dtq.api.http_server import PATIENCE, Server, let_go
from dtq.api.rates import Rates
from dtq.errors import DTQError
from dtq.queue.manager import QueueManager

log = logging.getLogger("dtq")
READY = b"ready\n"
PAUSE = 0.05  # seconds before a process is replaced; doubled each time that one dies young
LONGEST_PAUSE = 5.0
YOUNG = 5.0  # seconds
# The path of the supervisor, so that the same dtq is found; nothing else of it, and not its __main__.
BOOT = "import sys; sys.path[:] = sys.argv[3:]; from dtq.api.cluster import main; main(*map(int, sys.argv[1:3]))"


class Cluster:
    """`n` processes that serve this socket by this setup."""

    def __init__(self, setup: ServerConfig, n: int, listener: socket.socket, rates: Rates) -> None:
        self._setup = msgspec.msgpack.encode(setup)
        self._listener = listener
        self._rates = rates
        self._stopping = threading.Event()
        self._spawning = threading.Lock()  # no fork comes between the start of a process and its place in the list
        self._processes: list[subprocess.Popen[bytes]] = []
        self._keepers = [
            threading.Thread(target=self._keep, args=(k,), name=f"dtq-api-{k}", daemon=True) for k in range(n)
        ]
        self.restarts = 0

    def start(self) -> None:
        """Returns when all answer. Raises DTQError, saying what is wrong, where one cannot start."""
        try:
            for _ in self._keepers:
                with self._spawning:
                    self._processes.append(self._spawn())
            for process in self._processes:
                _await_ready(process)
        except BaseException:
            self._stopping.set()
            for process in self._processes:
                _end(process, 0)
            raise
        for keeper in self._keepers:
            keeper.start()

    def pids(self) -> list[int]:
        return [process.pid for process in self._processes if process.poll() is None]

    def _spawn(self) -> subprocess.Popen[bytes]:
        path = [os.path.abspath(entry) for entry in sys.path]  # "" is the directory of this moment
        fds = self._listener.fileno(), self._rates.fileno()
        process = subprocess.Popen(
            [sys.executable, "-c", BOOT, *map(str, fds), *path],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=fds, start_new_session=True,
        )  # fmt: skip
        if process.stdin is not None:
            with suppress(BrokenPipeError):
                process.stdin.write(len(self._setup).to_bytes(4, "big") + self._setup)
                process.stdin.flush()
        return process

    def _keep(self, number: int) -> None:
        """Replaces this process whenever it dies, until the end."""
        pause = PAUSE
        while True:
            process, began = self._processes[number], time.monotonic()
            process.wait()
            self._tell_of_end(process)
            pause = PAUSE if time.monotonic() - began > YOUNG else min(2 * pause, LONGEST_PAUSE)
            if self._stopping.wait(pause):
                return
            self.restarts += 1
            with self._spawning:
                self._processes[number] = self._spawn()
            if self._stopping.is_set():  # it may not have been there to be told
                _tell_to_end(self._processes[number])

    def _tell_of_end(self, process: subprocess.Popen[bytes]) -> None:
        said = process.stdout.read().replace(READY, b"").decode(errors="replace").strip() if process.stdout else ""
        if not self._stopping.is_set():
            log.warning(
                "process %d of the API ended with %s, and is replaced. %s", process.pid, process.returncode, said
            )
        _close_pipes(process)

    def stop(self, timeout: float) -> None:
        """Every process drains and ends, and is killed after so many seconds."""
        self._stopping.set()
        for process in self._processes:
            _tell_to_end(process)
        give_up_at = time.monotonic() + timeout
        for keeper in self._keepers:
            keeper.join(max(0.0, give_up_at - time.monotonic()))
        for process in self._processes:
            _end(process, 0)

    def before_fork(self) -> None:
        self._spawning.acquire()

    def after_fork(self) -> None:
        self._spawning.release()

    def in_child(self) -> None:
        """After a fork: give up the inherited pipes. A process ends when the last copy of its stdin is closed."""
        pipes = [pipe for process in self._processes for pipe in (process.stdin, process.stdout)]
        let_go(pipe.fileno() for pipe in pipes if pipe is not None and not pipe.closed)
        for process in self._processes:
            process.returncode = 0  # or its __del__ would warn of a process that still runs


def _await_ready(process: subprocess.Popen[bytes]) -> None:
    timer = threading.Timer(PATIENCE, process.kill)
    timer.start()
    try:
        line = process.stdout.readline() if process.stdout else b""
    finally:
        timer.cancel()
    if line != READY:
        raise DTQError(line.decode(errors="replace").strip() or "a process of the API did not start: see its messages")


def _tell_to_end(process: subprocess.Popen[bytes]) -> None:
    """In two ways: a signal that comes before uvicorn listens for it is lost, the end of its stdin is not."""
    with suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
    if process.stdin is not None:
        with suppress(OSError):
            process.stdin.close()


def _end(process: subprocess.Popen[bytes], seconds: float) -> None:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    _close_pipes(process)


def _close_pipes(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(OSError):
                pipe.close()


# --- in the process -------------------------------------------------------------------------------------------------


def main(listener: int, rates: int) -> None:
    """One process of a cluster: what it is to do comes by stdin, whose end means that nobody looks after it."""
    setup = msgspec.msgpack.decode(_read(int.from_bytes(_read(4), "big")), type=ServerConfig)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the supervisor
    signal.signal(signal.SIGTERM, lambda *_: None)  # uvicorn heeds it, and raises it again when it has ended
    try:
        _serve(setup, socket.socket(fileno=listener), rates)
    except DTQError as error:
        _say(str(error).encode() + b"\n")
        raise SystemExit(2) from None


def _serve(setup: ServerConfig, listener: socket.socket, rates_fd: int) -> None:
    manager = QueueManager(setup.store, backlog_limit=setup.backlog_limit, max_payload=setup.max_payload)
    with manager, closing(Rates(setup.rate_limit, len(setup.tokens), rates_fd)) as rates:
        server = _Announced(partial(setup.app, manager, rates), listener)
        threading.Thread(target=_leave_with_supervisor, args=(server,), daemon=True).start()
        server.run()


def _read(n: int) -> bytes:
    """So many bytes of stdin. (A thread that is within sys.stdin when Python ends would break it.)"""
    data = b""
    while len(data) < n and (more := os.read(0, n - len(data))):
        data += more
    return data


class _Announced(Server):
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        _say(READY)


def _say(line: bytes) -> None:
    with suppress(OSError):
        os.write(1, line)


def _leave_with_supervisor(server: Server) -> None:
    _read(1)
    server.should_exit = True
