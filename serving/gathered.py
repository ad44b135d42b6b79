"""Requests that came while others were being answered are answered together: what a batch shares is paid once.

A request that finds nobody at work is answered alone and at once. Only between batches of several is there a moment for the next
to come.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

MOST = 8
"""Requests of a batch. More save little, and all of a batch wait for its last."""
PAUSE_S = 0.002
"""After a batch of several: those that were answered ask again, and what they ask is cheaper together."""

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")


class Gathered(Generic[Asked, Answer]):
    """One batch at a time.

    Args:
        answer: gives an answer, or the error, for each of a batch.
    """

    def __init__(self, answer: Callable[[Sequence[Asked]], Awaitable[Sequence[Answer | Exception]]]) -> None:
        self._answer = answer
        self._waiting: deque[tuple[Asked, asyncio.Future[Answer]]] = deque()
        self._at_work: asyncio.Task[None] | None = None

    async def ask(self, asked: Asked) -> Answer:
        """Answer one request, with the others of its batch.

        Raises:
            Exception: what `answer` gave for it.
        """
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((asked, future))
        if self._at_work is None:
            self._at_work = asyncio.create_task(self._work())
        return await future

    async def _work(self) -> None:
        try:
            while self._waiting:
                batch = [self._waiting.popleft() for _ in range(min(MOST, len(self._waiting)))]
                batch = [(asked, future) for asked, future in batch if not future.done()]  # else nobody waits any more
                if batch:
                    await self._answer_all(batch)
                # Answers leave before the next batch is at work.
                await asyncio.sleep(PAUSE_S if len(batch) > 1 else 0)
        finally:
            self._at_work = None

    async def _answer_all(self, batch: list[tuple[Asked, asyncio.Future[Answer]]]) -> None:
        answers: Sequence[Answer | Exception]
        try:
            answers = await self._answer([asked for asked, _ in batch])
        except Exception as error:
            answers = [error] * len(batch)
        for (_, future), answer in zip(batch, answers, strict=True):
            if future.done():
                continue
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)
