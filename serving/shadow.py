"""The gateway's side of the shadow: what was computed for a user is put aside, and sent on in batches when nobody minds.

Sheds first: what does not fit into a short buffer, or has waited too long, is dropped and counted. One batch is on its way at a
time, so that however slow the shadow is, it costs the gateway a few microseconds an answer and one hop a batch.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import secrets
import socket
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from features.control_store import ControlStore
from features.errors import StoreError
from serving.cached_list import CachedList
from serving.config import ServingConfig
from serving.control import ShadowTarget
from serving.live_state import LiveVersion
from serving.messages import ComputeRequest, ShadowAsk
from serving.metrics import GatewayMetrics
from serving.shadow_tally import ShadowTallies, ShadowTally

_log = logging.getLogger("shortlist.serving")

BUFFERED = 128
"""Answers that wait; a burst beyond them is shed."""
BATCH = 32
"""Most answers of one hop. A hop costs the gateway as much as several answers: it waits for so many, or for `LINGER_S`."""
LISTED = 20
"""Items of a live list that are compared."""
LINGER_S = 0.5
STORE_EVERY_S = 2.0
TIMEOUT_S = 30.0

Score = Callable[[str, Sequence[ShadowAsk]], Awaitable[ShadowTally]]
"""Version and answers to what the shadow makes of them; the hop to its replica."""


class ShadowSender:
    """Sends to the shadow what one gateway replica has computed. Belongs to one event loop.

    Args:
        config: of the stack.
        score: the hop.
        target: gives the present shadow, None where there is none.
        metrics: counted here.
    """

    def __init__(
        self, config: ServingConfig, score: Score, target: Callable[[], ShadowTarget | None], metrics: GatewayMetrics
    ) -> None:
        self._score, self._target, self._metrics = score, target, metrics
        self._tallies = ShadowTallies(ControlStore(config.control_url), config.dataset)
        self._replica = f"{socket.gethostname()[:32]}-{os.getpid()}-{secrets.token_hex(4)}"
        self._waiting: deque[ShadowAsk] = deque()
        self._sums: dict[str, ShadowTally] = {}
        self._unsaved: set[str] = set()
        self._saved_at = 0.0
        self._some, self._many = asyncio.Event(), asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to send."""
        self._task = asyncio.create_task(self._run(), name="shadow")

    async def stop(self) -> None:
        """Store what is known and end; what waits is dropped."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._save()

    def offer(self, live: LiveVersion, request: ComputeRequest, answer: CachedList, seconds: float) -> None:
        """An answer that was computed for a user: put aside for the shadow, or shed."""
        target = self._target()
        if target is None or target.version == live.version or (target.sample < 1 and random.random() >= target.sample):
            return
        if len(self._waiting) >= BUFFERED:
            self._count(target.version, ShadowTally(shed=1))
            return
        shown = answer.item_idx[:LISTED]
        items = tuple(live.items.item_ids[shown].tolist())
        self._waiting.append(
            ShadowAsk(replace(request, log_as=None), items, tuple(answer.score[: len(shown)].tolist()), 1000 * seconds)
        )
        self._some.set()
        if len(self._waiting) >= BATCH:
            self._many.set()

    async def _run(self) -> None:
        while True:
            if not self._waiting and not self._unsaved:
                self._some.clear()
                await self._some.wait()
            if len(self._waiting) < BATCH:
                self._many.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LINGER_S):
                    await self._many.wait()
            target = self._target()
            if target is None:
                self._waiting.clear()
            elif self._waiting:
                await self._send(target.version)
            if self._unsaved and time.monotonic() - self._saved_at >= STORE_EVERY_S:
                await self._save()

    async def _send(self, version: str) -> None:
        batch = [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]
        try:
            async with asyncio.timeout(TIMEOUT_S):  # wait_for may swallow the cancellation of `stop`
                tally = await self._score(version, batch)
        except Exception as error:  # a shadow that is gone or stuck is a finding about the shadow
            _log.warning("shadow version %s: %d answers not scored: %s: %s", version, len(batch), type(error).__name__, error)
            tally = ShadowTally(failed=len(batch))
        self._count(version, tally)

    def _count(self, version: str, tally: ShadowTally) -> None:
        self._sums.setdefault(version, ShadowTally()).add(tally)
        self._unsaved.add(version)
        self._some.set()
        self._metrics.shadow(version, scored=tally.scored, shed=tally.shed, failed=tally.failed, overlap=tally.overlap)

    async def _save(self) -> None:
        self._saved_at = time.monotonic()
        for version in list(self._unsaved):
            try:
                await asyncio.to_thread(self._tallies.put, version, self._replica, self._sums[version])
                self._unsaved.discard(version)
            except StoreError as error:
                _log.warning("shadow: sums not stored, tried again: %s", error)
                return
