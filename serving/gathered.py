"""Requests that came while others were being answered are answered together: what a batch shares is paid once.

A request that finds nobody at work is answered alone and at once. One that does waits a moment for company: those that a batch has
just answered ask again soon, and the first of them to come must not leave without the others. Where one more batch may be under way
it is left its half, or all would sooner or later go together and the other replica have nothing to do.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

MOST = 8
"""Requests of a batch. More save little, and all of a batch wait for its last."""
SHARED = 4
"""Requests of a batch while another one may begin."""
NEWEST_COUNTS = 0.2
"""How much of the smoothed duration of a batch is the newest one's."""

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")


class Gathered(Generic[Asked, Answer]):
    """So many batches at a time.

    Args:
        answer: gives an answer, or the error, for each of a batch.
        at_once: batches that may be under way together.
        patience: share of what a batch takes that one waits at most for company: for as many requests as the worker's last batch
            had, or as the smallest one under way has.
    """

    def __init__(
        self,
        answer: Callable[[Sequence[Asked]], Awaitable[Sequence[Answer | Exception]]],
        *,
        at_once: int = 1,
        patience: float = 0.0,
    ) -> None:
        self._answer, self._at_once, self._patience = answer, at_once, patience
        self._waiting: deque[tuple[Asked, asyncio.Future[Answer]]] = deque()
        self._workers: set[asyncio.Task[None] | None] = set()
        self._under_way: list[int] = []
        self._gathering = 0
        self._came = asyncio.Event()
        self._batch_s = 0.0

    async def ask(self, asked: Asked) -> Answer:
        """Answer one request, with the others of its batch.

        Raises:
            Exception: what `answer` gave for it.
        """
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((asked, future))
        self._came.set()
        self._staff()
        return await future

    def _staff(self) -> None:
        """Let one more go to work, where requests wait that nobody is gathering."""
        if self._waiting and not self._gathering and len(self._workers) < self._at_once:
            # In a context of its own: a batch is nobody's in particular, and must not end with the request that came first.
            work = self._work(min(self._under_way, default=1))
            self._gathering += 1
            self._workers.add(asyncio.create_task(work, context=contextvars.Context()))

    async def _work(self, wanted: int) -> None:
        try:
            while True:
                try:
                    await asyncio.sleep(0)  # answers leave before the next batch is at work, and what comes together goes together
                    await self._gather(min(wanted, MOST))
                    most = MOST if len(self._workers) == self._at_once else SHARED
                    batch = [self._waiting.popleft() for _ in range(min(most, len(self._waiting)))]
                finally:
                    self._gathering -= 1
                self._staff()
                if not batch:
                    return
                batch = [(asked, future) for asked, future in batch if not future.done()]  # else nobody waits any more
                if batch:
                    await self._answer_all(batch)
                wanted = len(batch)
                self._gathering += 1
        finally:
            self._workers.discard(asyncio.current_task())

    async def _gather(self, wanted: int) -> None:
        """Wait until so many requests are there, as long as patience allows."""
        loop = asyncio.get_running_loop()
        until = loop.time() + self._patience * self._batch_s
        while len(self._waiting) < wanted and (left_s := until - loop.time()) > 0:
            self._came.clear()
            try:
                async with asyncio.timeout(left_s):
                    await self._came.wait()
            except TimeoutError:
                return

    async def _answer_all(self, batch: list[tuple[Asked, asyncio.Future[Answer]]]) -> None:
        answers: Sequence[Answer | Exception]
        loop = asyncio.get_running_loop()
        started = loop.time()
        self._under_way.append(len(batch))
        try:
            answers = await self._answer([asked for asked, _ in batch])
        except Exception as error:
            answers = [error] * len(batch)
        finally:
            self._under_way.remove(len(batch))
        self._batch_s += (NEWEST_COUNTS if self._batch_s else 1.0) * (loop.time() - started - self._batch_s)
        for (_, future), answer in zip(batch, answers, strict=True):
            if future.done():
                continue
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)
