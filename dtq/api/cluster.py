"""A cluster: several processes serve one port, and a supervisor replaces those that die.

supervisor --the listening socket, inherited; the configuration, on stdin--> process --accept--> clients
           --SIGTERM--> finish the requests and end                          process
           <--"ready", or what is wrong, on stdout--                         process

All processes share one listening socket. When one dies, only the connections that it had accepted are lost; those that
still wait at the port are accepted by the others. (With SO_REUSEPORT each process would have its own queue of
connections, and lose it.) When the supervisor dies, each process sees the end of its stdin, finishes and ends.
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

from dtq.api.app import create_app
from dtq.api.config import ServerConfig
from dtq.api.http_server import START_TIMEOUT, Server, release_descriptors
from dtq.api.rates import Rates
from dtq.errors import DTQError
from dtq.queue.manager import QueueManager

log = logging.getLogger("dtq")
READY = b"ready\n"
RESTART_DELAY = 0.05  # seconds before a process is replaced; doubled each time that one dies early
MAX_RESTART_DELAY = 5.0
EARLY = 5.0  # seconds: a process that dies within them has died early
# A process gets the supervisor's sys.path, so that it finds the same dtq, and nothing else: not its __main__ either.
BOOT = "import sys; sys.path[:] = sys.argv[3:]; from dtq.api.cluster import main; main(*map(int, sys.argv[1:3]))"


class Cluster:
    """Supervises `n` processes that serve the same socket with the same configuration."""

    def __init__(self, config: ServerConfig, n: int, listener: socket.socket, rates: Rates) -> None:
        self._config = msgspec.msgpack.encode(config)
        self._listener = listener
        self._rates = rates
        self._stopping = threading.Event()
        self._spawning = threading.Lock()  # no fork comes between the start of a process and its entry in the list
        self._processes: list[subprocess.Popen[bytes]] = []
        self._supervisors = [
            threading.Thread(target=self._supervise, args=(k,), name=f"dtq-api-{k}", daemon=True) for k in range(n)
        ]
        self.restarts = 0

    def start(self) -> None:
        """Return when all processes answer. Raises DTQError, with the reason, if one cannot start."""
        try:
            for _ in self._supervisors:
                with self._spawning:
                    self._processes.append(self._spawn())
            for process in self._processes:
                _await_ready(process)
        except BaseException:
            self._stopping.set()
            for process in self._processes:
                _end(process, 0)
            raise
        for supervisor in self._supervisors:
            supervisor.start()

    def pids(self) -> list[int]:
        """Return the ids of the processes that run."""
        return [process.pid for process in self._processes if process.poll() is None]

    def _spawn(self) -> subprocess.Popen[bytes]:
        path = [os.path.abspath(entry) for entry in sys.path]  # "" is the current directory, which may change
        fds = self._listener.fileno(), self._rates.fileno()
        process = subprocess.Popen(
            [sys.executable, "-c", BOOT, *map(str, fds), *path],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=fds, start_new_session=True,
        )  # fmt: skip
        if process.stdin is not None:
            with suppress(BrokenPipeError):
                process.stdin.write(len(self._config).to_bytes(4, "big") + self._config)
                process.stdin.flush()
        return process

    def _supervise(self, number: int) -> None:
        """Replace this process each time that it ends, until the cluster stops."""
        delay = RESTART_DELAY
        while True:
            process, began = self._processes[number], time.monotonic()
            process.wait()
            self._log_end(process)
            delay = RESTART_DELAY if time.monotonic() - began > EARLY else min(2 * delay, MAX_RESTART_DELAY)
            if self._stopping.wait(delay):
                return
            self.restarts += 1
            with self._spawning:
                self._processes[number] = self._spawn()
            if self._stopping.is_set():  # `stop` may have missed the new process
                _terminate(self._processes[number])

    def _log_end(self, process: subprocess.Popen[bytes]) -> None:
        output = process.stdout.read().replace(READY, b"").decode(errors="replace").strip() if process.stdout else ""
        if not self._stopping.is_set():
            log.warning(
                "API process %d ended with code %s and is replaced. %s", process.pid, process.returncode, output
            )
        _close_pipes(process)

    def stop(self, timeout: float) -> None:
        """Let each process finish its requests and end. Kill those that still run after `timeout` seconds."""
        self._stopping.set()
        for process in self._processes:
            _terminate(process)
        give_up_at = time.monotonic() + timeout
        for supervisor in self._supervisors:
            supervisor.join(max(0.0, give_up_at - time.monotonic()))
        for process in self._processes:
            _end(process, 0)

    def before_fork(self) -> None:
        self._spawning.acquire()

    def after_fork(self) -> None:
        self._spawning.release()

    def in_child(self) -> None:
        """After a fork: give up the inherited pipes. A process ends when the last copy of its stdin is closed."""
        pipes = [pipe for process in self._processes for pipe in (process.stdin, process.stdout)]
        release_descriptors(pipe.fileno() for pipe in pipes if pipe is not None and not pipe.closed)
        for process in self._processes:
            process.returncode = 0  # or its __del__ would warn of a process that still runs


def _await_ready(process: subprocess.Popen[bytes]) -> None:
    timer = threading.Timer(START_TIMEOUT, process.kill)
    timer.start()
    try:
        line = process.stdout.readline() if process.stdout else b""
    finally:
        timer.cancel()
    if line != READY:
        raise DTQError(line.decode(errors="replace").strip() or "an API process did not start: see its messages")


def _terminate(process: subprocess.Popen[bytes]) -> None:
    """Ask the process to end, in two ways: a signal that comes before uvicorn handles it is lost; the end of stdin is
    not."""
    with suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
    if process.stdin is not None:
        with suppress(OSError):
            process.stdin.close()


def _end(process: subprocess.Popen[bytes], seconds: float) -> None:
    """Wait this many seconds for the process to end, then kill it."""
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


# --- in a process of the cluster --------------------------------------------------------------------------------------


def main(listener: int, rates: int) -> None:
    """Run one process of a cluster: read the configuration from stdin, serve, and end with the supervisor."""
    config = msgspec.msgpack.decode(_read(int.from_bytes(_read(4), "big")), type=ServerConfig)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the supervisor handles Ctrl-C
    signal.signal(signal.SIGTERM, lambda *_: None)  # uvicorn handles it, and raises it again at its end
    try:
        _serve(config, socket.socket(fileno=listener), rates)
    except DTQError as error:
        _write(str(error).encode() + b"\n")
        raise SystemExit(2) from None


def _serve(config: ServerConfig, listener: socket.socket, rates_fd: int) -> None:
    manager = QueueManager(config.store, backlog_limit=config.backlog_limit, max_payload=config.max_payload)
    with manager, closing(Rates(config.rate_limit, len(config.tokens), rates_fd)) as rates:
        server = _ReportingServer(partial(create_app, manager, config, rates), listener, config.max_body)
        threading.Thread(target=_stop_with_supervisor, args=(server,), daemon=True).start()
        server.run()


def _read(n: int) -> bytes:
    """Read `n` bytes of stdin, by its descriptor: a thread that blocks in sys.stdin would break Python's exit."""
    data = b""
    while len(data) < n and (more := os.read(0, n - len(data))):
        data += more
    return data


class _ReportingServer(Server):
    """Reports to the supervisor when it answers."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        _write(READY)


def _write(line: bytes) -> None:
    with suppress(OSError):
        os.write(1, line)


def _stop_with_supervisor(server: Server) -> None:
    _read(1)
    server.should_exit = True
