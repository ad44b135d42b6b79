"""The event bus on Redis Streams (7.2 or later). Keys: `sl:{<site>:<dataset>}:<stream>`, and beside it `:dead` and `:ids:<window>`.

The braces keep a dataset's keys in one slot of a Redis Cluster. Durability is the server's: with an append-only file a publish
that returned survives the death of any process; `appendfsync always` also a power cut.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import ExponentialBackoff
from redis.connection import HiredisRespSerializer
from redis.exceptions import RedisError, ResponseError
from redis.retry import Retry

from features.bus import GROUPS, BusEntry, DeadLetter, StreamLag
from features.errors import BusFullError, BusUnavailableError
from features.publish_deadline import PublishDeadline
from features.redis_erasure import delete_entries, forget_keys, rewrite_log
from features.redis_groups import GroupPositions

MAX_ENTRIES = 2_000_000
"""Entries that a stream may hold before publishing is refused: about 1 GB of events, minutes of the largest burst."""

UNIQUE_WINDOW_S = 300
"""A key is remembered for at least this long, and for twice as long at most."""

PUBLISH_TIMEOUT_S = 2.0
"""Time that `publish_async` may take: below the 5 s after which clients of the gateway give up, far above a slow disk's write."""

# Fields of an entry: p payload, g group it is meant for alone (replayed), and in dead letters reason and entry (the first id).

# Atomic: a retry after a lost reply finds its keys and appends nothing. KEYS: stream, ids of this window, ids of the last window.
# ARGV: most entries, seconds that ids live, then key and payload in turns ('' is no key).
_PUBLISH = """
if redis.call('XLEN', KEYS[1]) + (#ARGV - 2) / 2 > tonumber(ARGV[1]) then return 'FULL' end
local ids = {}
for at = 3, #ARGV, 2 do
  local key = ARGV[at]
  if key ~= '' and (redis.call('SISMEMBER', KEYS[3], key) == 1 or redis.call('SADD', KEYS[2], key) == 0) then
    ids[#ids + 1] = false
  else
    ids[#ids + 1] = redis.call('XADD', KEYS[1], '*', 'p', ARGV[at + 1])
  end
end
redis.call('EXPIRE', KEYS[2], ARGV[2])
return ids
"""


def _pack_in_c(pool: redis.asyncio.ConnectionPool) -> None:
    """Make a pool's connections pack commands by hiredis, as those of redis-py's other client do.

    Its asyncio client packs in Python, which takes longer than all else of publishing.
    """

    class Packing(pool.connection_class):  # TCP, TLS or a Unix socket, as the URL says
        def pack_command(self, *arguments: Any) -> list[bytes]:
            packed: list[bytes] = HiredisRespSerializer().pack(*arguments)
            return packed

    pool.connection_class = Packing


class RedisStreamBus:
    """`EventBus` on one Redis URL, for one dataset.

    Safe to share between threads; `publish_async` belongs to one event loop.

    Args:
        url: `redis://host:port/db` or `unix://path`.
        dataset: namespace of the keys.
        site: tenant part of the keys.
        max_entries: length of a stream at which publishing is refused.
        unique_window_s: how long a published key is remembered at least.
        publish_timeout_s: how long `publish_async` may take.
    """

    def __init__(
        self,
        url: str,
        dataset: str,
        *,
        site: str = "local",
        max_entries: int = MAX_ENTRIES,
        unique_window_s: int = UNIQUE_WINDOW_S,
        publish_timeout_s: float = PUBLISH_TIMEOUT_S,
    ) -> None:
        self._url, self._prefix = url, f"sl:{{{site}:{dataset}}}:"
        self._max_entries, self._window_s = max_entries, unique_window_s
        # The library's default retries make a refused connection take seconds.
        timeouts: dict[str, Any] = {"socket_timeout": 5.0, "socket_connect_timeout": 1.0}
        backoff = ExponentialBackoff(cap=0.1, base=0.02)
        try:
            self._redis = redis.Redis.from_url(url, retry=Retry(backoff, 2), **timeouts)
            self._async = redis.asyncio.Redis.from_url(url, retry=AsyncRetry(backoff, 2), **timeouts)
            _pack_in_c(self._async.connection_pool)
        except ValueError as error:
            raise BusUnavailableError(f"redis.bus_url {url!r} is not a Redis URL: {error}") from None
        self._positions = GroupPositions(self._redis)
        self._publish = self._redis.register_script(_PUBLISH)
        self._publish_async = self._async.register_script(_PUBLISH)
        self._deadline = PublishDeadline(publish_timeout_s)
        self._resumed_from: dict[tuple[str, str, str], str] = {}

    def publish(self, stream: str, payloads: Sequence[bytes], keys: Sequence[str] | None = None) -> list[str | None]:
        """See `EventBus.publish`."""
        if not payloads:
            return []
        with self._translated():
            return self._published(stream, self._publish(*self._publish_arguments(stream, payloads, keys)))

    async def publish_async(self, stream: str, payloads: Sequence[bytes], keys: Sequence[str] | None = None) -> list[str | None]:
        """See `EventBus.publish_async`."""
        if not payloads:
            return []
        arguments = self._publish_arguments(stream, payloads, keys)
        with self._translated():
            return self._published(stream, await self._deadline.call(lambda: self._publish_async(*arguments)))

    def ensure_groups(self, stream: str) -> None:
        """See `EventBus.ensure_groups`."""
        with self._translated():
            for group in GROUPS[stream]:
                try:
                    self._redis.xgroup_create(self._key(stream), group, id="0", mkstream=True)
                except ResponseError as error:
                    if not str(error).startswith("BUSYGROUP"):
                        raise

    def read_group(self, stream: str, group: str, consumer: str, max_entries: int, block_ms: int) -> list[BusEntry]:
        """See `EventBus.read_group`."""
        reader = (stream, group, consumer)
        resume_after = self._resumed_from.get(reader, "0")
        if resume_after != ">":
            entries = self._read(stream, group, consumer, resume_after, max_entries, None)
            if entries:
                self._resumed_from[reader] = entries[-1].id
                return self._for_group(stream, group, self._with_deliveries(stream, group, consumer, entries))
            self._resumed_from[reader] = ">"
        return self._for_group(stream, group, self._read(stream, group, consumer, ">", max_entries, block_ms))

    def claim_abandoned(self, stream: str, group: str, consumer: str, idle_ms: int, max_entries: int) -> list[BusEntry]:
        """See `EventBus.claim_abandoned`."""
        key, held = self._key(stream), list[Any]()
        with self._translated():
            # Own ones too: the library repeats a read whose answer was lost, and what that answer held would wait for ever.
            own = self._redis.xpending_range(key, group, "-", "+", max_entries, consumername=consumer)
            idle = self._redis.xpending_range(key, group, "-", "+", max_entries, idle=idle_ms)
            foreign = [one for one in idle if one["consumer"] != consumer.encode()]
            for found, least_ms in ((own, 0), (foreign, idle_ms)):
                if found:
                    held += self._redis.xclaim(key, group, consumer, least_ms, [one["message_id"] for one in found])
        deliveries = {one["message_id"]: int(one["times_delivered"]) + 1 for one in (*own, *foreign)}
        entries = [_entry(row, deliveries[row[0]]) for row in held if row[1]]
        return self._for_group(stream, group, entries)

    def ack(self, stream: str, group: str, ids: Sequence[str]) -> None:
        """See `EventBus.ack`."""
        if ids:
            with self._translated():
                self._redis.xack(self._key(stream), group, *ids)

    def has_finished(self, stream: str, group: str, entry_id: str) -> bool:
        """See `EventBus.has_finished`."""
        with self._translated():
            return self._positions.has_finished(self._key(stream), group, entry_id)

    def dead_letter(self, stream: str, group: str, entry: BusEntry, reason: str) -> None:
        """See `EventBus.dead_letter`."""
        with self._translated(), self._redis.pipeline(transaction=True) as steps:
            steps.xadd(self._key(stream, "dead"), {"p": entry.payload, "g": group, "reason": reason[:500], "entry": entry.id})
            steps.xack(self._key(stream), group, entry.id)
            steps.execute()

    def dead(self, stream: str, max_entries: int) -> list[DeadLetter]:
        """See `EventBus.dead`."""
        with self._translated():
            rows = self._redis.xrange(self._key(stream, "dead"), count=max_entries)
        return [_dead_letter(row) for row in rows]

    def replay(self, stream: str, ids: Sequence[str] | None = None) -> int:
        """See `EventBus.replay`."""
        replayed, wanted = 0, None if ids is None else set(ids)
        for letter in self._all_dead(stream):
            if wanted is None or letter.id in wanted:
                with self._translated(), self._redis.pipeline(transaction=True) as steps:
                    steps.xadd(self._key(stream), {"p": letter.payload, "g": letter.group})
                    steps.xdel(self._key(stream, "dead"), letter.id)
                    steps.execute()
                replayed += 1
        return replayed

    def discard(self, stream: str, ids: Sequence[str]) -> int:
        """See `EventBus.discard`."""
        with self._translated():
            return int(self._redis.xdel(self._key(stream, "dead"), *ids)) if ids else 0

    def tail(self, stream: str, max_entries: int) -> list[BusEntry]:
        """See `EventBus.tail`."""
        with self._translated():
            rows = self._redis.xrevrange(self._key(stream), count=max_entries)
        return [_entry(row) for row in reversed(rows)]

    def lag(self, stream: str) -> StreamLag:
        """See `EventBus.lag`."""
        with self._translated():
            groups = self._positions.lags(self._key(stream))
            length, dead = self._redis.xlen(self._key(stream)), self._redis.xlen(self._key(stream, "dead"))
        return StreamLag(stream, int(length), int(dead), tuple(groups))

    def trim(self, stream: str) -> int:
        """See `EventBus.trim`."""
        with self._translated():
            first_needed = self._positions.first_needed(self._key(stream), GROUPS[stream])
            if first_needed is None:
                return 0
            return int(self._redis.xtrim(self._key(stream), minid=first_needed, approximate=False))

    def erase(self, stream: str, is_meant: Callable[[bytes], bool], keys: Collection[str] = ()) -> int:
        """See `EventBus.erase`."""
        with self._translated():
            deleted = sum(delete_entries(self._redis, self._key(stream, part), is_meant) for part in (None, "dead"))
            forget_keys(self._redis, self._key_sets(stream), keys)
            rewrite_log(self._redis)
        return deleted

    def close(self) -> None:
        """See `EventBus.close`."""
        self._redis.close()

    async def aclose(self) -> None:
        """Close the connections of `publish_async`."""
        await self._async.aclose()

    def _key(self, stream: str, part: str | None = None) -> str:
        return f"{self._prefix}{stream}" + (f":{part}" if part else "")

    def _publish_arguments(
        self, stream: str, payloads: Sequence[bytes], keys: Sequence[str] | None
    ) -> tuple[list[str], list[str | bytes | int]]:
        arguments: list[str | bytes | int] = [self._max_entries, 2 * self._window_s + 1]
        for key, payload in zip(keys or [""] * len(payloads), payloads, strict=True):
            arguments += (key, payload)
        return [self._key(stream), *self._key_sets(stream)], arguments

    def _key_sets(self, stream: str) -> list[str]:
        """Sets of the keys that were published within this window and the one before."""
        window = int(time.time()) // self._window_s
        return [self._key(stream, f"ids:{window - age}") for age in (0, 1)]

    def _published(self, stream: str, ids: list[bytes | None] | bytes) -> list[str | None]:
        if isinstance(ids, bytes):
            raise BusFullError(
                f"event bus stream {stream!r} holds {self._max_entries:,} entries: its readers are behind; try later"
            )
        return [None if one is None else one.decode() for one in ids]

    def _read(self, stream: str, group: str, consumer: str, after: str, max_entries: int, block_ms: int | None) -> list[BusEntry]:
        with self._translated():
            try:
                found = self._redis.xreadgroup(group, consumer, {self._key(stream): after}, count=max_entries, block=block_ms)
            except ResponseError as error:
                if not str(error).startswith("NOGROUP"):
                    raise
                # The server lost its data, or nobody has read yet.
                self.ensure_groups(stream)
                return []
        rows = found[0][1] if found else []
        vanished = [row[0] for row in rows if not row[1]]
        if vanished:
            # Deleted from the stream (an erasure) after they were handed out: nothing is left to do for them.
            self.ack(stream, group, [one.decode() for one in vanished])
        return [_entry(row) for row in rows if row[1]]

    def _with_deliveries(self, stream: str, group: str, consumer: str, entries: list[BusEntry]) -> list[BusEntry]:
        with self._translated():
            found = self._redis.xpending_range(
                self._key(stream), group, entries[0].id, entries[-1].id, len(entries), consumername=consumer
            )
        deliveries = {one["message_id"].decode(): int(one["times_delivered"]) for one in found}
        return [replace(entry, deliveries=deliveries.get(entry.id, 1)) for entry in entries]

    def _for_group(self, stream: str, group: str, entries: list[BusEntry]) -> list[BusEntry]:
        """Drops (and acknowledges) entries that were replayed for another group."""
        self.ack(stream, group, [entry.id for entry in entries if entry.only_for not in (None, group)])
        return [entry for entry in entries if entry.only_for in (None, group)]

    def _all_dead(self, stream: str) -> Iterator[DeadLetter]:
        after = "-"
        while True:
            with self._translated():
                rows = self._redis.xrange(self._key(stream, "dead"), min=after, count=500)
            yield from map(_dead_letter, rows)
            if len(rows) < 500:
                return
            after = "(" + rows[-1][0].decode()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (RedisError, TimeoutError) as error:
            where = urlsplit(self._url)  # without the password that it may hold
            place = f"{where.hostname or where.path}:{where.port or ''}"
            why = str(error) or "it does not answer in time"
            raise BusUnavailableError(f"event bus at {place} failed ({why}); is Redis up? see `shortlist doctor`") from error


def _entry(row: tuple[bytes, dict[bytes, bytes]], deliveries: int = 1) -> BusEntry:
    fields = row[1]
    only_for = fields.get(b"g")
    return BusEntry(row[0].decode(), fields[b"p"], deliveries, None if only_for is None else only_for.decode())


def _dead_letter(row: tuple[bytes, dict[bytes, bytes]]) -> DeadLetter:
    fields = row[1]
    return DeadLetter(row[0].decode(), fields[b"g"].decode(), fields[b"reason"].decode(), fields[b"entry"].decode(), fields[b"p"])
