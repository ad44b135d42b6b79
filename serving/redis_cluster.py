"""The cache on a Redis Cluster: what `RedisWire` is for one Redis, with a connection a primary.

A command goes to the node that has its key's slot; what one turn of the event loop sends to a node leaves as one pipeline. A unit's
list and activity share a hash tag, so one MGET reads both. Slots that have moved make the map be asked for anew, and until it is
there a read counts as a cache that is down. A node that is gone takes its own units with it and no others.

Source: Redis Cluster specification, "Keys distribution model" (CRC16 XMODEM of the hash tag, modulo 16,384).
"""

from __future__ import annotations

import asyncio
import binascii
import logging
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import redis
from redis.cluster import RedisCluster

from serving.errors import CacheDownError
from serving.redis_wire import Done, RedisWire, Reply

_log = logging.getLogger("shortlist.serving")
SCHEME = "redis+cluster"
"""`redis+cluster://[user:password@]host:port` names any node of a cluster."""
SLOTS = 16_384
LOOK_AGAIN_S = 1.0
"""Least time between two looks at the map of slots."""


class ClusterWire:
    """Connections to all primaries of a cluster. Belongs to one event loop.

    Args:
        url: of any node, with the scheme `redis+cluster`.
        timeout_s: as in `RedisWire`.
    """

    def __init__(self, url: str, timeout_s: float) -> None:
        self._url, self._timeout_s = url, timeout_s
        self._nodes: dict[str, RedisWire] = {}
        self._owner: list[RedisWire | None] = [None] * SLOTS
        self._moved = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None

    @property
    def up(self) -> bool:
        """Whether any node answers."""
        return any(node.up for node in self._nodes.values())

    async def start(self) -> None:
        """Connect, and keep connected until `stop`. Returns after the first attempt, whether it worked or not."""
        await self._look()
        self._keeper = asyncio.create_task(self._keep(), name="cluster-map")

    async def stop(self) -> None:
        """Close for good."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        for node in self._nodes.values():
            await node.stop()

    def send(self, done: Done, *command: str | bytes | int) -> None:
        """Send a command to the node of its key; `done` gets its reply or the error."""
        node = self._owner[slot_of(str(command[3] if command[0] == "EVAL" else command[1]))]
        if node is None:
            self._moved.set()
            done(CacheDownError("no node of the cache cluster has the key's slot"))
            return

        def seen(reply: Reply | Exception) -> None:
            if isinstance(reply, Exception):
                self._moved.set()
            done(reply)

        node.send(seen, *command)

    async def call(self, *command: str | bytes | int) -> Reply:
        """Send a command and wait for its reply.

        Raises:
            CacheDownError: the node is gone, too slow, or answered with an error.
        """
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self.send(lambda reply: None if future.done() else future.set_result(reply), *command)
        reply = await future
        if isinstance(reply, Exception):
            raise CacheDownError(str(reply))
        return reply

    async def _keep(self) -> None:
        while True:
            await self._moved.wait()
            await asyncio.sleep(LOOK_AGAIN_S)
            self._moved.clear()
            await self._look()

    async def _look(self) -> None:
        """Ask a node who has which slots. Where none answers, the old map stays and the next command asks again."""
        known = [url for url, node in self._nodes.items() if node.up]
        for url in [*known, _node_url(self._url, None)]:
            wire = self._nodes.get(url) or RedisWire(url, self._timeout_s)
            try:
                if url not in self._nodes:
                    await wire.start()
                await self._take(await wire.call("CLUSTER", "SLOTS"), asked=str(urlsplit(url).hostname))
                return
            except CacheDownError as error:
                _log.warning("the map of the cache cluster cannot be read: %s", error)
            finally:
                if url not in self._nodes:
                    await wire.stop()
        self._moved.set()

    async def _take(self, ranges: list[Any], asked: str) -> None:
        """Keep the map that the node at the host `asked` gave."""
        owner: list[RedisWire | None] = [None] * SLOTS
        there = set()
        for first, last, (host, port, *_), *_ in ranges:
            # A cluster may name no hosts (`cluster-preferred-endpoint-type unknown-endpoint`): then that of the node asked holds.
            url = _node_url(self._url, f"{host.decode() if host else asked}:{port}")
            there.add(url)
            if url not in self._nodes:
                self._nodes[url] = RedisWire(url, self._timeout_s)
                await self._nodes[url].start()
            owner[first : last + 1] = [self._nodes[url]] * (last + 1 - first)
        self._owner = owner
        for url in set(self._nodes) - there:
            await self._nodes.pop(url).stop()


def is_cluster(url: str) -> bool:
    """Whether a URL names a cluster."""
    return urlsplit(url).scheme == SCHEME


def blocking_client(url: str, **options: Any) -> redis.Redis | RedisCluster:
    """redis-py's client of a cache URL, for everything that is not on the hot path."""
    return RedisCluster.from_url(_node_url(url, None), **options) if is_cluster(url) else redis.Redis.from_url(url, **options)


def slot_of(key: str) -> int:
    """The slot of a key: of what stands between its first braces, where that is not empty."""
    start = key.find("{")
    stop = key.find("}", start + 1) if start >= 0 else -1
    return binascii.crc_hqx((key[start + 1 : stop] if stop > start + 1 else key).encode(), 0) % SLOTS


def _node_url(url: str, address: str | None) -> str:
    """`redis://` URL of a node with the credentials of the cluster's URL; of the named node itself where no address is given."""
    parts = urlsplit(url)
    credentials, _, named = parts.netloc.rpartition("@")
    return urlunsplit(("redis", f"{credentials}@{address or named}" if credentials else address or named, "", "", ""))
