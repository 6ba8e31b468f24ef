"""The zygote: a small, clean process with one thread, which forks workers and reports how each of them ended.

    pool                           zygote                              worker
     | -- FORK serial, socket ------> | -- fork -------------------------> |
     | <-- FORKED serial, pid ------- |                                    |
     | <================ calls and results, on that socket ==============> |
     | -- KILL serial --------------> | -- SIGKILL to its whole group ---> |
     | <-- EXITED serial, code ------ | <-- SIGCHLD, wait ---------------- |

Why not fork the pool's own process: it has threads, locks, a notebook's kernel and open connections, and none of them
survives a fork well. Why not start an interpreter for each worker: that costs 40 ms and 10 MB. A fork of this process
costs 2 ms and 3 MB, because the imported modules are shared.

Only the parent of a process can be sure that a process id still means that process. Therefore the zygote kills workers.

No worker outlives the pool. The zygote notices when the pool ends (end of file, and on Linux a pidfd, in case another
process has inherited the other end of the socket), and kills all workers. The workers notice when the zygote ends
(PR_SET_PDEATHSIG on Linux, elsewhere the end of file on their own socket). Each worker leads its own session and
process group, and processes that a handler has started die with that group. Those that have left the group are adopted
by the zygote, and killed (on Linux).
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
    """Run the zygote until the pool is gone. `fd` is its end of the control socket, `parent` the pool's process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C and the Stop button of a notebook are for the pool
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    gc.collect()
    gc.freeze()  # else the first collection in a worker writes to every shared page, and so copies it
    Zygote(socket.socket(fileno=fd), parent).run()


class Zygote:
    """Serves requests until the pool is gone."""

    def __init__(self, control: socket.socket, parent: int) -> None:
        self.control = control
        self.children: dict[int, int] = {}  # process id -> serial
        self.wakeup, self.wakeup_writer = socket.socketpair()  # readable after SIGCHLD; the interpreter writes to it
        self.wakeup.setblocking(False)
        self.wakeup_writer.setblocking(False)
        self.parent = _pidfd(parent)
        self.libc = ctypes.CDLL(None) if sys.platform == "linux" else None

    def run(self) -> NoReturn:
        adopt_orphans()
        signal.signal(signal.SIGCHLD, lambda *_: None)  # the wakeup descriptor needs a handler, even an empty one
        signal.set_wakeup_fd(self.wakeup_writer.fileno(), warn_on_full_buffer=False)
        poll = select.poll()
        poll.register(self.control, select.POLLIN)
        poll.register(self.wakeup, select.POLLIN)
        if self.parent is not None:
            poll.register(self.parent, select.POLLIN)
        while True:
            ready = [fd for fd, _ in poll.poll()]
            if self.parent in ready:
                self.end()
            if self.wakeup.fileno() in ready:
                self.reap()
            if self.control.fileno() in ready:
                self.serve()

    def serve(self) -> None:
        """Serve one request. FORK brings the socket of the new worker."""
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
        """Run the worker, in the child. Keep nothing of the zygote but the imported modules."""
        code = 1
        try:
            os.setsid()
            self.die_with(zygote)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for end in (self.control, self.wakeup, self.wakeup_writer):
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
        if os.getppid() != zygote:  # it died before prctl took effect
            os._exit(1)

    def kill(self, serial: int) -> None:
        for pid, owner in self.children.items():
            if owner == serial:
                _kill_group(pid)

    def reap(self) -> None:
        """Report every worker that has ended, and kill what its handlers left running in its group.

        The group's id cannot have been reused: the kernel reserves it as long as the group has a member.
        """
        with contextlib.suppress(BlockingIOError):
            self.wakeup.recv(4096)
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
        """Kill processes that workers have left behind outside of their groups, and the orphans of those."""
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
        """Kill all workers and the processes that they leave behind, and exit: the pool is gone."""
        for pid in self.children:
            _kill_group(pid)
        with contextlib.suppress(ChildProcessError):
            while True:
                self.children.pop(os.waitpid(-1, 0)[0], None)
                self.kill_orphans()
        os._exit(0)


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGKILL)  # it may not lead a group yet
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _pidfd(pid: int) -> int | None:
    """Return a descriptor that is readable once the process has ended, or None where the system has none."""
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return None
