"""Rows on their way to a real bus: sent a moment after they come, kept while the bus is gone, and nobody wakes up for none."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from typing import Any

import pytest

from features.bus import EXPOSURES
from features.redis_bus import RedisStreamBus
from serving.bus_sender import PAUSE_S, BusSender

pytestmark = pytest.mark.integration


@dataclass
class _Row:
    key: str

    def encode(self) -> bytes:
        return self.key.encode()


class _Told:
    def __init__(self) -> None:
        self.published = self.dropped = 0

    def __call__(self, outcome: str, count: int) -> None:
        if outcome == "published":
            self.published += count
        else:
            self.dropped += count

    async def reaches(self, count: int) -> None:
        async with asyncio.timeout(20):
            while self.published < count:
                await asyncio.sleep(0.01)


def test_rows_are_sent_whenever_they_come(redis_server: str) -> None:
    bus, told = RedisStreamBus(redis_server, "sender-often"), _Told()

    async def run() -> None:
        sender = BusSender(EXPOSURES, bus, told)
        sender.start()
        for sent in range(1, 4):
            sender.put(_Row(f"r{sent}"))
            await told.reaches(sent)
            await asyncio.sleep(2 * PAUSE_S)
        sender.put(_Row("last"))
        await sender.stop()

    asyncio.run(run())
    assert told.published == 4
    bus.close()


def test_a_row_that_cannot_be_sent_ends_nothing(redis_server: str, caplog: pytest.LogCaptureFixture) -> None:
    bus, told = RedisStreamBus(redis_server, "sender-wrong"), _Told()

    async def run() -> None:
        sender = BusSender(EXPOSURES, bus, told)
        sender.start()
        sender.put(_Row("half \ud800"))
        async with asyncio.timeout(20):
            while not caplog.records:
                await asyncio.sleep(0.01)
        sender.put(_Row("well"))
        await told.reaches(1)
        await sender.stop()

    with caplog.at_level(logging.ERROR, "shortlist.serving"):
        asyncio.run(run())
    assert told.dropped == 1
    bus.close()


def test_rows_wait_for_a_bus_that_is_gone(own_redis: Any) -> None:
    bus, told = RedisStreamBus(own_redis.url, "sender-gone"), _Told()

    async def run() -> None:
        sender = BusSender(EXPOSURES, bus, told)
        sender.start()
        sender.put(_Row("before"))
        await told.reaches(1)
        own_redis.kill()
        sender.put(_Row("meanwhile"))
        await asyncio.sleep(4 * PAUSE_S)
        assert told.published == 1
        own_redis.start()
        await told.reaches(2)
        await sender.stop()

    asyncio.run(run())
    bus.close()


def test_nobody_wakes_up_for_no_rows(redis_server: str) -> None:
    bus = RedisStreamBus(redis_server, "sender-idle")

    async def run() -> int:
        sender, turns = BusSender(EXPOSURES, bus, _Told()), 0
        sender.start()
        await asyncio.sleep(0)
        loop, until = asyncio.get_running_loop(), time.monotonic() + 6 * PAUSE_S
        scheduled = loop.call_at

        def counted(*arguments: object, **named: object) -> asyncio.TimerHandle:
            nonlocal turns
            turns += 1
            return scheduled(*arguments, **named)  # type: ignore[arg-type]

        loop.call_at = counted  # type: ignore[method-assign]
        try:
            await asyncio.sleep(until - time.monotonic())
        finally:
            loop.call_at = scheduled  # type: ignore[method-assign]
            await sender.stop()
        return turns

    assert asyncio.run(run()) == 1  # the test's own sleep
    bus.close()
