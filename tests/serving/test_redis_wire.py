"""The cache connection when Redis goes, hangs and comes back: nobody waits longer than the time-out."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from serving.cache import ListCache, list_key, user_unit
from serving.cached_list import CachedList
from serving.errors import CacheDownError
from serving.recent_activity import RecentEvent
from serving.redis_wire import RedisWire
from shortlist.stack.ports import free_port
from shortlist.stack.redis_server import start_redis

pytestmark = pytest.mark.integration


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple]:
    port = free_port()
    child, url = start_redis("wire", "test", tmp_path, durable=False, port=port)
    yield child, url
    child.stop()


async def until(condition, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


def test_replies_come_in_order_and_errors_are_errors(server) -> None:
    async def talk() -> None:
        wire = RedisWire(server[1], 1.0)
        await wire.start()
        await wire.call("SET", "k", b"\x00\xff")
        answers = await asyncio.gather(*(wire.call("ECHO", str(n)) for n in range(500)), wire.call("GET", "k"))
        assert answers[:-1] == [str(n).encode() for n in range(500)]
        assert answers[-1] == b"\x00\xff"
        with pytest.raises(CacheDownError):
            await wire.call("LPUSH", "k", "1")
        with pytest.raises(UnicodeEncodeError):
            await wire.call("GET", "half \ud800")
        assert await wire.call("ECHO", "mine") == b"mine"
        assert wire.up
        await wire.stop()
        with pytest.raises(CacheDownError):
            await wire.call("PING")

    asyncio.run(talk())


def test_a_server_that_hangs_or_dies_is_given_up_at_once_and_found_again(server) -> None:
    child, url = server

    async def talk() -> None:
        wire = RedisWire(url, 0.1)
        await wire.start()
        os.kill(child.pid, signal.SIGSTOP)
        started = time.monotonic()
        with pytest.raises(CacheDownError):
            await wire.call("PING")
        assert time.monotonic() - started < 0.3
        started = time.monotonic()
        for _ in range(100):
            with pytest.raises(CacheDownError):
                await wire.call("PING")
        assert time.monotonic() - started < 0.05
        os.kill(child.pid, signal.SIGCONT)
        await until(lambda: wire.up)
        assert await wire.call("PING") == b"PONG"
        child.stop()
        await until(lambda: not wire.up)
        child.start()
        await until(lambda: wire.up)
        await wire.stop()

    asyncio.run(talk())


def test_nothing_is_sent_before_the_database_is_selected(server) -> None:
    _, url = server
    port, other = int(url.rsplit(":", 1)[1].split("/")[0]), free_port()

    async def slowly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Between the wire and Redis: the first reply takes its time."""
        from_redis, to_redis = await asyncio.open_connection("127.0.0.1", port)

        async def back() -> None:
            pause_s = 0.3
            while data := await from_redis.read(65536):
                await asyncio.sleep(pause_s)
                writer.write(data)
                pause_s = 0.0

        task = asyncio.create_task(back())
        while data := await reader.read(65536):
            to_redis.write(data)
        to_redis.close()
        await task
        writer.close()

    async def talk() -> None:
        proxy = await asyncio.start_server(slowly, "127.0.0.1", other)
        wire = RedisWire(f"redis://127.0.0.1:{other}/2", 5.0)
        start = asyncio.create_task(wire.start())
        refused = 0
        while not start.done():
            try:
                await wire.call("SET", "early", "1")
            except CacheDownError:
                refused += 1
            await asyncio.sleep(0.01)
        assert refused > 1
        assert wire.up
        await wire.call("SET", "k", "2")
        direct = RedisWire(f"redis://127.0.0.1:{port}/0", 5.0)
        await direct.start()
        assert await direct.call("DBSIZE") == 0
        await direct.call("SELECT", "2")
        assert await direct.call("KEYS", "*") == [b"k"]
        await direct.stop()
        await wire.stop()
        proxy.close()

    asyncio.run(talk())


def test_nobody_there_is_no_error_for_the_gateway(make_config) -> None:
    async def talk() -> None:
        cache = ListCache(make_config(cache_url=f"redis://127.0.0.1:{free_port()}/0"))
        await cache.start()
        read = await cache.read("1", "u:a")
        assert (read.cached, read.activity, read.reachable, read.fresh) == (None, b"", False, False)
        cache.write("1", "u:a", b"x")
        assert not await cache.append_activity({"u:a": [RecentEvent("i", 1, True)]}, 5)
        await cache.stop()

    asyncio.run(talk())


def test_lists_and_marks_of_many_users_in_one_turn(server, make_config) -> None:
    config = make_config(cache_url=server[1])
    assert "{u:a}" in list_key(config, "1", user_unit("a"))

    def one(number: int, mark: int) -> CachedList:
        return CachedList(np.array([number], np.int32), np.ones(1, np.float32), np.zeros(1, np.uint8), 1, mark)

    async def talk() -> None:
        cache = ListCache(config)
        await cache.start()
        for number in range(50):
            cache.write("1", user_unit(str(number)), one(number, 10).encode())
        assert await cache.append_activity({user_unit("7"): [RecentEvent("i", 3, True)]}, 11)
        reads = await asyncio.gather(*(cache.read("1", user_unit(str(number))) for number in range(60)))
        assert [read.cached.item_idx[0] for read in reads[:50]] == list(range(50))
        assert [read.fresh for read in reads] == [number < 50 and number != 7 for number in range(60)]
        assert (await cache.read("2", user_unit("7"))).cached is None
        assert (await cache.read(None, user_unit("7"))).activity[:16] == b"%016d" % 11
        task = asyncio.create_task(cache.read("1", user_unit("1")))
        other = asyncio.create_task(cache.read("1", user_unit("2")))
        await asyncio.sleep(0)
        task.cancel()
        assert (await other).cached is not None
        await cache.stop()

    asyncio.run(talk())
