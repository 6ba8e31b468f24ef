"""Chapter 03: the front of its pool, the checks for every pool, and the exercises with their solutions.

Front <--- MyPool                                             the part of a pool that does not depend on processes
side_by_side, restart <--- its experiments
promises(MyPool) ---> a new pool for each check ---> a table: the promise, kept or broken, and the evidence
read_frame, pool_size, Supervisor ---> show, hint, check      stop here: their solutions are below
"""

from __future__ import annotations

import html
import os
import re
import selectors
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import count
from math import inf
from pathlib import Path
from queue import SimpleQueue
from types import SimpleNamespace
from typing import NamedTuple

import matplotlib.pyplot as plt
import msgspec
import psutil

from dtq import Task, TaskQueue
from dtq.lab import checked_by, exercise
from dtq.lab.figures import OKABE_ITO, show_figure, stamp
from dtq.lab.verdict import COLORS
from dtq.testing.conformance import Broken, expect
from dtq.workers.backend import Finished, Returned, Started, WorkerChanged, WorkerInfo
from dtq.workers.handler_registry import Registry

WITHIN = 10.0  # seconds; a correct pool does all of these things at once
LEFT = 'style="text-align:left;vertical-align:top"'

# --- the front of a pool ----------------------------------------------------------------------------------------------


def check_split(split):
    """Cut a stream of three messages at every byte."""
    messages = [["call", 1], ["call", "x" * 300], []]
    frames = [len(body).to_bytes(4, "big") + body for body in map(msgspec.msgpack.encode, messages)]
    stream = b"".join(frames)
    for cut in range(len(stream) + 1):
        buffer = bytearray(stream[:cut])
        first = list(split(buffer))
        whole = sum(cut >= len(b"".join(frames[:n])) for n in (1, 2, 3))
        expect(first, messages[:whole], f"messages in the first {cut} of {len(stream)} bytes")
        expect(bytes(buffer), stream[len(b"".join(frames[:whole])) : cut], f"what is left of the first {cut} bytes")
        buffer += stream[cut:]
        expect(first + list(split(buffer)), messages, f"messages after a cut at byte {cut}")


@checked_by(check_split)
def split(buffer):
    while len(buffer) >= (end := 4 + int.from_bytes(buffer[:4], "big")):
        yield msgspec.msgpack.decode(buffer[4:end])
        del buffer[:end]


def check_deadline(deadline):
    now = time.monotonic()
    for dues, reports, low, high in (
        ([], [], None, None), ([inf, inf], [], None, None), ([inf], ["a report"], 0.0, 0.0),
        ([now + 60, inf, now + 90], [], 50, 60), ([now + 90, now + 60], [], 50, 60), ([now - 5], [], 0.0, 0.0),
        ([now + 60], ["a report"], 0.0, 0.0),
    ):  # fmt: skip
        given = deadline(SimpleNamespace(crew=[SimpleNamespace(due=due) for due in dues], reports=reports))
        seconds = [round(due - now) if due < inf else inf for due in dues]
        what = f"deadline with workers due in {seconds} s and reports {reports}"
        is_right = given is None if low is None else given is not None and low <= given <= high
        if not is_right:
            raise Broken(f"{what}: expected {'None' if low is None else f'{low:g} to {high:g}'}, got {given!r}")


@checked_by(check_deadline)
def deadline(self):
    due = min([worker.due for worker in self.crew], default=inf)
    left = max(0.0, due - time.monotonic())
    return 0.0 if self.reports else None if left == inf else left


class Front:
    """What any pool has: a selector that waits for all workers, a wake-up that ends the wait, and reports.

    `crew` has the workers, with `name`, `process`, and `task` (None while idle); `balance` brings their number to
    `size`. The data of each entry of the selector is a function, which `poll` calls.
    """

    def __init__(self):
        self.crew, self.reports = [], []
        self.selector = selectors.DefaultSelector()
        self.bell, self.ringer = socket.socketpair()
        self.listen(self.bell, lambda: self.bell.recv(4096))

    def start(self):
        self.balance()

    def resize(self, size):
        self.size = size
        self.balance()

    def wait(self, timeout):
        self.selector.select(timeout)

    def wake(self):
        with suppress(OSError):  # closed: nothing waits
            self.ringer.send(b"!")

    def watch(self, fd):
        self.listen(fd, lambda: None)  # its owner reads it

    def listen(self, sock, hear):
        """Let `poll` call this function whenever there is something to read."""
        self.selector.register(sock, selectors.EVENT_READ, hear)

    def tell(self, worker, state, **how):
        self.reports.append(WorkerChanged(worker.name, state, worker.process.pid, **how))

    def tell_end(self, worker, task, result, error):
        seconds = time.time() - worker.began
        self.reports.append(Finished(task, worker.name, worker.began, seconds, result, error, "", False))

    def fileno(self):
        return self.selector.fileno()

    def outstanding(self):
        return sum(worker.task is not None for worker in self.crew)

    def workers(self):
        return [self._info(worker) for worker in self.crew]

    def _info(self, worker):
        task_id = worker.task and worker.task.id
        state = "busy" if worker.task else "idle"
        return WorkerInfo(worker.name, worker.process.pid, state, int(state == "busy"), 0, 0.0, task_id)

    def recall(self):
        """Do nothing: in a pool with one call for each worker, no call waits."""

    def close(self):
        for end in (self.selector, self.bell, self.ringer):
            end.close()


# --- around the experiments -------------------------------------------------------------------------------------------


def side_by_side(handler, payload, threads):
    """Make as many calls as `threads`, first one after the other, then each on its own thread. Return how many times as
    fast the threads are, and how many processors they use."""
    seconds = {}
    for size in (1, threads):
        with ThreadPoolExecutor(size) as executor:
            began, used = time.perf_counter(), time.process_time()
            list(executor.map(handler, [payload] * threads, [None] * threads))
        seconds[size] = time.perf_counter() - began
    return seconds[1] / seconds[threads], (time.process_time() - used) / seconds[threads]


def restart(make_pool, nap):
    """Kill the only worker of a queue. Return the milliseconds until its death was noticed, and until its successor
    accepted calls."""
    events = SimpleQueue()
    with TaskQueue("memory:", {"nap": nap}, executor=make_pool(1)) as queue:
        queue.add("nap", {"seconds": 0}).result(timeout=30)
        for name in ("worker:exited", "worker:ready"):
            queue.on(name, events.put)
        killed = time.time()
        os.kill(queue.workers()[0].pid, signal.SIGKILL)
        exited, ready = events.get(timeout=30), events.get(timeout=30)
    return {"noticed": 1000 * (exited.at - killed), "ready": 1000 * (ready.at - killed)}


# --- what every pool of processes must show ---------------------------------------------------------------------------


def handlers():
    """Made inside a function, and with what they need imported there, so that they travel by value."""

    def echo(payload, context):
        return payload

    def fail(payload, context):
        raise ValueError(payload)

    def who(payload, context):
        import os

        return os.getpid()

    def nap(payload, context):
        import time

        time.sleep(payload)

    def hang(payload, context):
        import os
        import signal

        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # it listens to nothing that can be refused
        parent = os.getppid()
        while os.getppid() == parent != 1:  # it ends with its kernel, also one that was killed before this line
            pass

    def die(payload, context):
        import os

        os.kill(os.getpid(), payload)

    def leave(payload, context):
        import os

        os._exit(payload)

    return [echo, fail, who, nap, hang, die, leave]


class Desk:
    """A pool with those handlers, and all that it has reported."""

    def __init__(self, make, within, size=1):
        self.pool, self.reports = make(size), []
        self.within, self._numbers = within, count(1)
        registry = Registry()
        for handler in handlers():
            registry.register(handler.__name__, handler)
            self.pool.define(handler.__name__, registry.source(handler.__name__), handler)
        self.pool.start()
        self._size = size

    def __enter__(self):
        try:
            self.until("ready workers", lambda: len(self.changes("ready")) == self._size)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        self.pool.close(kill=True)

    def task(self, type, payload=None, timeout=60.0):
        return Task(type=type, payload=payload, timeout=timeout, id=f"t{next(self._numbers)}", attempts=1, version=1)

    def until(self, what, condition):
        """Run the pool as the loop does until the condition returns something true. Return that."""
        give_up_at = time.monotonic() + self.within
        while not (found := condition()):
            if (left := give_up_at - time.monotonic()) <= 0:
                raise Broken(f"waiting for {what}: expected within {self.within:g} s, got nothing")
            deadline = self.pool.deadline()
            self.pool.wait(left if deadline is None else min(left, deadline))
            self.reports += self.pool.poll()
        return found

    def run(self, *tasks):
        """Dispatches them; gives their ends in the same order."""
        self.pool.dispatch(tasks)
        return self.ends(*tasks)

    def ends(self, *tasks):
        names = ", ".join(task.id for task in tasks)
        found = self.until(f"the end of {names}", lambda: all(map(self._ends, tasks)) and [*map(self._ends, tasks)])
        expect([len(ends) for ends in found], [1] * len(tasks), "how often each end was reported")
        return [ends[0] for ends in found]

    def _ends(self, task):
        return [r for r in self.reports if isinstance(r, Finished | Returned) and r.task.id == task.id]

    def started(self, *tasks):
        def started():
            return {r.task.id for r in self.reports if isinstance(r, Started)} >= {task.id for task in tasks}

        self.until("Started", started)

    def changes(self, state):
        return [r for r in self.reports if isinstance(r, WorkerChanged) and r.state == state]

    def pids(self):
        return [worker.pid for worker in self.pool.workers()]


def error_of(end):
    """What is worth comparing of how a task ended."""
    if not isinstance(end, Finished):
        return type(end).__name__
    return (end.error.type, end.error.signal, end.error.exit_code) if end.error else ("no error", end.result)


def check_results(new):
    """Each task ends once, with what its handler returned."""
    with new(2) as desk:
        tasks = [desk.task("echo", {"n": n}) for n in range(2)]
        expect([end.result for end in desk.run(*tasks)], [{"n": 0}, {"n": 1}], "results")
        expect(desk.pool.outstanding(), 0, "outstanding after the last end")


def check_errors(new):
    """A handler that raises fails its task, and affects no other task."""
    with new() as desk:
        (end,) = desk.run(desk.task("fail", "no"))
        expect((end.error.type, end.error.message), ("ValueError", "no"), "the error")
        (end,) = desk.run(desk.task("echo", 1))
        expect(error_of(end), ("no error", 1), "the next task")
        expect(len(desk.changes("exited")), 0, "workers lost")


def check_parallel(new):
    """Two workers run two tasks at the same time, each in its own process."""
    with new(2) as desk:
        naps = [desk.task("nap", 0.2), desk.task("nap", 0.2)]
        desk.pool.dispatch(naps)
        desk.started(*naps)
        expect([r for r in desk.reports if isinstance(r, Finished)], [], "ended before both had started")
        expect(len({end.worker for end in desk.ends(*naps)}), 2, "workers that ran them")
        expect(len({os.getpid(), *desk.pids()}), 3, "processes, with this one")


def check_surplus(new):
    """More tasks than workers: each is run or given back, none is kept or lost."""
    with new() as desk:
        ends = desk.run(*(desk.task("echo", n) for n in range(5)))
        ran = [end.result for end in ends if isinstance(end, Finished)]
        expect(ran, [*range(len(ran))], "results of those that ran")
        expect(len(ran) > 0, True, "at least one ran")


def check_timeout(new):
    """A call that hangs ends at its timeout, whatever it ignores; its worker is replaced."""
    with new() as desk:
        (pid,) = desk.pids()
        (end,) = desk.run(desk.task("hang", timeout=0.2))
        expect(error_of(end)[0], "Timeout", "the error")
        desk.until("another worker", lambda: len(desk.changes("ready")) == 2)
        expect(pid in desk.pids(), False, "the worker that hung is still there")


def check_frozen(new):
    """A call whose process is frozen ends at its timeout too."""
    with new() as desk:
        desk.run(desk.task("nap", 0))  # its handler is loaded now
        nap = desk.task("nap", 0.3, timeout=0.4)
        desk.pool.dispatch([nap])
        desk.started(nap)
        os.kill(desk.pids()[0], signal.SIGSTOP)
        (end,) = desk.ends(nap)
        expect(error_of(end)[0], "Timeout", "the error")


def check_death(new):
    """A worker that dies fails its task, and the error names the signal or the exit code."""
    with new() as desk:
        deaths = [("die", signal.SIGKILL), ("die", signal.SIGTERM), ("leave", 3), ("leave", 0)]
        for type, number in deaths:
            (end,) = desk.run(desk.task(type, int(number)))
            wanted = ("WorkerDied", int(number), None) if type == "die" else ("WorkerDied", None, number)
            expect(error_of(end), wanted, f"the error after {type} {int(number)}")
            desk.until("another worker", lambda: len(desk.changes("ready")) == 1 + len(desk.changes("exited")))
        expect(len(desk.changes("exited")), len(deaths), "deaths reported")


def check_replaced(new):
    """A worker that dies while it is idle is replaced, and the next task runs."""
    with new() as desk:
        (pid,) = desk.pids()
        os.kill(pid, signal.SIGKILL)
        desk.until("another worker", lambda: len(desk.changes("ready")) == 2)
        (end,) = desk.run(desk.task("who"))
        expect([end.result], desk.pids(), "the process that ran the next task")


def check_neighbour(new):
    """The death of one worker does not touch the task of another."""
    with new(2) as desk:
        nap, doomed = desk.task("nap", 0.3), desk.task("die", int(signal.SIGKILL))
        ends = desk.run(nap, doomed)
        expect([error_of(end)[0] for end in ends], ["no error", "WorkerDied"], "how the two ended")


def check_stop(new):
    """A task that is stopped ends as Cancelled, once, though it hangs."""
    with new() as desk:
        task = desk.task("hang")
        desk.pool.dispatch([task])
        desk.started(task)
        desk.pool.stop(task)
        (end,) = desk.ends(task)
        expect(error_of(end)[0], "Cancelled", "the error")


def check_resize(new):
    """The pool grows and shrinks while it works; what runs is not disturbed."""
    with new(2) as desk:
        naps = [desk.task("nap", 0.2), desk.task("nap", 0.2)]
        desk.pool.dispatch(naps)
        desk.started(*naps)
        desk.pool.resize(1)
        expect([error_of(end)[0] for end in desk.ends(*naps)], ["no error"] * 2, "what ran")
        desk.until("one worker", lambda: len(desk.pids()) == 1)
        desk.pool.resize(3)
        desk.until("three workers", lambda: len(desk.pids()) == 3)


def check_wake(new):
    """`wake` ends a wait, from another thread too, and one that has not begun."""
    with new() as desk:
        for delay in (0.0, 0.1):
            threading.Timer(delay, desk.pool.wake).start()
            began = time.monotonic()
            desk.pool.wait(desk.within)
            expect(time.monotonic() - began < desk.within / 2, True, "woken")
            desk.pool.poll()


def check_close(new):
    """`close` leaves no process, also where one hangs."""
    with new(2) as desk:
        task, pids = desk.task("hang"), desk.pids()
        desk.pool.dispatch([task])
        desk.started(task)
    expect([pid for pid in pids if _lives(pid, desk.within)], [], "processes that are left")


def _lives(pid, within):
    give_up_at = time.monotonic() + within / 2
    while time.monotonic() < give_up_at:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        time.sleep(0.01)
    return True


CHECKS = [
    check_results, check_errors, check_parallel, check_surplus, check_timeout, check_frozen, check_death,
    check_replaced, check_neighbour, check_stop, check_resize, check_wake, check_close,
]  # fmt: skip


class Finding(NamedTuple):
    """One promise: whether it is kept and, if it is not, what shows that."""

    promise: str
    kept: bool
    why: str


class Findings(list[Finding]):
    """What `promises` found; shows itself as a table."""

    @property
    def kept(self):
        return all(finding.kept for finding in self)

    def _repr_html_(self):
        head = f"<tr><th scope='col' {LEFT}>result</th><th scope='col' {LEFT}>promise</th></tr>"
        return f"<p>{self._summary()}</p><table>{head}{''.join(map(_row, self))}</table>"

    def __repr__(self):
        lines = [f"  {_word(finding):8} {finding.promise} {finding.why}".rstrip() for finding in self]
        return "\n".join([self._summary(), *lines])

    def _summary(self):
        return f"{sum(finding.kept for finding in self)} of {len(self)} promises kept."


def _word(finding):
    return "passed" if finding.kept else "failed"


def _code_in(text):
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text))


def _row(finding):
    color = COLORS["right" if finding.kept else "wrong"]
    why = f"<br>{html.escape(finding.why)}" if finding.why else ""
    cells = f'<strong style="color:{color}">{_word(finding)}</strong>', _code_in(finding.promise) + why
    return f"<tr>{''.join(f'<td {LEFT}>{cell}</td>' for cell in cells)}</tr>"


def promises(make, checks=CHECKS, within=WITHIN):
    """Check the promises of a pool, with a new one from `make(size)` for each check. A check fails if a pool needs more
    than `within` seconds."""
    new = partial(Desk, make, within)
    return Findings(Finding(check.__doc__, *_ask(check, new)) for check in checks)


def _ask(check, new):
    try:
        check(new)
    except Broken as difference:
        return False, str(difference)
    except Exception as error:
        return False, f"raised {type(error).__name__}: {error}"
    return True, ""


# --- measurements -----------------------------------------------------------------------------------------------------


def processors():
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def family():
    """Return the ids of this process and of all its descendants."""
    return [os.getpid(), *(process.pid for process in psutil.Process().children(recursive=True))]


def megabytes(pids):
    """Return the memory of these processes: their own pages, and their share of those that they share with others."""
    return sum(map(_megabytes, pids))


def _megabytes(pid):
    """Return the proportional set size (PSS), or the resident size on systems without it, such as macOS."""
    rollup = Path(f"/proc/{pid}/smaps_rollup")
    if rollup.exists():
        return int(re.search(r"Pss:\s+(\d+)", rollup.read_text())[1]) / 1024
    return psutil.Process(pid).memory_info().rss / 2**20


def draw_restarts(timeline):
    """A bar for each kill: until it was noticed, and from there until the successor was ready (ms)."""
    rows = timeline.sort_values(["worker", "ready"], ascending=False).reset_index(drop=True)
    figure, axes = plt.subplots(layout="constrained")
    axes.barh(rows.index, rows["noticed"], color=OKABE_ITO["vermilion"], label="dead, not noticed")
    starting = rows["ready"] - rows["noticed"]
    axes.barh(rows.index, starting, left=rows["noticed"], color=OKABE_ITO["sky"], label="its successor starts")
    axes.set_yticks(rows.index, rows["worker"])
    axes.set(xlabel="time since kill -9 (ms)", ylabel="worker", title="From the kill to a worker that takes calls")
    figure.legend(loc="outside lower center", ncols=2)
    medians = timeline.groupby("worker")[["noticed", "ready"]].median()
    words = [f"{row.Index}: noticed {row.noticed:.1f} ms, ready {row.ready:.1f} ms" for row in medians.itertuples()]
    alt = f"Restart timeline, medians since the kill: {'; '.join(words)}."
    show_figure(figure, alt, medians.reset_index(), stamp(timeline, "worker"))
    return axes


# --- exercise 3.1 -----------------------------------------------------------------------------------------------------


class Pieces:
    """A socket from which the bytes come in these pieces, and then no more: `Pieces(b"ab", b"c")`."""

    def __init__(self, *pieces):
        self._pieces = [piece for piece in pieces if piece]
        self.asked = 0  # calls of recv

    def recv(self, n):
        """1 to n bytes of the first piece that is left; none at the end."""
        self.asked += 1
        if n <= 0:
            raise ValueError(f"recv({n}): expected 1 byte or more")
        if not self._pieces:
            return b""
        piece = self._pieces.pop(0)
        if piece[n:]:
            self._pieces.insert(0, piece[n:])
        return piece[:n]


def framed(body):
    return len(body).to_bytes(4, "big") + body


def check_read_frame(read_frame):
    two = framed(b"hello") + framed(b"you")
    for cut in range(len(two)):
        sock = Pieces(two[:cut], two[cut:])
        got = [read_frame(sock), read_frame(sock), read_frame(sock)]
        expect(got, [b"hello", b"you", None], f"three frames read where the stream is cut after byte {cut}")
    drops = Pieces(*(bytes([byte]) for byte in two))
    expect([read_frame(drops), read_frame(drops)], [b"hello", b"you"], "frames that come byte by byte")
    expect(read_frame(Pieces(framed(b""))), b"", "an empty frame")
    large = bytes(100_000)
    expect(read_frame(Pieces(framed(large))) == large, True, "a frame of 100,000 bytes is read whole")
    for end in (2, 4, 7):
        expect(_raised(read_frame, Pieces(two[:end])), "EOFError", f"a stream that ends after byte {end} of a frame")
    sock = Pieces(b"\xff\xff\xff\xff", b"x" * 10)
    expect(_raised(read_frame, sock, 1000), "ValueError", "a frame said to have 4 GB, where the limit is 1,000")
    expect(sock.recv(10), b"x" * 10, "what was left unread of it")


def _raised(function, *args):
    try:
        got = function(*args)
    except (EOFError, ValueError) as error:
        return type(error).__name__
    return f"{got!r}"


read_frame = exercise(
    "3.1",
    "Write `read_frame(sock, limit)`, which reads one frame from a blocking socket and returns its body: `None` where "
    "the stream ends between two frames, `EOFError` where it ends inside of one, `ValueError` where the length is over "
    "`limit` (read none of its body then).\n\n"
    "All that you may use of `sock` is `sock.recv(n)`. It gives 1 to n bytes, as many as happen to be there, or `b''` "
    "at the end of the stream. To try it there is `ch03.Pieces(b'...', b'...')`, whose `recv` gives these pieces, cut "
    "where you cut them.",
    effort="about 14 lines, 15 minutes",
    hints=[
        "TCP and stream sockets know bytes, not messages. What does `recv(4)` give when only 3 bytes have come?",
        "Write a helper first that reads exactly n bytes: it calls `recv` until it has them, or gets `b''`. "
        "How many bytes may it ask for in each call?",
        "`while len(data) < n and (piece := sock.recv(n - len(data))): data += piece`. Use it for the 4 bytes of the "
        "length, then for the body; the length is `int.from_bytes(head, 'big')`.",
    ],
    solution='''
def read_frame(sock, limit=1 << 20):
    def exactly(n):
        """n bytes, or as many as come before the end."""
        data = b""
        while len(data) < n and (piece := sock.recv(n - len(data))):
            data += piece
        return data

    head = exactly(4)
    if not head:
        return None
    size = int.from_bytes(head, "big") if len(head) == 4 else 0
    if size > limit:
        raise ValueError(f"a frame of {size:,} bytes; allowed: {limit:,}")
    body = exactly(size)
    if len(head) < 4 or len(body) < size:
        raise EOFError("the stream ended inside of a frame")
    return body
''',
    check=check_read_frame,
    why="it asks for exactly what is missing, so it never eats into the next frame; and it tells an end between two "
    "frames (the peer closed the connection) from an end inside a frame (the peer died while sending).",
    samples=[
        "read_frame(ch03.Pieces(b'\\0\\0\\0\\2hi'))",
        "read_frame(ch03.Pieces(b'\\0\\0', b'\\0\\2h', b'i'))",
        "read_frame(ch03.Pieces())",
    ],
    wrong=[
        (
            "recv returns what it is asked for",
            """
def read_frame(sock, limit=1 << 20):
    head = sock.recv(4)
    if not head:
        return None
    size = int.from_bytes(head, "big")
    if size > limit:
        raise ValueError(size)
    body = sock.recv(size) if size else b""
    if len(body) < size:
        raise EOFError
    return body
""",
        ),
        (
            "reads on after the end, for ever",
            """
def read_frame(sock, limit=1 << 20):
    def exactly(n):
        data = b""
        while len(data) < n:
            data += sock.recv(n - len(data))
        return data

    size = int.from_bytes(exactly(4), "big")
    if size > limit:
        raise ValueError(size)
    return exactly(size)
""",
        ),
        (
            "eats into the next frame",
            """
def read_frame(sock, limit=1 << 20):
    data = b""
    while len(data) < 4 or len(data) < 4 + int.from_bytes(data[:4], "big"):
        piece = sock.recv(65536)
        if not piece:
            if data:
                raise EOFError
            return None
        data += piece
        if len(data) >= 4 and int.from_bytes(data[:4], "big") > limit:
            raise ValueError
    return data[4 : 4 + int.from_bytes(data[:4], "big")]
""",
        ),
        (
            "takes a death in mid-sentence for a goodbye",
            """
def read_frame(sock, limit=1 << 20):
    def exactly(n):
        data = b""
        while len(data) < n:
            piece = sock.recv(n - len(data))
            if not piece:
                return None
            data += piece
        return data

    head = exactly(4)
    if head is None:
        return None
    size = int.from_bytes(head, "big")
    if size > limit:
        raise ValueError(size)
    return exactly(size)
""",
        ),
        (
            "believes every length",
            """
def read_frame(sock, limit=1 << 20):
    def exactly(n):
        data = b""
        while len(data) < n and (piece := sock.recv(n - len(data))):
            data += piece
        return data

    head = exactly(4)
    if not head:
        return None
    size = int.from_bytes(head, "big")
    body = exactly(size)
    if len(head) < 4 or len(body) < size:
        raise EOFError
    return body
""",
        ),
    ],
    seconds=2.0,
)

# --- exercise 3.2 -----------------------------------------------------------------------------------------------------


def check_pool_size(pool_size):
    expect(pool_size([0.5] * 30, 10.0, 0.8), 2, "30 tasks of 0.5 s within 10 s, workers at most 80 % busy")
    expect(pool_size([2.0] * 20, 10.0, 0.8), 5, "20 tasks of 2 s within 10 s, at most 80 % busy")
    expect(pool_size([2.0] * 20, 10.0, 0.5), 8, "the same, at most 50 % busy")
    expect(pool_size([0.1] * 99 + [30.1], 10.0, 0.9), 5, "99 tasks of 0.1 s and one of 30.1 s within 10 s, 90 %")
    expect(pool_size([0.01], 10.0, 0.8), 1, "one short task")
    expect(pool_size([], 10.0, 0.8), 1, "no task at all")


pool_size = exercise(
    "3.2",
    "Write `pool_size(seconds, window, utilisation)`: how many workers a queue needs. `seconds` lists how long each "
    "task ran that came within the `window` (also in seconds); no worker shall be busy for more than the share "
    "`utilisation` of the time. At least one worker is needed.\n\n"
    "Little's law says: the number of tasks that run, on average over time, is the rate at which they come times the "
    "mean time that each of them takes.",
    effort="about 3 lines, 10 minutes",
    hints=[
        "What are the rate and the mean time, if all you have is the list and the window?",
        "The rate is `len(seconds) / window`, the mean `sum(seconds) / len(seconds)`. What is left of their product?",
        "So many are busy on average: `sum(seconds) / window`. Divide by the share of time for which a worker may be "
        "busy, and round up.",
    ],
    solution="""
import math


def pool_size(seconds, window, utilisation=0.8):
    busy = sum(seconds) / window  # Little's law: rate times mean time
    return max(1, math.ceil(busy / utilisation))
""",
    check=check_pool_size,
    why="rate times mean is total work over the window; nothing else matters for the average, neither the order of the "
    "tasks nor how unequal they are. (How long they *wait* does depend on that: another chapter covers it.)",
    samples=["pool_size([2.0] * 20, 10.0, 0.8)", "pool_size([0.01], 10.0, 0.8)"],
    wrong=[
        (
            "every worker always busy",
            "import math\n\ndef pool_size(seconds, window, utilisation=0.8):\n"
            "    return max(1, math.ceil(sum(seconds) / window))",
        ),
        (
            "rounds down",
            "def pool_size(seconds, window, utilisation=0.8):\n"
            "    return max(1, int(sum(seconds) / window / utilisation))",
        ),
        (
            "multiplies by the share",
            "import math\n\ndef pool_size(seconds, window, utilisation=0.8):\n"
            "    return max(1, math.ceil(sum(seconds) / window * utilisation))",
        ),
        (
            "the typical task instead of the mean",
            "import math\nimport statistics\n\ndef pool_size(seconds, window, utilisation=0.8):\n"
            "    typical = statistics.median(seconds) if seconds else 0\n"
            "    return max(1, math.ceil(len(seconds) / window * typical / utilisation))",
        ),
        (
            "fails without tasks",
            "import math\n\ndef pool_size(seconds, window, utilisation=0.8):\n"
            "    rate, mean = len(seconds) / window, sum(seconds) / len(seconds)\n"
            "    return max(1, math.ceil(rate * mean / utilisation))",
        ),
    ],
)

# --- exercise 3.3 -----------------------------------------------------------------------------------------------------


def pauses(supervisor, lives, now=100.0):
    """Return the pause after each death of successive workers that live for these numbers of seconds."""
    found = []
    for seconds in lives:
        died = now + seconds
        now = supervisor.next_start(now, died)
        found.append(round(now - died, 6))
    return found


def check_supervisor(Supervisor):
    expect(pauses(Supervisor(), [60.0] * 3), [0.0] * 3, "pauses after workers that lived for a minute each")
    expect(pauses(Supervisor(), [0.0] * 4), [0.1, 0.2, 0.4, 0.8], "pauses after four that died at once")
    expect(pauses(Supervisor(longest=1.0), [0.0] * 6)[-2:], [1.0, 1.0], "pauses where the longest is 1 s")
    mixed = pauses(Supervisor(), [0.0, 0.0, 5.0, 0.0])
    expect(mixed, [0.1, 0.2, 0.0, 0.1], "pauses after two early deaths, one worker that lived for 5 s, one early death")
    expect(pauses(Supervisor(), [0.9, 1.0]), [0.1, 0.0], "pauses after lives of 0.9 and of 1.0 s")
    supervisors = Supervisor(), Supervisor()
    expect([pauses(one, [0.0])[0] for one in supervisors], [0.1, 0.1], "first pauses of two supervisors")


Supervisor = exercise(
    "3.3",
    "`MyPool.balance` replaces a dead worker at once. Where no worker can live, because a library is broken, say, it "
    "would start processes as fast as it can, for ever.\n\n"
    "Write `Supervisor.next_start(born, now)`: when to start the next worker, after the one that was started at `born` "
    "has died `now`. If it lived for `self.lives` seconds or more: at once. If not: after `self.first` seconds, and "
    "after twice the last pause each further time in a row, but never after more than `self.longest`.",
    effort="about 6 lines, 10 minutes",
    hints=[
        "What must it remember from one death to the next?",
        "One number is enough: the next pause. When does it grow, and when does it fall back to `self.first`?",
        "`self.pause = min(2 * self.pause, self.longest)` after an early death has used it; `self.pause = self.first` "
        "after a worker that lived.",
    ],
    solution="""
class Supervisor:
    def __init__(self, first=0.1, longest=30.0, lives=1.0):
        self.first, self.longest, self.lives = first, longest, lives
        self.pause = first

    def next_start(self, born, now):
        if now - born >= self.lives:
            self.pause = self.first
            return now
        start = now + self.pause
        self.pause = min(2 * self.pause, self.longest)
        return start
""",
    check=check_supervisor,
    why="a worker that lived proves that workers can live, so its death is bad luck and its successor need not wait. "
    "Early deaths in a row prove the opposite, and doubling keeps their number small: with these defaults an "
    "installation on which nothing works costs two starts a minute, not all of the machine.",
    samples=[
        "Supervisor().next_start(born=0.0, now=60.0)",
        "[s.next_start(born=0.0, now=0.0) for s in [Supervisor()] for _ in range(4)]",
    ],
    wrong=[
        (
            "at once, always",
            """
class Supervisor:
    def __init__(self, first=0.1, longest=30.0, lives=1.0):
        pass

    def next_start(self, born, now):
        return now
""",
        ),
        (
            "never forgives",
            """
class Supervisor:
    def __init__(self, first=0.1, longest=30.0, lives=1.0):
        self.longest, self.lives, self.pause = longest, lives, first

    def next_start(self, born, now):
        if now - born >= self.lives:
            return now
        start, self.pause = now + self.pause, min(2 * self.pause, self.longest)
        return start
""",
        ),
        (
            "grows without end",
            """
class Supervisor:
    def __init__(self, first=0.1, longest=30.0, lives=1.0):
        self.first, self.lives, self.pause = first, lives, first

    def next_start(self, born, now):
        if now - born >= self.lives:
            self.pause = self.first
            return now
        start, self.pause = now + self.pause, 2 * self.pause
        return start
""",
        ),
        (
            "doubles before the first pause",
            """
class Supervisor:
    def __init__(self, first=0.1, longest=30.0, lives=1.0):
        self.first, self.longest, self.lives, self.pause = first, longest, lives, first

    def next_start(self, born, now):
        if now - born >= self.lives:
            self.pause = self.first
            return now
        self.pause = min(2 * self.pause, self.longest)
        return now + self.pause
""",
        ),
        (
            "counts the pause from birth",
            """
class Supervisor:
    def __init__(self, first=0.1, longest=30.0, lives=1.0):
        self.first, self.longest, self.lives, self.pause = first, longest, lives, first

    def next_start(self, born, now):
        if now - born >= self.lives:
            self.pause = self.first
            return now
        start, self.pause = born + self.pause, min(2 * self.pause, self.longest)
        return start
""",
        ),
    ],
)
