"""Members: the processes of a run, each of which can be signalled, and is started anew when it has died.

Member      python -m dtq.testing.chaos.node     a node with its zygote and workers, or the client that adds
API         dtq serve                    through which the client adds half of the tasks
Server      the command that was given   on which the store is, where it is a server's

All are of the process group of a Camp, which ends with whoever began the run.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import psutil

from dtq.errors import DTQError
from dtq.testing.chaos.node import Orders

NODE = [sys.executable, "-m", "dtq.testing.chaos.node"]  # and its orders
SERVE = """
import os, signal, sys, threading
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # until it serves, which may be later than its end
threading.Thread(target=lambda: sys.stdin.read() or os.kill(os.getpid(), signal.SIGTERM), daemon=True).start()
from dtq.cli import app
app()
"""


KEEPER = "trap '' HUP; read -r _; kill -KILL 0"  # an orphaned group is hung up on where somebody in it is frozen


class Workspace:
    """Where the processes of a run are: the directory for what they say, and a process group that outlives nobody.

    Its first process waits for the end of its standard input, and kills the group. So none is left behind by a run that
    is killed: neither one that is frozen, nor a server that knows nothing of us. (Workers and their zygotes, which lead
    groups of their own, see the end of their node.)
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._keeper = subprocess.Popen(["sh", "-c", KEEPER], stdin=subprocess.PIPE, process_group=0)
        self.group = self._keeper.pid

    def end(self) -> None:
        self._keeper.communicate()


class Process:
    """A process that ends when its standard input does; what it says is kept, for when it has died of something."""

    def __init__(self, name: str, command: Sequence[str], camp: Workspace) -> None:
        self.name = name
        self._command = command
        self._said = camp.directory / name
        self._group = camp.group
        self.start()

    def start(self) -> None:
        environment = {name: value for name, value in os.environ.items() if name != "DTQ_TOKEN"}
        with open(self._said, "ab") as file:
            self.process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=file, stderr=file, env=environment,
                process_group=self._group,
            )  # fmt: skip

    def kill_and_start(self, seconds: float = 0.0) -> None:
        """It is away for so long, and for what its start takes."""
        self.hit(signal.SIGKILL)
        self.end(kill=True)
        time.sleep(seconds)
        self.start()

    def hit(self, number: signal.Signals) -> None:
        if self.process.poll() is None:  # once it was waited for, its number may be another's
            self.process.send_signal(number)

    def end(self, kill: bool = False) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        try:
            self.process.wait(0 if kill else 30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def complaint(self, wanted: int = -signal.SIGKILL) -> list[str]:
        """It died of what was done to it, and of nothing else; if not, what of."""
        if (code := self.process.returncode) in (wanted, -signal.SIGKILL):
            return []
        return [f"{self.name} ended with {code}: {self._said.read_text()[-1000:]}"]


class Member(Process):
    """A node, or a client."""

    def __init__(self, orders: Orders, camp: Workspace) -> None:
        super().__init__(orders.name, [*NODE, msgspec.json.encode(orders).decode()], camp)

    def obey(self, order: str) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(OSError, ValueError):  # it is dead, or closed because it is
            self.process.stdin.write(f"{order}\n".encode())
            self.process.stdin.flush()

    def zygote(self) -> list[psutil.Process]:
        with contextlib.suppress(psutil.Error):
            return list(psutil.Process(self.process.pid).children())
        return []

    def workers(self) -> list[psutil.Process]:
        with contextlib.suppress(psutil.Error):
            return [worker for zygote in self.zygote() for worker in zygote.children()]
        return []


class API(Process):
    """`dtq serve` on a port of the loopback, which it has again when it is started anew."""

    def __init__(self, url: str, port: int, camp: Workspace) -> None:
        super().__init__("api", [sys.executable, "-c", SERVE, "serve", url, "--port", str(port)], camp)


class Server(Process):
    """The store's server, by the command that starts it in the foreground."""

    def __init__(self, command: str, camp: Workspace) -> None:
        try:
            super().__init__("server", shlex.split(command), camp)
        except OSError as error:
            raise DTQError(f"the server cannot be started by {command!r}: {error}") from error

    def freeze(self, seconds: float) -> None:
        self.hit(signal.SIGSTOP)
        time.sleep(seconds)
        self.hit(signal.SIGCONT)

    def end(self, kill: bool = False) -> None:
        self.hit(signal.SIGCONT)
        self.hit(signal.SIGTERM)
        super().end(kill)


def send(
    among: list[psutil.Process], whom: float, number: signal.Signals,
    thaw: Callable[[Callable[[], None]], None] | None = None,
) -> int:  # fmt: skip
    """How many it hit: one, or nobody where nobody is there at the moment."""
    with contextlib.suppress(IndexError, psutil.Error):
        victim = among[int(whom * 997) % max(len(among), 1)]
        victim.send_signal(number)
        if thaw:
            thaw(lambda: _thaw(victim))
        return 1
    return 0


def _thaw(process: psutil.Process) -> None:
    with contextlib.suppress(psutil.Error):
        process.send_signal(signal.SIGCONT)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port
