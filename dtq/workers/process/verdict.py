"""What the calls that a worker held are charged with when the worker is gone.

    it died of itself             running: WorkerDied              waiting: goes back
    the pool killed it for one    that one: Timeout, Cancelled     waiting: goes back     running beside it: goes back

A call that was to be stopped ends as Cancelled in any case, so that it does not run again.
"""

from __future__ import annotations

import signal
from math import inf

from dtq.task.model import WORKER_DIED, ErrorInfo
from dtq.workers.backend import Finished, Report, Returned
from dtq.workers.process.process import InFlight, WorkerProcess, time_limit


def of_overdue(job: InFlight) -> ErrorInfo:
    """Why the pool kills a worker for this call."""
    if job.stopping:
        return ErrorInfo("Cancelled", "did not stop when asked: its worker was killed")
    limit = f"{time_limit(job):g} s"
    if job.loading:
        return ErrorInfo("Timeout", f"its handler was not loaded within {limit}: the worker was killed")
    return ErrorInfo("Timeout", f"ran longer than its timeout of {limit} and did not stop: its worker was killed")


def of_death(code: int) -> ErrorInfo:
    """The worker died by itself, or by somebody else: exit code, or the negative of the signal."""
    if code < 0:
        message = f"the worker process died of {_signal_name(-code)} while it ran this task"
        return ErrorInfo(WORKER_DIED, message, signal=-code)
    return ErrorInfo(WORKER_DIED, f"the worker process exited with code {code} while it ran this task", exit_code=code)


def settle(member: WorkerProcess, number: int, job: InFlight, code: int, now: float) -> Report:
    """What is reported of this call of a worker that is gone."""
    error = member.verdicts.get(number)
    if error is None and job.stopping:
        error = ErrorInfo("Cancelled", "its worker was gone before it had stopped")
    if job.since == inf or (error is None and member.spares):
        return Returned(job.task)
    error = error or of_death(code)
    return Finished(job.task, member.name, job.at, now - job.since, None, error, "", False)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
