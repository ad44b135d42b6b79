"""Cached lists and freshness marks in the cache Redis, as the gateway and precompute use them.

Keys carry site, dataset and version, and `{user}` as hash tag, so that a user's list and mark sit on one node of a Redis Cluster:

    sl:<site>:<dataset>:v<version>:{u:<user>}    the list (serving.cached_list)
    sl:<site>:<dataset>:recent:{u:<user>}        mark and last events (serving.recent_activity)

Requests of one turn of the event loop share one MGET; on a Redis Cluster one pipeline a node (`serving.redis_cluster`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from serving.cached_list import CachedList, decode_list
from serving.config import ServingConfig
from serving.exploration import NewItems
from serving.recent_activity import APPEND_SCRIPT, MAX_BYTES, RecentEvent, encode_events, mark_of
from serving.redis_cluster import ClusterWire, is_cluster
from serving.redis_wire import RedisWire, Reply

_log = logging.getLogger("shortlist.serving")

MARK_EXTRA_S = 7 * 86_400
"""Marks outlive lists by this much, so that a list precomputed from older activity than the mark is known to be stale."""


class CacheRead(NamedTuple):
    """What the cache knows of a user. `reachable` is False where it could not be asked."""

    cached: CachedList | None
    activity: bytes
    reachable: bool

    @property
    def fresh(self) -> bool:
        """Whether the list is as new as the user's activity."""
        return self.cached is not None and self.cached.activity_at_us >= mark_of(self.activity)


ABSENT = CacheRead(None, b"", False)


def user_unit(user_id: str) -> str:
    """Unit of a user in keys."""
    return f"u:{user_id}"


def session_unit(session_id: str) -> str:
    """Unit of an anonymous session in keys."""
    return f"s:{session_id}"


def list_key(config: ServingConfig, version: str, unit: str) -> str:
    """Key of a unit's list."""
    return f"{config.key_prefix}:v{version}:{{{unit}}}"


def activity_key(config: ServingConfig, unit: str) -> str:
    """Key of a unit's mark and last events."""
    return f"{config.key_prefix}:recent:{{{unit}}}"


class ListCache:
    """The gateway's side of the cache. Belongs to one event loop; nothing here raises when Redis is gone."""

    def __init__(self, config: ServingConfig) -> None:
        self._config = config
        self._activity_prefix = f"{config.key_prefix}:recent:"
        self._list_prefixes: dict[str, str] = {}
        self._clustered = is_cluster(config.cache_url)
        wire = ClusterWire if self._clustered else RedisWire
        self._wire: RedisWire | ClusterWire = wire(config.cache_url, config.cache_timeout_ms / 1000)
        self.new_items = NewItems(self._wire, f"{config.key_prefix}:shown")
        self._asked: list[tuple[tuple[str, ...], asyncio.Future[CacheRead]]] = []

    @property
    def up(self) -> bool:
        """Whether Redis answers."""
        return self._wire.up

    async def start(self) -> None:
        """Connect and stay connected."""
        await self._wire.start()

    async def stop(self) -> None:
        """Close the connection."""
        await self._wire.stop()

    async def read(self, version: str | None, unit: str) -> CacheRead:
        """List and activity of a unit, in one round trip shared with all requests of this loop turn.

        Args:
            version: whose list is wanted; None reads the activity alone.
            unit: `user_unit` or `session_unit`.
        """
        if not self._wire.up:
            return ABSENT
        loop = asyncio.get_running_loop()
        if not self._asked:
            loop.call_soon(self._flush)
        answer: asyncio.Future[CacheRead] = loop.create_future()
        self._asked.append((self._keys(version, unit), answer))
        return await answer

    def write(self, version: str, unit: str, blob: bytes) -> None:
        """Keep a list; nobody waits for it."""
        self._wire.send(_ignore, "SET", list_key(self._config, version, unit), blob, "EX", self._config.cache_ttl_s)

    async def append_activity(self, events: Mapping[str, Sequence[RecentEvent]], now_us: int) -> bool:
        """Add events of units to their activity and move their marks; returns whether Redis took them all.

        Args:
            events: unit -> events, oldest first.
            now_us: the receiver's clock.
        """
        calls = [self._append(unit, encode_events(new), now_us, MAX_BYTES) for unit, new in events.items()]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        return not any(isinstance(answer, BaseException) for answer in answers)

    async def forget_activity(self, unit: str, now_us: int) -> None:
        """Drop a unit's events and move its mark, so that its lists are stale."""
        await asyncio.gather(self._append(unit, b"", now_us, 0), return_exceptions=True)

    def _append(self, unit: str, entries: bytes, now_us: int, max_bytes: int) -> Awaitable[Reply]:
        time_to_live = self._config.cache_ttl_s + MARK_EXTRA_S
        return self._wire.call("EVAL", APPEND_SCRIPT, 1, activity_key(self._config, unit), now_us, entries, max_bytes, time_to_live)

    def _keys(self, version: str | None, unit: str) -> tuple[str, ...]:
        """`activity_key` and `list_key` of a unit, with what does not depend on it built once."""
        activity = f"{self._activity_prefix}{{{unit}}}"
        if version is None:
            return (activity,)
        prefix = self._list_prefixes.get(version)
        if prefix is None:
            prefix = self._list_prefixes[version] = list_key(self._config, version, "").removesuffix("{}")
        return activity, f"{prefix}{{{unit}}}"

    def _flush(self) -> None:
        asked, self._asked = self._asked, []
        if self._clustered:
            # One MGET a unit, whose keys share a slot; those to one node leave together.
            for keys, answer in asked:
                self._wire.send(partial(_answered, answer), "MGET", *keys)
            return

        def done(reply: Reply | Exception) -> None:
            if isinstance(reply, Exception):
                _log.debug("cache read failed: %s", reply)
            at = 0
            for keys, answer in asked:
                if not answer.done():  # the client may have gone away
                    answer.set_result(ABSENT if isinstance(reply, Exception) else _parse(reply[at : at + len(keys)]))
                at += len(keys)

        self._wire.send(done, "MGET", *(key for keys, _ in asked for key in keys))


def _answered(answer: asyncio.Future[CacheRead], reply: Reply | Exception) -> None:
    if isinstance(reply, Exception):
        _log.debug("cache read failed: %s", reply)
    if not answer.done():  # the client may have gone away
        answer.set_result(ABSENT if isinstance(reply, Exception) else _parse(reply))


def _parse(values: list[bytes | None]) -> CacheRead:
    blob = values[1] if len(values) > 1 else None
    return CacheRead(None if blob is None else decode_list(blob), values[0] or b"", True)


def _ignore(reply: Reply | Exception) -> None:
    if isinstance(reply, Exception):
        _log.debug("cache write failed: %s", reply)
