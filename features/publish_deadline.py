"""A deadline for calls to a bus that may hang: stopped, out of disk, behind a network that swallows packets.

Without it each call waits as long as the client library does, with a connection of its own. Here a call waits for some seconds;
after one that waited in vain a single call at a time asks whether the bus is back, and the others are refused at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

MAX_UNDER_WAY = 256
"""Calls that may wait for the bus together, each on a connection of its own; the others wait for their turn."""


class PublishDeadline:
    """Bounds calls in time and number. Belongs to one event loop.

    Args:
        seconds: a call may take, waiting for its turn included.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._turns = asyncio.Semaphore(MAX_UNDER_WAY)
        self._hangs = False
        self._asks: asyncio.Task[object] | None = None
        """The call that asks whether the bus is back."""

    async def call(self, send: Callable[[], Awaitable[T]]) -> T:
        """What `send` returns.

        Raises:
            TimeoutError: not within the deadline; whether the bus has taken the call is not known. Or it hangs, and was not asked.
        """
        # A task of its own, which is not waited for once it is late: the client library does not always end when it is cancelled.
        task = asyncio.create_task(self._in_turn(send))
        try:
            await asyncio.wait({task}, timeout=self._seconds)
            late = not task.done()
        finally:
            task.cancel()
        if late:
            task.add_done_callback(_forget)
            self._hangs, self._asks = True, None if self._asks is task else self._asks
            raise TimeoutError
        result = task.result()
        self._hangs = False
        return result

    async def _in_turn(self, send: Callable[[], Awaitable[T]]) -> T:
        async with self._turns:
            return await (self._alone(send) if self._hangs else send())

    async def _alone(self, send: Callable[[], Awaitable[T]]) -> T:
        if self._asks is not None:
            raise TimeoutError
        self._asks = asyncio.current_task()
        try:
            return await send()
        finally:
            if self._asks is asyncio.current_task():
                self._asks = None


def _forget(task: asyncio.Task[T]) -> None:
    if not task.cancelled():
        task.exception()  # else asyncio logs that nobody has asked for it
