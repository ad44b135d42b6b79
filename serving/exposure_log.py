"""Exposures on their way to the bus: kept for a moment and sent together, so that no answer waits for them.

Bounded: when the bus is gone for longer than the buffer lasts, the oldest exposures go, and are counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from datetime import UTC, datetime

from experiments.exposure import Exposure
from features.bus import EXPOSURES, EventBus
from features.errors import BusUnavailableError
from serving.answers import Answer
from serving.config import ServingConfig
from serving.metrics import GatewayMetrics

_log = logging.getLogger("shortlist.serving")
MAX_WAITING = 50_000
BATCH = 500
PAUSE_S = 0.05
RETRY_S = 1.0


class ExposureLog:
    """Sends exposures of one gateway replica. Belongs to one event loop."""

    def __init__(self, config: ServingConfig, bus: EventBus, metrics: GatewayMetrics) -> None:
        self._site, self._bus, self._metrics = config.site, bus, metrics
        self._waiting: deque[Exposure] = deque()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to send."""
        self._task = asyncio.create_task(self._run(), name="exposures")

    async def stop(self) -> None:
        """Send what is left, as far as the bus takes it, and end."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        with contextlib.suppress(BusUnavailableError):
            while self._waiting:
                await self._send()

    def add(self, answer: Answer) -> None:
        """Note the exposures of an answer: one an experiment that it is in."""
        for one in answer.assignments:
            if len(self._waiting) >= MAX_WAITING:
                self._waiting.popleft()
                self._metrics.exposures("dropped", 1)
            self._waiting.append(
                Exposure(
                    recommendation_id=answer.recommendation_id,
                    experiment=one.experiment,
                    variant=one.variant,
                    unit=one.unit,
                    unit_id=one.unit_id,
                    at=datetime.now(UTC),
                    served_from=answer.served_from,
                    item_ids=[item["item_id"] for item in answer.items],
                    user_id=answer.request.user_id,
                    session_id=answer.request.session_id,
                    model_version=answer.model_version,
                    degraded=answer.degraded,
                    site=self._site,
                )
            )

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(PAUSE_S)
            try:
                while self._waiting:
                    await self._send()
            except BusUnavailableError as error:
                _log.warning("exposures wait (%d): %s", len(self._waiting), error)
                await asyncio.sleep(RETRY_S)

    async def _send(self) -> None:
        batch = [self._waiting[position] for position in range(min(BATCH, len(self._waiting)))]
        await self._bus.publish_async(EXPOSURES, [one.encode() for one in batch], [one.exposure_id for one in batch])
        for one in batch:
            # While it was being sent, the oldest may have been dropped for newer ones.
            if self._waiting and self._waiting[0] is one:
                self._waiting.popleft()
        self._metrics.exposures("published", len(batch))
