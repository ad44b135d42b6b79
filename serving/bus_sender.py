"""Rows on their way to the bus: kept for a moment and sent together, so that no answer waits for them.

Bounded: when the bus is gone for longer than the buffer lasts, the oldest rows go, and are counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable
from typing import Protocol

from features.bus import EventBus
from features.errors import BusUnavailableError

_log = logging.getLogger("shortlist.serving")
MAX_WAITING = 50_000
BATCH = 500
PAUSE_S = 0.05
RETRY_S = 1.0


class Row(Protocol):
    """What can be sent: it tells itself apart from others and knows its bytes."""

    @property
    def key(self) -> str: ...

    def encode(self) -> bytes: ...


class BusSender:
    """Sends rows of one stream from one gateway replica. Belongs to one event loop.

    Args:
        stream: where they go.
        bus: the bus.
        count: told of an outcome ("published", "dropped") and how many.
    """

    def __init__(self, stream: str, bus: EventBus, count: Callable[[str, int], None]) -> None:
        self._stream, self._bus, self._count = stream, bus, count
        self._waiting: deque[Row] = deque()
        self._some = asyncio.Event()
        """Set by rows that came since the last turn: nobody wakes up for none."""
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to send."""
        self._task = asyncio.create_task(self._run(), name=self._stream)

    async def stop(self) -> None:
        """Send what is left, as far as the bus takes it, and end."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        with contextlib.suppress(BusUnavailableError):
            while self._waiting:
                await self._send()

    def put(self, row: Row) -> None:
        """Note a row."""
        if len(self._waiting) >= MAX_WAITING:
            self._drop(1)
        self._waiting.append(row)
        self._some.set()

    async def _run(self) -> None:
        """Send what comes until cancelled. No trouble ends it."""
        while True:
            await self._some.wait()
            self._some.clear()
            await asyncio.sleep(PAUSE_S)
            try:
                # What comes while these are sent waits for the next turn: a call costs as much as the encoding of 200 rows.
                for _ in range(-(-len(self._waiting) // BATCH)):
                    await self._send()
            except BusUnavailableError as error:
                _log.warning("%s wait (%d): %s", self._stream, len(self._waiting), error)
                self._some.set()
                await asyncio.sleep(RETRY_S)
            except Exception:
                _log.exception("%s: some cannot be sent and are dropped", self._stream)
                self._drop(min(BATCH, len(self._waiting)))
                self._some.set()

    def _drop(self, number: int) -> None:
        for _ in range(number):
            self._waiting.popleft()
        self._count("dropped", number)

    async def _send(self) -> None:
        batch = [self._waiting[position] for position in range(min(BATCH, len(self._waiting)))]
        await self._bus.publish_async(self._stream, [one.encode() for one in batch], [one.key for one in batch])
        for one in batch:
            # While it was being sent, the oldest may have been dropped for newer ones.
            if self._waiting and self._waiting[0] is one:
                self._waiting.popleft()
        self._count("published", len(batch))
