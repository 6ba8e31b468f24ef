"""The zygote: a small, clean process with one thread, which forks workers and says how each of them ended.

    pool                           zygote                              worker
     | -- FORK serial, socket ------> | -- fork -------------------------> |
     | <-- FORKED serial, pid ------- |                                    |
     | <================ calls and results, on that socket ==============> |
     | -- KILL serial --------------> | -- SIGKILL to its whole group ---> |
     | <-- EXITED serial, code ------ | <-- SIGCHLD, wait ---------------- |

Why not fork the pool's own process: it has threads, locks, a notebook's kernel and open connections, none of which
survive a fork well. Why not start an interpreter for each worker: that costs 40 ms and 10 MB; a fork of this process
costs 2 ms and 3 MB, because what it has imported is shared.

Only the parent of a process can be sure that a process id still means it: therefore it is the zygote that kills.

Nobody outlives the pool. The zygote sees its end (end of file, and on Linux a pidfd, should somebody else have
inherited the other end of the socket), and kills all workers. The workers see the end of the zygote (PR_SET_PDEATHSIG
on Linux, elsewhere the end of file on their own socket). A worker leads a session and a process group of its own:
what a handler has started dies with it. What has left the group is adopted by the zygote, and killed (on Linux).
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import select
import signal
import socket
import sys
import traceback
from typing import NoReturn

from dtq.workers.process import worker
from dtq.workers.run.offspring import adopt_orphans, children_of
from dtq.workers.wire import EXITED, FORK, FORKED, REPORT, REQUEST

CANNOT_FORK = os.EX_OSERR
_PR_SET_PDEATHSIG = 1


def main(fd: int, parent: int) -> NoReturn:
    """The life of the zygote: `fd` is its end of the control socket, `parent` the process of the pool."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the Stop button of a notebook, and Ctrl-C, are for the pool
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    gc.collect()
    gc.freeze()  # or the first collection in a worker would touch, and so copy, every page that it shares
    Zygote(socket.socket(fileno=fd), parent).run()


class Zygote:
    """Serves requests until the pool is gone."""

    def __init__(self, control: socket.socket, parent: int) -> None:
        self.control = control
        self.children: dict[int, int] = {}  # process id -> serial
        self.bell, self.ringer = socket.socketpair()
        self.bell.setblocking(False)
        self.ringer.setblocking(False)
        self.parent = _pidfd(parent)
        self.libc = ctypes.CDLL(None) if sys.platform == "linux" else None

    def run(self) -> NoReturn:
        adopt_orphans()
        signal.signal(signal.SIGCHLD, lambda *_: None)  # with a handler, even an idle one, the wake-up descriptor rings
        signal.set_wakeup_fd(self.ringer.fileno(), warn_on_full_buffer=False)
        poll = select.poll()
        poll.register(self.control, select.POLLIN)
        poll.register(self.bell, select.POLLIN)
        if self.parent is not None:
            poll.register(self.parent, select.POLLIN)
        while True:
            ready = [fd for fd, _ in poll.poll()]
            if self.parent in ready:
                self.end()
            if self.bell.fileno() in ready:
                self.reap()
            if self.control.fileno() in ready:
                self.serve()

    def serve(self) -> None:
        """One request. The socket of a new worker comes along with its FORK."""
        try:
            data, fds, _, _ = socket.recv_fds(self.control, REQUEST.size, 1)
        except OSError:
            self.end()
        if len(data) < REQUEST.size:
            self.end()
        kind, serial = REQUEST.unpack(data)
        if kind == FORK:
            self.fork(serial, socket.socket(fileno=fds[0]))
        else:
            self.kill(serial)

    def fork(self, serial: int, sock: socket.socket) -> None:
        zygote = os.getpid()
        try:
            pid = os.fork()
        except OSError:  # no memory, or too many processes
            self.report(EXITED, serial, CANNOT_FORK)
        else:
            if pid == 0:
                self.become_worker(sock, zygote)
            self.children[pid] = serial
            self.report(FORKED, serial, pid)
        finally:
            sock.close()

    def become_worker(self, sock: socket.socket, zygote: int) -> NoReturn:
        """In the child: keeps nothing of the zygote but what it has imported."""
        code = 1
        try:
            os.setsid()
            self.die_with(zygote)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for end in (self.control, self.bell, self.ringer):
                end.close()
            if self.parent is not None:
                os.close(self.parent)
            worker.main(sock)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(OSError, ValueError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)

    def die_with(self, zygote: int) -> None:
        if self.libc is not None:
            self.libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != zygote:  # it died before we could ask
            os._exit(1)

    def kill(self, serial: int) -> None:
        for pid, owner in self.children.items():
            if owner == serial:
                _kill_group(pid)

    def reap(self) -> None:
        """Report every worker that has ended. What a handler left running in its group ends now too (its id cannot
        have been given to others: the kernel keeps it back as long as the group has a member)."""
        with contextlib.suppress(BlockingIOError):
            self.bell.recv(4096)
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    break
                if pid in self.children:
                    _kill_group(pid)
                    self.report(EXITED, self.children.pop(pid), os.waitstatus_to_exitcode(status))
        self.kill_orphans()

    def kill_orphans(self) -> None:
        """Kill what workers have left behind outside of their groups. The orphans of an orphan come here as well."""
        for pid in children_of(os.getpid()):
            if pid not in self.children:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)

    def report(self, kind: bytes, serial: int, value: int) -> None:
        try:
            self.control.sendall(REPORT.pack(kind, serial, value))
        except OSError:
            self.end()

    def end(self) -> NoReturn:
        """The pool is gone: kill all workers, and what they leave behind, and exit."""
        for pid in self.children:
            _kill_group(pid)
        with contextlib.suppress(ChildProcessError):
            while True:
                self.children.pop(os.waitpid(-1, 0)[0], None)
                self.kill_orphans()
        os._exit(0)


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGKILL)  # it may not lead its group yet
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _pidfd(pid: int) -> int | None:
    """A descriptor that is readable when the process has ended; None where there is no such thing."""
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return None
