"""Interrupts: Ctrl-C, or a notebook's Stop, at any moment of any call on a store.

    python tests/interrupts.py --store sqlite --interrupts 20000    random moments, beside other threads and a node
    python tests/interrupts.py --store sqlite --sweep               every moment of every call, one after the other

After each interrupt the store must agree with a model (a MemoryStore without interrupts): the effects of a call that
returned are there, an interrupted call took effect as a whole or not at all, and the counters equal a recount. The
program ends with exit code 1 and a list if a promise was broken.

A moment is a point at which CPython raises what a signal handler raises: after a call of a C function, at the start of
a Python function, and where a loop jumps back. `Presses.at` presses Ctrl-C right before the one with this number,
`Presses.after` by a real signal after some time.
"""

from __future__ import annotations

import argparse
import ctypes
import dis
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, TypeVar

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from msgspec.structs import asdict, replace

from dtq import TaskQueue
from dtq.errors import DTQError
from dtq.queue.handle import Handle
from dtq.stores.memory.store import MemoryStore
from dtq.stores.open import open_store
from dtq.stores.protocol import Node, Store
from dtq.task.model import TERMINAL, Status, Task, new_id
from dtq.task.transitions import cancel, release, succeed

T = TypeVar("T")
NOW = 1_700_000_000.0
QUEUE = "pressed"  # the tasks of the calls that are interrupted
WORKER = "pressed-worker"
AHEAD = 1e6  # seconds by which the clock of the calls is ahead of the node's: it must not take their tasks over
OF_ALL = {"reap", "purge"}  # calls that would touch the tasks of the node
STUCK = 20.0  # seconds after which a thread that has done nothing hangs
WATCHED = tuple(number for name, number in dis.opmap.items() if name.startswith(("CALL", "JUMP_BACKWARD", "RESUME")))


class Interrupted(Exception):
    """The call was interrupted."""


class Presses:
    """Presses Ctrl-C during a call, once. Keeps the last tracebacks alive, as a notebook does."""

    def __init__(self) -> None:
        self.kept: deque[BaseException] = deque(maxlen=50)
        self._armed = False
        self._codes: dict[CodeType, bytes] = {}
        self._left = 0
        signal.signal(signal.SIGINT, self._on_signal)
        signal.signal(signal.SIGALRM, self._on_signal)
        # A C function that is called by an operator: no moment lies between it and the end of the trace function.
        interrupt = ctypes.pythonapi.PyErr_SetInterrupt
        interrupt.restype = None
        self._key = type("Key", (), {"__neg__": interrupt})()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._armed:
            self._armed = False
            raise KeyboardInterrupt

    def at(self, moment: int, call: Callable[[], T]) -> T:
        """Return the value of the call. Raise Interrupted at the moment with this number, if the call gets that far."""
        self._left = moment
        return self._run(call, lambda: sys.settrace(self._trace), lambda: sys.settrace(None))

    def after(self, seconds: float, call: Callable[[], T]) -> T:
        """Return the value of the call. Raise Interrupted if it takes longer than this."""
        return self._run(
            call,
            lambda: signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-6)),
            lambda: signal.setitimer(signal.ITIMER_REAL, 0),
        )

    def _run(self, call: Callable[[], T], begin: Callable[[], Any], end: Callable[[], Any]) -> T:
        try:
            self._armed = True
            begin()
            value = call()
            self._armed = False
            end()
            return value
        except KeyboardInterrupt as error:
            end()
            self.kept.append(error)
            raise Interrupted from None
        finally:
            self._armed = False
            end()

    def _trace(self, frame: FrameType, event: str, arg: object) -> Any:
        code = frame.f_code
        if not self._armed or code.co_filename == __file__ or _is_beyond_us(code):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            if code not in self._codes:
                self._codes[code] = code.co_code
            if self._codes[code][frame.f_lasti] in WATCHED:
                self._left -= 1
                if self._left == -1:
                    return -self._key
        return self._trace


def _is_beyond_us(code: CodeType) -> bool:
    """What the standard library cannot keep: `Thread.start` waits within a lock that an interrupt may leave locked."""
    return code.co_filename == threading.__file__


class Broken(AssertionError):
    """A promise was broken."""


class Game:
    """Plays calls on a store and the same ones on a model, with a press of Ctrl-C in the former."""

    def __init__(
        self, store: Store, presses: Presses, chance: random.Random, settle: float = 0.0, now: float = NOW
    ) -> None:
        self.store = store
        self.model = MemoryStore()
        self.presses = presses
        self.chance = chance
        self.now = now
        self.outcomes: Counter[str] = Counter()
        self._settle = settle
        self.node = Node(WORKER, types=(QUEUE,))
        for each in (self.store, self.model):
            each.heartbeat(self.node, (), 30, now)

    # --- the calls: each returns a function of a store, with which all stores must do the same

    def calls(self) -> dict[str, Callable[[], Callable[[Store], Any]]]:
        return {
            "add": lambda: self._add(1),
            "add_many": lambda: self._add(20),
            "claim": self._claim,
            "update": self._update,
            "heartbeat": self._heartbeat,
            "reap": self._reap,
            "get": lambda: lambda store: store.get([task.id for task in self.known()][:5]) and None,
            "find": lambda: lambda store: store.find(queue=QUEUE, limit=1000) and None,
            "stats": lambda: lambda store: store.stats() and None,
            "next_due": lambda: lambda store: store.next_due(self.now) and None,
            "set_lane": self._set_lane,
            "delete": self._delete,
            "purge": self._purge,
        }

    def known(self, *statuses: str) -> list[Task]:
        tasks = self.model.find(queue=QUEUE, limit=10_000)
        return [task for task in tasks if task.status in statuses] if statuses else tasks

    def _new(self, **options: Any) -> Task:
        options = {"priority": self.chance.randrange(3), "limit_key": self.chance.choice(["", "a", "b"]), **options}
        return Task(type=QUEUE, queue=QUEUE, id=new_id(NOW), created_at=self.now, run_at=self.now, **options)

    def _key(self) -> str | None:
        """None, a new key, or one that an earlier call may have used: one of a stored task, of a deleted one, or of one
        whose add was interrupted."""
        return self.chance.choice([None, new_id(NOW), f"key-{self.chance.randrange(20)}"])

    def _add(self, n: int) -> Callable[[Store], Any]:
        tasks = [self._new(key=self._key()) for _ in range(n)]
        if n > 1:
            tasks[-1] = replace(tasks[-1], after=(tasks[0].id, tasks[1].id))
        return lambda store: store.add(tasks)

    def _claim(self) -> Callable[[Store], Any]:
        """Claim with a new worker: after a lost reply, a server returns the same tasks to the same worker again."""
        n, at, worker = self._doomed() + self.chance.randrange(1, 8), self.now, f"{WORKER}-{new_id(NOW)}"
        return lambda store: store.claim(worker, n, 30, at, {QUEUE})

    def _doomed(self) -> int:
        """A claim takes all of these: no order among them is promised."""
        return sum(task.doom is not None for task in self.known(Status.BLOCKED, Status.PENDING, Status.RETRYING))

    def _update(self) -> Callable[[Store], Any]:
        outcomes = []
        for task in self.known(Status.PROCESSING)[:5]:
            ended = self.chance.choice([succeed(task, 1, self.now), release(task), cancel(task, self.now)])
            planted = [self._new(key=self._key())] if self.chance.random() < 0.3 else []
            outcomes.append((ended, planted))
        return lambda store: store.update(outcomes)

    def _heartbeat(self) -> Callable[[Store], Any]:
        held = [replace(task, progress=self.chance.randrange(100)) for task in self.known(Status.PROCESSING)[:5]]
        at = self.now
        return lambda store: store.heartbeat(self.node, held, 30, at)

    def _reap(self) -> Callable[[Store], Any]:
        self.now += 31
        at = self.now
        return lambda store: store.reap("another-worker", 1000, 30, at)  # all: which come first is not promised

    def _set_lane(self) -> Callable[[Store], Any]:
        key = self.chance.choice(["c", "d"])
        rate = self.chance.choice([0, 5, 10])
        return lambda store: store.set_lane(QUEUE, None, key, rate=rate)

    def _delete(self) -> Callable[[Store], Any]:
        ids = [task.id for task in self.chance.sample(self.known(), min(5, len(self.known())))]
        return lambda store: store.delete(ids)

    def _purge(self) -> Callable[[Store], Any]:
        at = self.now + 1
        return lambda store: store.purge(at, TERMINAL)

    # --- play

    def both(self, call: Callable[[Store], Any]) -> None:
        call(self.model)
        call(self.store)

    def prepare(self) -> None:
        """There is something of everything."""
        self.now += 0.001
        if len(self.known()) > 60:
            oldest = [task.id for task in [*self.known(*TERMINAL), *self.known()][:40]]
            self.both(lambda store: store.delete(oldest))
        if len(self.known(Status.PENDING)) < 10:
            self.both(self._add(20))
        if len(self.known(Status.PROCESSING)) < 6:
            n, at = self._doomed() + 10, self.now
            self.both(lambda store: store.claim(WORKER, n, 30, at, {QUEUE}))
        if not self.known(*TERMINAL):
            task = self.known(Status.PROCESSING)[0]
            self.both(lambda store: store.update([(succeed(task, None, self.now), ())]))

    def play(self, name: str, press: Callable[[Callable[[], Any]], Any]) -> bool:
        """One call, pressed. Returns whether it was interrupted. Raises Broken."""
        self.prepare()
        call = self.calls()[name]()
        try:
            value = press(lambda: call(self.store))
        except Interrupted:
            self.outcomes[f"{name}: interrupted"] += 1
            self.store.delete([])  # another thread may be at the call, with its own: it is done when this returns
            time.sleep(self._settle)
            if self.view(self.store) != self.view(self.model):
                call(self.model)
                self.compare(f"{name}: interrupted, happened by half")
                self.outcomes[f"{name}: interrupted, and had happened"] += 1
            self.check(f"after {name} was interrupted")
            return True
        expected = call(self.model)
        if _plain(value) != _plain(expected):
            raise Broken(f"{name} returned {_differences(value, expected)}")
        self.check(f"after {name}")
        return False

    def view(self, store: Store) -> Any:
        tasks = {task.id: task for task in store.find(queue=QUEUE, limit=10_000)}
        return tasks, sorted((limit for limit in store.stats().limits if limit.queue == QUEUE), key=repr)

    def compare(self, when: str, store: Store | None = None) -> None:
        mine, model = self.view(store or self.store), self.view(self.model)
        if mine != model:
            tasks = _differences([*mine[0].values()], [*model[0].values()])
            raise Broken(f"{when}: {tasks[:1000]}; limits {mine[1]} and not {model[1]}")

    def check(self, when: str) -> None:
        """Counters equal a recount; what waits can be claimed is shown by the model's own claims."""
        counts = Counter(str(task.status) for task in self.store.find(queue=QUEUE, limit=10_000))
        told = {status: n for status, n in self.store.stats().queues.get(QUEUE, {}).items() if n}
        if told != dict(counts):
            raise Broken(f"{when}: stats tells {told}, a recount {dict(counts)}")

    def drain(self) -> None:
        """Claims and ends all that waits: nothing may have got lost in an index."""
        while True:
            self.now += 31
            at = self.now
            taken = {}
            for store in (self.model, self.store):
                claimed = store.claim(WORKER, 1000, 30, at, {QUEUE})
                claimed += store.reap("another-worker", 1000, 30, at + 31)
                store.update([(succeed(task, None, at), ()) for task in claimed])
                taken[store] = sorted(task.id for task in claimed)
            if taken[self.store] != taken[self.model]:
                raise Broken(f"drain: {len(taken[self.store])} tasks came out, {len(taken[self.model])} expected")
            if not taken[self.model]:
                break
        self.compare("after all was drained")


def _plain(value: Any) -> Any:
    """As stores may give it: in any order where the protocol names none."""
    return sorted(value, key=lambda item: getattr(item, "id", item)) if isinstance(value, (set, list)) else value


def _differences(one: Any, other: Any) -> str:
    """What differs between two values of a call, in short."""
    if not isinstance(one, (list, set)):
        return f"{one!r} and not {other!r}"
    mine, model = ({item.id if isinstance(item, Task) else item: item for item in value} for value in (one, other))
    return "; ".join(
        _brief(mine.get(id), model.get(id)) for id in mine.keys() | model.keys() if mine.get(id) != model.get(id)
    )


def _brief(task: Any, model: Any) -> str:
    if not (isinstance(task, Task) and isinstance(model, Task)):
        return f"{getattr(task, 'id', task)} and not {getattr(model, 'id', model)}"
    mine, expected = asdict(task), asdict(model)
    return f"{task.id}: " + ", ".join(
        f"{name} {mine[name]!r} and not {expected[name]!r}" for name in mine if mine[name] != expected[name]
    )


# --- every moment of every call


def sweep(store: Store, presses: Presses, *, stride: int = 1, first: int = 0, settle: float = 0.0, seed: int = 0,
          calls: set[str] | None = None, reopen: Callable[[], Store] | None = None) -> Counter[str]:  # fmt: skip
    game = Game(store, presses, random.Random(seed), settle)
    for name in game.calls():
        if calls and name not in calls:
            continue
        moment = first
        while game.play(name, lambda call, moment=moment: presses.at(moment, call)):
            moment += stride
        game.outcomes[f"{name}: moments"] = moment
    game.drain()
    game.model.close()
    if reopen is not None:
        again = reopen()
        game.compare("when it was opened again", again)
        again.close()
    return game.outcomes


# --- random moments, beside other threads and a node


class Company:
    """A reader, a writer and a node of the same process on the same store. No interrupt may affect them."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.queue = TaskQueue(store, {"work": lambda payload, context: payload}, 2, executor="thread")
        self.handles: list[Handle] = []
        self.turns = {"reader": 0, "writer": 0}
        self.errors: list[str] = []
        self._over = False
        self._threads = [threading.Thread(target=self._live, args=(name,), daemon=True) for name in self.turns]

    def __enter__(self) -> Company:
        self.queue.start()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._over = True
        for thread in self._threads:
            thread.join(STUCK)
        self.queue.shutdown(timeout=10)

    def _live(self, name: str) -> None:
        act = self._read if name == "reader" else self._write
        while not self._over:
            try:
                act()
            except BaseException as error:
                self.errors.append(f"the {name} heard {error!r}")
                return
            self.turns[name] += 1
            time.sleep(0.01)  # what the writer adds stays: deleted tasks would raise the versions of new ones

    def _read(self) -> None:
        self.store.stats()
        self.store.find(queue="default", limit=10)

    def _write(self) -> None:
        self.handles.append(self.queue.add("work", len(self.handles)))

    def check(self) -> None:
        """All go on, and whatever was added comes to its end."""
        before = dict(self.turns)
        give_up_at = time.monotonic() + STUCK
        while any(self.turns[name] == before[name] for name in before) and not self.errors:
            if time.monotonic() > give_up_at:
                raise Broken(f"threads hang: {before} turns, and no more in {STUCK:g} s")
            time.sleep(0.005)
        if self.errors:
            raise Broken("; ".join(self.errors))
        handles, self.handles = self.handles[:], []
        for handle in handles:
            try:
                handle.result(STUCK)
            except DTQError as error:
                raise Broken(f"a task that was added does not end: {error!r}") from error
            except TimeoutError as error:
                raise Broken(f"a task that was added does not end: {error}") from error
        if self.queue.health > STUCK:
            raise Broken(f"the node has not asked for work for {self.queue.health:.1f} s")


def pester(
    store: Store, presses: Presses, interrupts: int, *, seed: int = 0, settle: float = 0.0,
    tell: Callable[[int, Counter[str]], None] = lambda n, outcomes: None, reopen: Callable[[], Store] | None = None,
) -> Counter[str]:  # fmt: skip
    """So many interrupts by real signals, at random moments of random calls."""
    game = Game(store, presses, random.Random(seed), settle, time.time() + AHEAD)
    took = dict.fromkeys(game.calls().keys() - OF_ALL, 0.002)  # seconds, as it was last seen
    n = 0
    with Company(store) as company:
        while n < interrupts:
            name = game.chance.choice(sorted(took))

            def press(call: Callable[[], Any], name: str = name) -> Any:
                began = time.perf_counter()
                try:
                    return presses.after(game.chance.uniform(0, 1.2 * took[name]), call)
                finally:
                    took[name] = min(0.1, 0.8 * took[name] + 0.2 * max(2e-5, 2 * (time.perf_counter() - began)))

            if not game.play(name, press):
                continue
            n += 1
            if n % 200 == 0:
                company.check()
                tell(n, game.outcomes)
        company.check()
    game.drain()
    game.model.close()
    if reopen is not None:
        again = reopen()
        game.compare("when it was opened again", again)
        again.close()
    return game.outcomes


def main() -> int:
    parser = argparse.ArgumentParser(description="Presses Ctrl-C at any moment of any call on a store.")
    parser.add_argument("--store", default="sqlite", help="memory, sqlite, file, or the URL of a server")
    parser.add_argument("--interrupts", type=int, default=2000, help="how many, at random moments")
    parser.add_argument("--sweep", action="store_true", help="every moment of every call instead, one after the other")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    began = time.monotonic()

    def tell(n: int, outcomes: Counter[str]) -> None:
        happened = sum(count for name, count in outcomes.items() if name.endswith("had happened"))
        print(f"{time.monotonic() - began:7.1f} s  {n:7,} interrupts, {happened:6,} of calls that happened", flush=True)

    with tempfile.TemporaryDirectory() as directory:
        url = {"memory": "memory:", "sqlite": f"{directory}/queue.db", "file": f"file:{directory}/queue"}.get(
            options.store, options.store
        )
        store, presses = open_store(url), Presses()
        lasts = options.store in ("sqlite", "file")
        again = (lambda: store.close() or open_store(url)) if lasts else None
        settle = 0.02 if "://" in options.store else 0.0
        try:
            if options.sweep:
                outcomes = sweep(store, presses, settle=settle, seed=options.seed, reopen=again)
            else:
                outcomes = pester(
                    store, presses, options.interrupts, seed=options.seed, settle=settle, tell=tell, reopen=again
                )
        except Broken as error:
            print(f"BROKEN with --seed {options.seed}: {error}", flush=True)
            os._exit(1)  # a thread may hang
        for name, count in sorted(outcomes.items()):
            print(f"{count:9,}  {name}")
        store.close()
    print(f"no promise was broken in {time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
