"""The processes of a chaos run. Each can be signalled, and starts again when it has died.

    NodeProcess  python -m dtq.testing.chaos.node   a node with its zygote and workers, or the client that adds tasks
    API          dtq serve                          through which the client adds half of the tasks
    Server       the command of the user            the server of the store, if it has one

All belong to the process group of a Workspace, which ends together with the process that began the run.
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
from dtq.testing.chaos.node import ProcessConfig

NODE = [sys.executable, "-m", "dtq.testing.chaos.node"]  # followed by a ProcessConfig
SERVE = """
import os, signal, sys, threading
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # until the server sets its own handler
threading.Thread(target=lambda: sys.stdin.read() or os.kill(os.getpid(), signal.SIGTERM), daemon=True).start()
from dtq.cli import app
app()
"""


# The kernel sends SIGHUP to an orphaned group in which a process is stopped; this one must survive that.
GROUP_KILLER = "trap '' HUP; read -r _; kill -KILL 0"


class Workspace:
    """The directory for the output of the processes of a run, and their process group.

    The first process of the group waits for the end of its standard input, then kills the group. So a run that is
    killed leaves no process behind, frozen ones and the store's server included. (Workers and their zygotes lead groups
    of their own; they end when they see the end of their node.)
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._group_killer = subprocess.Popen(["sh", "-c", GROUP_KILLER], stdin=subprocess.PIPE, process_group=0)
        self.group = self._group_killer.pid

    def end(self) -> None:
        self._group_killer.communicate()


class ChildProcess:
    """A process that ends when its standard input closes. Its output is kept, to explain an unexpected death."""

    def __init__(self, name: str, command: Sequence[str], workspace: Workspace) -> None:
        self.name = name
        self._command = command
        self._output = workspace.directory / name
        self._group = workspace.group
        self.start()

    def start(self) -> None:
        environment = {name: value for name, value in os.environ.items() if name != "DTQ_TOKEN"}
        with open(self._output, "ab") as file:
            self.process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=file, stderr=file, env=environment,
                process_group=self._group,
            )  # fmt: skip

    def kill_and_start(self, seconds: float = 0.0) -> None:
        """Kill it, and start it again after `seconds`."""
        self.send_signal(signal.SIGKILL)
        self.end(kill=True)
        time.sleep(seconds)
        self.start()

    def send_signal(self, number: signal.Signals) -> None:
        if self.process.poll() is None:  # once it is reaped, another process may have its pid
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

    def complaint(self, expected: int = -signal.SIGKILL) -> list[str]:
        """Return a sentence if it ended in an unexpected way: with another code than `expected`, and not by SIGKILL."""
        if (code := self.process.returncode) in (expected, -signal.SIGKILL):
            return []
        return [f"{self.name} ended with {code}: {self._output.read_text()[-1000:]}"]


class NodeProcess(ChildProcess):
    """A node, or the client that adds tasks."""

    def __init__(self, config: ProcessConfig, workspace: Workspace) -> None:
        super().__init__(config.name, [*NODE, msgspec.json.encode(config).decode()], workspace)

    def send_command(self, command: str) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(OSError, ValueError):  # the process is dead, or its input is closed
            self.process.stdin.write(f"{command}\n".encode())
            self.process.stdin.flush()

    def zygote(self) -> list[psutil.Process]:
        """Return the zygote of this node in a list, empty if there is none now."""
        with contextlib.suppress(psutil.Error):
            return list(psutil.Process(self.process.pid).children())
        return []

    def workers(self) -> list[psutil.Process]:
        """Return the workers of this node that run now."""
        with contextlib.suppress(psutil.Error):
            return [worker for zygote in self.zygote() for worker in zygote.children()]
        return []


class API(ChildProcess):
    """`dtq serve` on a port of the loopback interface; it keeps the port when it starts again."""

    def __init__(self, url: str, port: int, workspace: Workspace) -> None:
        super().__init__("api", [sys.executable, "-c", SERVE, "serve", url, "--port", str(port)], workspace)


class Server(ChildProcess):
    """The store's server, started by a command that keeps it in the foreground."""

    def __init__(self, command: str, workspace: Workspace) -> None:
        try:
            super().__init__("server", shlex.split(command), workspace)
        except OSError as error:
            raise DTQError(f"the server cannot be started by {command!r}: {error}") from error

    def freeze(self, seconds: float) -> None:
        self.send_signal(signal.SIGSTOP)
        time.sleep(seconds)
        self.send_signal(signal.SIGCONT)

    def end(self, kill: bool = False) -> None:
        self.send_signal(signal.SIGCONT)
        self.send_signal(signal.SIGTERM)
        super().end(kill)


def signal_one(
    candidates: list[psutil.Process], target: float, number: signal.Signals,
    thaw: Callable[[Callable[[], None]], None] | None = None,
) -> int:  # fmt: skip
    """Send this signal to one of these processes. Return how many it reached: 1, or 0 if none runs now.

    `thaw` schedules the call that lets the process go on, after SIGSTOP.
    """
    with contextlib.suppress(IndexError, psutil.Error):
        victim = candidates[int(target * 997) % max(len(candidates), 1)]
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
