"""Pauses between the turns of a loop: they help an open stream of tasks, and nothing else may pay for that.

The models below have a clock of their own. A turn costs 0.7 ms, in which no client can add a task; an add costs 0.3 ms.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator

import pytest

from dtq.queue.coalescer import KEEP, LULL, PAUSE, Coalescer

TURN, ADD = 0.0007, 0.0003  # seconds


class Never(Coalescer):
    def pause(self, now: float, found: int, held: int) -> float:
        return 0.0


def stream(coalescer: Coalescer, every: float = ADD, begin: float = 1000.0, seconds: float = 5.0) -> Iterator[tuple]:
    """A client that adds tasks and waits for none, `every` so many seconds. Gives each turn: its time, the tasks that
    it found, and the pause after it."""
    now, held = begin, 0
    next_add = now
    while now < begin + seconds:
        found = 0
        while next_add <= now:
            found += 1
            next_add += every
        now += TURN
        pause = coalescer.pause(now, found, held)
        yield now, found, pause
        next_add = max(next_add, now + ADD if every == ADD else next_add)
        held = found
        now = now + pause if pause else max(now, next_add)


def closed_loop(coalescer: Coalescer, clients: int, seconds_each: float, workers: int = 2) -> float:
    """Clients that wait for each result before they add the next task. Returns tasks a second."""
    now, end, ended, waiting = 1000.0, 1008.0, 0, clients
    running: list[float] = []
    free = [now] * workers
    while now < end:
        done = sum(at <= now for at in running)
        running = [at for at in running if at > now]
        found, waiting, held = waiting, done, len(running)
        now += TURN
        for _ in range(found):
            at = max(heapq.heappop(free), now) + seconds_each
            heapq.heappush(free, at)
            running.append(at)
        ended += done
        pause = coalescer.pause(now, found, held)
        if pause:
            now += pause
        elif not waiting:
            now = max(now, min(running))
    return ended / 8.0


def test_an_open_stream_is_taken_in_batches_and_gains():
    alone, paused = (sum(found for _, found, _ in stream(coalescer)) for coalescer in (Never(), Coalescer()))
    assert paused > 1.6 * alone


@pytest.mark.parametrize("clients", [1, 4, 16])
@pytest.mark.parametrize("seconds", [0.0005, 0.005, 0.05])
def test_clients_that_wait_for_their_results_lose_nothing(clients, seconds):
    assert closed_loop(Coalescer(), clients, seconds) > 0.98 * closed_loop(Never(), clients, seconds)


def test_a_stream_that_a_node_does_not_slow_is_hardly_delayed():
    turns = list(stream(Coalescer(), every=1 / 900, seconds=10.0))
    assert sum(pause > 0 for _, _, pause in turns) < 0.02 * len(turns)


@pytest.mark.parametrize("every", [0.0021, 0.01, 0.1])
def test_a_task_that_comes_alone_never_waits(every):
    assert not any(pause for _, _, pause in stream(Coalescer(), every))


def test_the_first_tasks_after_a_lull_do_not_wait():
    coalescer = Coalescer()
    *_, (now, _, pause) = stream(coalescer)
    assert pause == PAUSE
    assert coalescer.pause(now + LULL + 0.001, 0, 16) == 0
    assert coalescer.pause(now + 2 * LULL, 1, 0) == 0
    assert not coalescer.is_on


def test_pauses_are_compared_again_while_a_stream_lasts():
    """Where they do not help any more, they end."""
    coalescer = Coalescer()
    *_, (now, _, _) = stream(coalescer)
    found = [pause for _, _, pause in stream(coalescer, every=1 / 900, begin=now, seconds=KEEP + 5.0)]
    assert sum(pause > 0 for pause in found[-1000:]) < 50
