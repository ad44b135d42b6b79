"""Requests that come while others are answered: together, in their order, each with its own outcome."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextvars import ContextVar

import pytest

from serving.gathered import MOST, SHARED, Gathered


class Doubler:
    """Answers twice what it is asked, -1 with an error, and keeps the batches; held back by `gate`."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def answer(self, asked: Sequence[int]) -> list[int | Exception]:
        self.batches.append(list(asked))
        await self.gate.wait()
        if asked == [666]:
            raise OSError("all of it fails")
        return [ValueError("negative") if one == -1 else 2 * one for one in asked]


def test_what_comes_meanwhile_is_answered_together() -> None:
    async def run() -> None:
        doubler = Doubler()
        gathered = Gathered(doubler.answer)
        assert await gathered.ask(1) == 2
        doubler.gate.clear()
        first = asyncio.create_task(gathered.ask(2))
        await asyncio.sleep(0.01)
        others = [asyncio.create_task(gathered.ask(one)) for one in range(3, 6 + MOST)]
        await asyncio.sleep(0.01)
        assert doubler.batches == [[1], [2]], "nobody waits for a batch to fill, and one is at work at a time"
        doubler.gate.set()
        assert await asyncio.gather(first, *others) == [2 * one for one in range(2, 6 + MOST)]
        assert doubler.batches[2:] == [list(range(3, 3 + MOST)), [3 + MOST, 4 + MOST, 5 + MOST]]

    asyncio.run(run())


def test_an_error_is_of_its_own_request() -> None:
    async def run() -> None:
        doubler = Doubler()
        gathered = Gathered(doubler.answer)
        found = await asyncio.gather(*(gathered.ask(one) for one in (12, -1, 14)), return_exceptions=True)
        assert (found[0], found[2]) == (24, 28)
        assert isinstance(found[1], ValueError)
        with pytest.raises(OSError, match="all of it"):
            await gathered.ask(666)
        assert await gathered.ask(1) == 2

    asyncio.run(run())


def test_what_nobody_waits_for_any_more_is_not_computed() -> None:
    async def run() -> None:
        doubler = Doubler()
        gathered = Gathered(doubler.answer)
        doubler.gate.clear()
        tasks = [asyncio.create_task(gathered.ask(1))]
        await asyncio.sleep(0.01)
        tasks += [asyncio.create_task(gathered.ask(one)) for one in (2, 3)]
        await asyncio.sleep(0.01)
        tasks[0].cancel()  # at work already
        tasks[1].cancel()  # still waiting
        doubler.gate.set()
        assert await tasks[2] == 6
        assert doubler.batches == [[1], [3]]

    asyncio.run(run())


def test_so_many_batches_are_under_way_as_may_be() -> None:
    async def run() -> None:
        doubler = Doubler()
        gathered = Gathered(doubler.answer, at_once=2)
        doubler.gate.clear()
        tasks = []
        for one in range(1, 6):
            tasks.append(asyncio.create_task(gathered.ask(one)))
            await asyncio.sleep(0.01)
        assert doubler.batches == [[1], [2]], "the third waits for one of two"
        doubler.gate.set()
        assert await asyncio.gather(*tasks) == [2, 4, 6, 8, 10]
        assert doubler.batches[2:] == [[3, 4, 5]]
        assert await gathered.ask(6) == 12, "an idle one goes to work again"

    asyncio.run(run())


def test_one_of_a_batch_that_was_answered_waits_for_the_others_to_ask_again() -> None:
    async def run() -> None:
        doubler = Doubler()
        gathered = Gathered(doubler.answer, at_once=2, patience=5.0)
        doubler.gate.clear()
        batch = [asyncio.create_task(gathered.ask(one)) for one in (1, 2, 3)]
        await asyncio.sleep(0.2)  # a batch takes that long: the patience is a second
        doubler.gate.set()
        await asyncio.gather(*batch)
        doubler.gate.clear()
        again = []
        for one in (4, 5, 6, 7):
            again.append(asyncio.create_task(gathered.ask(one)))
            await asyncio.sleep(0.01)
        assert doubler.batches == [[1, 2, 3], [4, 5, 6]], "as many as the last time, at once; the next waits for two more"
        again += [asyncio.create_task(gathered.ask(one)) for one in (8, 9)]
        await asyncio.sleep(0.01)
        assert doubler.batches[2:] == [[7, 8, 9]], "as many as are under way"
        doubler.gate.set()
        assert await asyncio.gather(*again) == [8, 10, 12, 14, 16, 18]

    asyncio.run(run())


def test_patience_ends_and_nobody_at_work_means_at_once() -> None:
    async def run() -> None:
        doubler = Doubler()
        gathered = Gathered(doubler.answer, at_once=2, patience=0.5)
        doubler.gate.clear()
        batch = [asyncio.create_task(gathered.ask(one)) for one in (1, 2)]
        await asyncio.sleep(0.2)
        late = asyncio.create_task(gathered.ask(3))  # nothing has been measured yet: no patience
        await asyncio.sleep(0.02)
        assert doubler.batches == [[1, 2], [3]]
        doubler.gate.set()
        await asyncio.gather(*batch, late)
        doubler.gate.clear()
        alone = asyncio.create_task(gathered.ask(4))  # of two that were answered only one asks again
        while len(doubler.batches) < 3:
            await asyncio.sleep(0.01)
        assert doubler.batches[2:] == [[4]]
        doubler.gate.set()
        assert await alone == 8
        await asyncio.sleep(0.3)  # nobody is at work any more
        doubler.gate.clear()
        first = asyncio.create_task(gathered.ask(5))
        await asyncio.sleep(0.01)
        assert doubler.batches[3:] == [[5]]
        doubler.gate.set()
        assert await first == 10

    asyncio.run(run())


def test_two_that_are_free_take_half_each() -> None:
    async def run() -> None:
        doubler = Doubler()
        gathered = Gathered(doubler.answer, at_once=2)
        doubler.gate.clear()
        tasks = [asyncio.create_task(gathered.ask(one)) for one in range(2 * SHARED + 3)]
        await asyncio.sleep(0.01)
        assert doubler.batches == [list(range(SHARED)), list(range(SHARED, 2 * SHARED + 3))]
        doubler.gate.set()
        assert await asyncio.gather(*tasks) == [2 * one for one in range(2 * SHARED + 3)]

    asyncio.run(run())


def test_a_batch_is_not_part_of_the_request_that_came_first() -> None:
    whose: ContextVar[str] = ContextVar("whose", default="nobody's")

    async def answer(asked: Sequence[int]) -> list[str | Exception]:
        return [whose.get() for _ in asked]

    async def run() -> None:
        whose.set("the first one's")
        assert await Gathered(answer).ask(1) == "nobody's"

    asyncio.run(run())
