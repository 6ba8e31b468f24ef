"""Requests that share a commit: each gets its own answer, whatever happens to the commit."""

from __future__ import annotations

import asyncio

import pytest

pytest.importorskip("starlette")

from dtq import QueueManager
from dtq.api.batcher import AddBatcher
from dtq.task.model import Task


class Unexpected(BaseException):
    """An error that no store may raise."""


class BrokenManager(QueueManager):
    """Raises this error whenever a task of the type "bad" is added."""

    error: BaseException

    def add_checked(self, tasks):
        tasks = list(tasks)
        if any(task.type == "bad" for task in tasks):
            raise self.error
        return super().add_checked(tasks)


def add_together(manager, *types):
    """Add tasks of these types at the same time, then one more. Return the outcome of each."""

    async def add():
        batcher = AddBatcher(manager)
        together = [batcher.add([Task(type=type)]) for type in types]
        outcomes = await asyncio.wait_for(asyncio.gather(*together, return_exceptions=True), 30)
        outcomes.append(await asyncio.wait_for(batcher.add([Task(type="good")]), 30))
        await batcher.close()
        return outcomes

    return asyncio.run(add())


@pytest.mark.parametrize("error", [KeyError("k"), StopIteration(), RecursionError(), MemoryError(), Unexpected()])
def test_an_unexpected_error_is_the_answer_to_its_own_request_only(error):
    with BrokenManager("memory:") as manager:
        manager.error = error
        good, bad, other, last = add_together(manager, "good", "bad", "good")
        assert isinstance(bad, Exception)
        assert [len(ids) for ids in (good, other, last)] == [1, 1, 1]
        assert manager.stats().total == 3


def test_a_group_that_gets_no_thread_is_answered_and_the_next_one_is_added():
    async def add(manager):
        batcher = AddBatcher(manager)
        submit, failures = batcher._thread.submit, iter([RuntimeError("can't start new thread")])

        def refuse_once(*arguments):
            for failure in failures:
                raise failure
            return submit(*arguments)

        batcher._thread.submit = refuse_once
        with pytest.raises(RuntimeError, match="new thread"):
            await asyncio.wait_for(batcher.add([Task(type="a")]), 30)
        assert len(await asyncio.wait_for(batcher.add([Task(type="a")]), 30)) == 1
        await batcher.close()

    with QueueManager("memory:") as manager:
        asyncio.run(add(manager))


def test_the_end_of_the_runner_ends_the_requests_that_it_had_taken():
    async def add(manager):
        batcher = AddBatcher(manager)
        adding = asyncio.create_task(batcher.add([Task(type="a")]))
        await asyncio.sleep(0)
        batcher._runner.cancel()
        done, _ = await asyncio.wait([adding], timeout=30)
        assert done, "the request was not answered"
        assert "the server ended" in str(adding.exception())
        assert len(await asyncio.wait_for(batcher.add([Task(type="a")]), 30)) == 1
        await batcher.close()

    with QueueManager("memory:") as manager:
        asyncio.run(add(manager))


def test_a_request_that_comes_just_as_the_runner_ends_is_added():
    async def add_one_after_another(manager):
        batcher = AddBatcher(manager)
        for _ in range(5):
            assert len(await batcher.add([Task(type="a")])) == 1
        await batcher.close()

    with QueueManager("memory:") as manager:
        asyncio.run(add_one_after_another(manager))
