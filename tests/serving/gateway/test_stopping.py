"""A gateway stops whatever is going on: a cancellation that comes together with what a task waits for is not lost."""

import asyncio
from collections.abc import Callable

import pytest

from features.control_store import ControlStore
from serving.config import ServingConfig
from serving.gateway import GatewayApp
from serving.redis_wire import RedisWire


@pytest.mark.parametrize("turns", range(6))
def test_a_change_in_the_moment_of_stopping_does_not_keep_it_running(
    make_config: Callable[..., ServingConfig], redis_server: str, turns: int
) -> None:
    config = make_config(bus_url=redis_server, cache_url=redis_server, reread_s=60.0)
    ControlStore(config.control_url).create().close()

    async def run() -> None:
        app = GatewayApp(config)
        await app._start()
        await asyncio.sleep(0.2)  # every task waits
        app._notice()
        for _ in range(turns):
            await asyncio.sleep(0)
        await asyncio.wait_for(app._stop(), 10)

    asyncio.run(run())


@pytest.mark.parametrize("turns", range(8))
def test_a_cache_connection_stops_while_it_is_being_made(redis_server: str, turns: int) -> None:
    async def run() -> None:
        wire = RedisWire(redis_server, 1.0)
        start = asyncio.create_task(wire.start())
        for _ in range(turns):
            await asyncio.sleep(0)
        await asyncio.wait_for(wire.stop(), 10)
        start.cancel()

    asyncio.run(run())
