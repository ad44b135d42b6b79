"""Requests that came while others were being answered are answered together: what a batch shares is paid once.

A request that finds nobody at work is answered alone and at once. Only between batches of several is there a moment for the next
to come.
"""

from __future__ import annotations

import asyncio
import contextvars
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
    """So many batches at a time.

    Args:
        answer: gives an answer, or the error, for each of a batch.
        at_once: batches that may be under way together.
        pause_s: after a batch of several.
    """

    def __init__(
        self,
        answer: Callable[[Sequence[Asked]], Awaitable[Sequence[Answer | Exception]]],
        *,
        at_once: int = 1,
        pause_s: float = PAUSE_S,
    ) -> None:
        self._answer, self._at_once, self._pause_s = answer, at_once, pause_s
        self._waiting: deque[tuple[Asked, asyncio.Future[Answer]]] = deque()
        self._at_work: set[asyncio.Task[None] | None] = set()

    async def ask(self, asked: Asked) -> Answer:
        """Answer one request, with the others of its batch.

        Raises:
            Exception: what `answer` gave for it.
        """
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((asked, future))
        if len(self._at_work) < self._at_once:
            # In a context of its own: a batch is nobody's in particular, and must not end with the request that came first.
            self._at_work.add(asyncio.create_task(self._work(), context=contextvars.Context()))
        return await future

    async def _work(self) -> None:
        try:
            while self._waiting:
                batch = [self._waiting.popleft() for _ in range(min(MOST, len(self._waiting)))]
                batch = [(asked, future) for asked, future in batch if not future.done()]  # else nobody waits any more
                if batch:
                    await self._answer_all(batch)
                # Answers leave before the next batch is at work.
                await asyncio.sleep(self._pause_s if len(batch) > 1 else 0)
        finally:
            self._at_work.discard(asyncio.current_task())

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
