"""Supervisor: keeps as many workers alive as the pool asks for. Each has a slot, with a name, and a successor.

    resize --> slots --(start_at)--> Spawner: fork --> WorkerProcess
                 ^                                          |
                 +-- EXITED, or the zygote is gone <--------+--> on_gone: the pool reports its calls

A worker that has shown that it can live is replaced at once. Any other worker is replaced after a pause, which doubles
each time: an installation where no worker can start costs two processes a minute, not the whole machine.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import count
from math import inf
from selectors import EVENT_READ, BaseSelector

from dtq.workers.backend import WorkerChanged
from dtq.workers.process.process import WorkerProcess
from dtq.workers.wire import EXITED, FORK, FORKED, KILL, REPORT, REQUEST, Channel

FIRST_PAUSE, LONGEST_PAUSE = 0.1, 30.0  # seconds before a worker that could not live is started again
GONE_WITHIN = 2.0  # seconds from the kill, or from the end of its channel, to the exit
# The parent's sys.path, so that handlers which the parent could import are found; not its __main__.
BOOT = (
    "import sys; sys.path[:] = sys.argv[3:]; "
    "from dtq.workers.process.zygote import main; main(*map(int, sys.argv[1:3]))"
)


class Slot:
    """The place of one worker. While it is empty, `start_at` is when the next worker starts."""

    def __init__(self, now: float) -> None:
        self.worker: WorkerProcess | None = None
        self.start_at = now
        self.failures = 0  # in a row

    def free(self, now: float, has_lived: bool) -> None:
        self.worker = None
        self.failures = 0 if has_lived else self.failures + 1
        self.start_at = now if has_lived else now + min(FIRST_PAUSE * 2 ** (self.failures - 1), LONGEST_PAUSE)


class Supervisor:
    """Starts, replaces and kills workers.

    Callbacks: `on_start(worker)` sends the first messages; `on_event(worker, mask)` serves its channel;
    `on_gone(worker, code)` follows its exit (-9: killed by signal 9), when it is no longer in `workers`.
    """

    def __init__(
        self,
        name: str,
        selector: BaseSelector,
        *,
        on_start: Callable[[WorkerProcess], None],
        on_event: Callable[[WorkerProcess, int], None],
        on_gone: Callable[[WorkerProcess, int], None],
        report: Callable[[WorkerChanged], None],
        clock: Callable[[], float],
    ) -> None:
        self.workers: dict[int, WorkerProcess] = {}  # by serial
        self._slots: dict[int, Slot] = {}
        self._name = name
        self._selector = selector
        self._on_start, self._on_event, self._on_gone = on_start, on_event, on_gone
        self._report = report
        self._clock = clock
        self._serials = count(1)
        self._spawner: Spawner | None = None

    # --- how many --------------------------------------------------------------------------------------------------

    def resize(self, size: int) -> None:
        now = self._clock()
        for number in sorted(self._slots, key=self._rank)[size:]:
            worker = self._slots.pop(number).worker
            if worker is not None:
                worker.retire("retired: fewer workers are wanted", now)
        for _ in range(size - len(self._slots)):
            self._slots[self._free_number()] = Slot(now)
        self.check(now)

    def _rank(self, number: int) -> tuple[int, int]:
        """Order slots by who stays: busy workers first, then idle ones, then empty slots; low numbers first."""
        worker = self._slots[number].worker
        return (2 if worker is None else not worker.in_flight), number

    def _free_number(self) -> int:
        taken = self._slots.keys() | {worker.slot for worker in self.workers.values()}
        return next(number for number in count(1) if number not in taken)

    # --- as time passes --------------------------------------------------------------------------------------------

    def check(self, now: float) -> None:
        """Start workers that are due; kill those that are stuck."""
        for worker in [worker for worker in self.workers.values() if worker.is_stuck(now)]:
            self._unstick(worker, now)
        for number, slot in self._slots.items():
            if slot.worker is None and now >= slot.start_at:
                self._start(number, slot, now)

    def next_due(self) -> float:
        starts = min((slot.start_at for slot in self._slots.values() if slot.worker is None), default=inf)
        return min(starts, min((worker.next_due() for worker in self.workers.values()), default=inf))

    def _unstick(self, worker: WorkerProcess, now: float) -> None:
        if worker.serial not in self.workers:  # it ended together with another one
            return
        if worker.pid == 0:  # the zygote does not even fork
            self._lose_zygote()
        elif worker.ending.is_killed:  # it does not exit, or the zygote does not report it
            _kill_group(worker.pid)
            self._end(worker, -signal.SIGKILL)
        else:
            self.kill(worker, worker.ending.reason or "killed: it did not answer in time", now)

    def kill(self, worker: WorkerProcess, reason: str, now: float) -> None:
        ending = worker.ending
        if not ending.is_killed:
            ending.is_killed, ending.reason, ending.gone_by = True, reason, now + GONE_WITHIN
            if self._spawner is not None:
                with contextlib.suppress(OSError):  # the zygote is gone, and all workers with it: EOF will follow
                    self._spawner.kill(worker.serial)

    # --- start and end ---------------------------------------------------------------------------------------------

    def _start(self, number: int, slot: Slot, now: float) -> None:
        try:
            worker = self._fork(number, now)
        except OSError as error:
            slot.free(now, has_lived=False)
            self._report(WorkerChanged(f"{self._name}{number}", "exited", 0, reason=f"cannot be started: {error}"))
        else:
            slot.worker = self.workers[worker.serial] = worker
            self._on_start(worker)

    def _fork(self, number: int, now: float) -> WorkerProcess:
        if self._spawner is None:
            self._spawner = Spawner()
            self._selector.register(self._spawner, EVENT_READ, self._on_zygote_event)
        channel = Channel(self._selector, lambda mask: self._on_event(worker, mask))
        worker = WorkerProcess(next(self._serials), number, f"{self._name}{number}", channel, now)
        try:
            with channel.other_end as theirs:
                self._spawner.fork(worker.serial, theirs)
        except OSError:
            channel.close()
            raise
        return worker

    def _on_zygote_event(self, mask: int) -> None:
        if self._spawner is None:
            return
        try:
            for kind, serial, value in self._spawner.read():
                worker = self.workers.get(serial)
                if worker is not None and kind == FORKED:
                    self.set_pid(worker, value)
                elif worker is not None and kind == EXITED:
                    self._end(worker, value)
        except EOFError:
            self._lose_zygote()

    def set_pid(self, worker: WorkerProcess, pid: int) -> None:
        """Note the process id. It arrives from the zygote and from the worker, in any order."""
        if worker.pid == 0:
            worker.pid = pid
            self._report(WorkerChanged(worker.name, "started", pid))

    def _lose_zygote(self) -> None:
        """End all workers: they died with the zygote, or die now. The next start launches a new zygote."""
        self.close(timeout=0)
        for worker in list(self.workers.values()):
            _kill_group(worker.pid)
            self._end(worker, -signal.SIGKILL)

    def _end(self, worker: WorkerProcess, code: int) -> None:
        """Report a worker that has exited or was given up. `on_gone` still reads its last messages."""
        now = self._clock()
        del self.workers[worker.serial]
        self._on_gone(worker, code)
        worker.channel.close()
        signal_number, exit_code = (-code, None) if code < 0 else (None, code)
        reason = worker.ending.reason or ("died" if worker.pid else "could not be started")
        self._report(WorkerChanged(worker.name, "exited", worker.pid, signal_number, exit_code, reason))
        slot = self._slots.get(worker.slot)
        if slot is not None and slot.worker is worker:
            slot.free(now, worker.has_lived(now))

    def close(self, timeout: float) -> None:
        """End the zygote, and with it every worker that is left. Kill the zygote after `timeout` seconds."""
        spawner, self._spawner = self._spawner, None
        if spawner is not None:
            self._selector.unregister(spawner)
            spawner.close(timeout)


def _kill_group(pid: int) -> None:
    """Kill a worker and its process group. The zygote has not reaped it, so the process id is still its own."""
    if pid:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)


# --- the zygote -------------------------------------------------------------------------------------------------------


class Spawner:
    """The pool's end of the zygote's control socket (see zygote.py). Launches the zygote, and asks it for workers.

    Raises:
        OSError: from each method, if no process can be started, or if the zygote has ended.
    """

    def __init__(self) -> None:
        self._control, theirs = socket.socketpair()
        self._control.setblocking(False)
        self._inbox = b""
        path = [os.path.abspath(entry) for entry in sys.path]  # "" means the current directory of this moment
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

    def fileno(self) -> int:
        return self._control.fileno()

    def fork(self, serial: int, sock: socket.socket) -> None:
        """Ask the zygote to fork a worker on this socket."""
        socket.send_fds(self._control, [REQUEST.pack(FORK, serial)], [sock.fileno()])

    def kill(self, serial: int) -> None:
        self._control.send(REQUEST.pack(KILL, serial))

    def read(self) -> Iterator[tuple[bytes, int, int]]:
        """Yield the zygote's reports: FORKED or EXITED, serial, and process id or exit code.

        Raises:
            EOFError: the zygote has ended.
        """
        try:
            data = self._control.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            raise EOFError
        self._inbox += data
        complete = len(self._inbox) // REPORT.size * REPORT.size
        reports, self._inbox = self._inbox[:complete], self._inbox[complete:]
        yield from REPORT.iter_unpack(reports)

    def close(self, timeout: float) -> None:
        """End the zygote, and with it every worker that is left. Kill it after `timeout` seconds."""
        self._control.close()
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
