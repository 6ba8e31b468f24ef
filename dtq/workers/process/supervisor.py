"""Who works here: as many workers as there should be, each in a slot that has a name, started anew when it is gone.

    resize --> slots --(start_at)--> spawner: fork --> Member
                 ^                                       |
                 +--- EXITED, or the zygote is gone -----+--> on_gone: whoever has given it calls settles them

A worker that has shown that it can live is replaced at once; one that has not, after a pause which doubles each time:
an installation on which no worker can start costs two processes a minute, not all of the machine.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from itertools import count
from math import inf
from selectors import EVENT_READ, BaseSelector

from dtq.workers.backend import WorkerChanged
from dtq.workers.channel import Channel
from dtq.workers.process.process import WorkerProcess
from dtq.workers.process.spawner import Spawner
from dtq.workers.wire import EXITED, FORKED

FIRST_PAUSE, LONGEST_PAUSE = 0.1, 30.0  # seconds before a worker is started again that could not live
GONE_WITHIN = 2.0  # seconds from the kill, or the end of what it says, to the exit


class Slot:
    """The place of a worker. `start_at`: when the next one is to be started, while there is none."""

    def __init__(self, now: float) -> None:
        self.member: WorkerProcess | None = None
        self.start_at = now
        self.failures = 0  # in a row

    def free(self, now: float, lived: bool) -> None:
        self.member = None
        self.failures = 0 if lived else self.failures + 1
        self.start_at = now if lived else now + min(FIRST_PAUSE * 2 ** (self.failures - 1), LONGEST_PAUSE)


class Supervisor:
    """The workers. `on_event(member, mask)`: its channel is ready; `on_start(member)`: the first messages, please;
    `on_gone(member, code)`: it has exited (-9: of signal 9) and is no longer in `members`."""

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
        self.members: dict[int, WorkerProcess] = {}  # by serial
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
            member = self._slots.pop(number).member
            if member is not None:
                member.retire("retired: fewer workers are wanted", now)
        for _ in range(size - len(self._slots)):
            self._slots[self._free_number()] = Slot(now)
        self.check(now)

    def _rank(self, number: int) -> tuple[int, int]:
        """Who stays: the busy ones first, then those of low number."""
        member = self._slots[number].member
        return (2 if member is None else not member.jobs), number

    def _free_number(self) -> int:
        taken = self._slots.keys() | {member.slot for member in self.members.values()}
        return next(number for number in count(1) if number not in taken)

    # --- what time brings ------------------------------------------------------------------------------------------

    def check(self, now: float) -> None:
        """Starts who is due, and helps on who is stuck."""
        for member in [member for member in self.members.values() if member.is_stuck(now)]:
            self._unstick(member, now)
        for number, slot in self._slots.items():
            if slot.member is None and now >= slot.start_at:
                self._start(number, slot, now)

    def next_due(self) -> float:
        starts = min((slot.start_at for slot in self._slots.values() if slot.member is None), default=inf)
        return min(starts, min((member.next_due() for member in self.members.values()), default=inf))

    def _unstick(self, member: WorkerProcess, now: float) -> None:
        if member.serial not in self.members:  # it went with another
            return
        if member.pid == 0:  # the zygote does not even fork
            self._lose_zygote()
        elif member.killed:  # it does not go, or the zygote does not say so
            _sweep(member.pid)
            self._end(member, -signal.SIGKILL)
        else:
            self.kill(member, member.reason or "killed: it did not answer in time", now)

    def kill(self, member: WorkerProcess, reason: str, now: float) -> None:
        if not member.killed:
            member.killed, member.reason, member.gone_by = True, reason, now + GONE_WITHIN
            if self._spawner is not None:
                with contextlib.suppress(OSError):  # the zygote is gone, and all with it: we shall hear of that
                    self._spawner.kill(member.serial)

    # --- start and end ---------------------------------------------------------------------------------------------

    def _start(self, number: int, slot: Slot, now: float) -> None:
        try:
            member = self._fork(number, now)
        except OSError as error:
            slot.free(now, lived=False)
            self._report(WorkerChanged(f"{self._name}{number}", "exited", 0, reason=f"cannot be started: {error}"))
        else:
            slot.member = self.members[member.serial] = member
            self._on_start(member)

    def _fork(self, number: int, now: float) -> WorkerProcess:
        if self._spawner is None:
            self._spawner = Spawner()
            self._selector.register(self._spawner, EVENT_READ, self._hear_zygote)
        channel = Channel(self._selector, lambda mask: self._on_event(member, mask))
        member = WorkerProcess(next(self._serials), number, f"{self._name}{number}", channel, now)
        try:
            with channel.other_end as theirs:
                self._spawner.fork(member.serial, theirs)
        except OSError:
            channel.close()
            raise
        return member

    def _hear_zygote(self, mask: int) -> None:
        if self._spawner is None:
            return
        try:
            for kind, serial, value in self._spawner.read():
                member = self.members.get(serial)
                if member is not None and kind == FORKED:
                    self.introduce(member, value)
                elif member is not None and kind == EXITED:
                    self._end(member, value)
        except EOFError:
            self._lose_zygote()

    def introduce(self, member: WorkerProcess, pid: int) -> None:
        """Its process id is known: from the zygote or, should that come first, from itself."""
        if member.pid == 0:
            member.pid = pid
            self._report(WorkerChanged(member.name, "started", pid))

    def _lose_zygote(self) -> None:
        """All workers have died with the zygote, or do so now. The next start brings a new one."""
        self.dismiss(patience=0)
        for member in list(self.members.values()):
            _sweep(member.pid)
            self._end(member, -signal.SIGKILL)

    def _end(self, member: WorkerProcess, code: int) -> None:
        """The worker has exited, or is given up. What it said last is still heard."""
        now = self._clock()
        del self.members[member.serial]
        self._on_gone(member, code)
        member.channel.close()
        died_of, exit_code = (-code, None) if code < 0 else (None, code)
        reason = member.reason or ("died" if member.pid else "could not be started")
        self._report(WorkerChanged(member.name, "exited", member.pid, died_of, exit_code, reason))
        slot = self._slots.get(member.slot)
        if slot is not None and slot.member is member:
            slot.free(now, member.lived(now))

    def dismiss(self, patience: float) -> None:
        """Ends the zygote, and who is left with it."""
        spawner, self._spawner = self._spawner, None
        if spawner is not None:
            self._selector.unregister(spawner)
            spawner.close(patience)


def _sweep(pid: int) -> None:
    """Kills the worker and what it has started where the zygote did not (nor has it reaped it, so the id is good)."""
    if pid:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
