"""Deleting entries from Redis Streams by what they hold: streams, their dead letters, and the keys that tell repeats apart."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from typing import Any

import redis
from redis.exceptions import ResponseError

_BLOCK = 1000
_REWRITE_S = 60.0


def delete_entries(client: redis.Redis, key: str, is_meant: Callable[[bytes], bool]) -> int:
    """Delete the entries of one stream whose payload is meant; returns how many. Groups that hold them find nothing left to do."""
    deleted = 0
    for rows in _blocks(client, key):
        gone = [entry_id for entry_id, fields in rows if is_meant(fields[b"p"])]
        if gone:
            deleted += int(client.xdel(key, *gone))
    return deleted


def forget_keys(client: redis.Redis, sets: Collection[str], keys: Collection[str]) -> None:
    """Take keys out of the sets that tell repeats apart."""
    for name in sets:
        if keys:
            client.srem(name, *keys)


def rewrite_log(client: redis.Redis) -> bool:
    """Have the append-only file rewritten, so that what was deleted leaves the disk too; False where the server refuses."""
    try:
        if not client.info("persistence").get("aof_enabled"):
            return True
        client.bgrewriteaof()
    except ResponseError as error:
        if "already in progress" not in str(error):
            return False
    deadline = time.monotonic() + _REWRITE_S
    while _rewriting(client.info("persistence")):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _rewriting(info: dict[str, Any]) -> bool:
    return bool(info["aof_rewrite_in_progress"] or info["aof_rewrite_scheduled"])


def _blocks(client: redis.Redis, key: str) -> Iterator[list[tuple[bytes, dict[bytes, bytes]]]]:
    after = b"-"
    while rows := client.xrange(key, min=after, count=_BLOCK):
        yield rows
        after = b"(" + rows[-1][0]
