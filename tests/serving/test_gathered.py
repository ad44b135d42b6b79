"""Requests that come while others are answered: together, in their order, each with its own outcome."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from serving.gathered import MOST, Gathered


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
