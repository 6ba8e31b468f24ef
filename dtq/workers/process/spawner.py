"""The pool's end of the zygote (see zygote.py): starts it, asks it for workers, hears how they ended."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator

from dtq.workers.wire import FORK, KILL, REPORT, REQUEST

PATIENCE = 2.0  # seconds for the zygote to end by itself
# The path of the parent, so that handlers which it could import are found; nothing else of it, and not its __main__.
BOOT = (
    "import sys; sys.path[:] = sys.argv[3:]; "
    "from dtq.workers.process.zygote import main; main(*map(int, sys.argv[1:3]))"
)


class Spawner:
    """Raises OSError where no process can be started, or where this one has ended."""

    def __init__(self) -> None:
        self._control, theirs = socket.socketpair()
        self._control.setblocking(False)
        self._inbox = b""
        path = [os.path.abspath(entry) for entry in sys.path]  # "" is the directory of this moment
        with theirs:
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-c", BOOT, str(theirs.fileno()), str(os.getpid()), *path],
                    stdin=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,
                )
            except OSError:
                self._control.close()
                raise

    @property
    def pid(self) -> int:
        return self._process.pid

    def fileno(self) -> int:
        return self._control.fileno()

    def fork(self, serial: int, sock: socket.socket) -> None:
        """A worker, please, at the other end of this socket."""
        socket.send_fds(self._control, [REQUEST.pack(FORK, serial)], [sock.fileno()])

    def kill(self, serial: int) -> None:
        self._control.send(REQUEST.pack(KILL, serial))

    def read(self) -> Iterator[tuple[bytes, int, int]]:
        """What it has reported: FORKED or EXITED, serial, process id or exit code. Raises EOFError when it has
        ended."""
        try:
            data = self._control.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            raise EOFError
        self._inbox += data
        whole = len(self._inbox) // REPORT.size * REPORT.size
        reports, self._inbox = self._inbox[:whole], self._inbox[whole:]
        yield from REPORT.iter_unpack(reports)

    def close(self, patience: float = PATIENCE) -> None:
        """Ends the zygote, and with it every worker that is left; kills it after so many seconds."""
        self._control.close()
        try:
            self._process.wait(patience)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
