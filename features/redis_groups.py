"""How far the groups of a Redis stream are: what each has finished, how much is before it, what nobody needs any more.

Reads only. `redis_bus` trims by it and turns Redis' errors into the bus's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import redis
from redis.exceptions import ResponseError

from features.bus import GroupLag

_COUNT_BLOCK = 5_000


class GroupPositions:
    """Positions of groups on one Redis.

    Args:
        client: connected to it.
    """

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client

    def has_finished(self, key: str, group: str, entry_id: str) -> bool:
        """Whether the group has acknowledged this entry and every one before it."""
        info = next((info for info in self._infos(key) if info["name"] == group.encode()), None)
        if info is None:
            return False
        at, finished = self._position(key, info)
        return _order(entry_id) <= _order(at) if finished else _order(entry_id) < _order(at)

    def lags(self, key: str) -> list[GroupLag]:
        """Unfinished work of every group, by name."""
        seconds, microseconds = self._redis.time()
        groups = []
        for info in self._infos(key):
            oldest = self._oldest_unfinished(key, info)
            age_s = 0.0 if oldest is None else max(0.0, seconds + microseconds / 1e6 - _order(oldest)[0] / 1e3)
            groups.append(GroupLag(info["name"].decode(), self._undelivered(key, info), int(info["pending"]), age_s))
        return sorted(groups, key=lambda one: one.group)

    def first_needed(self, key: str, groups: Sequence[str]) -> str | None:
        """The oldest entry that some group has not finished, or the last that all have; None while one of `groups` is missing."""
        infos = {info["name"].decode(): info for info in self._infos(key)}
        if not set(groups) <= set(infos):
            return None
        return min((self._position(key, info)[0] for info in infos.values()), key=_order)

    def _infos(self, key: str) -> list[dict[str, Any]]:
        try:
            return list(self._redis.xinfo_groups(key))
        except ResponseError as error:
            if "no such key" in str(error):
                return []
            raise

    def _undelivered(self, key: str, info: dict[str, Any]) -> int:
        if info.get("lag") is not None:
            return int(info["lag"])
        # Redis cannot tell once entries were deleted from the middle (an erasure): count them.
        count, after = 0, info["last-delivered-id"]
        while rows := self._redis.xrange(key, min=b"(" + after, count=_COUNT_BLOCK):
            count, after = count + len(rows), rows[-1][0]
        return count

    def _position(self, key: str, info: dict[str, Any]) -> tuple[str, bool]:
        """The group's oldest pending entry and False; with none pending, the last entry it was given, which it finished, and True.

        `info` is from before: what was delivered by then and is not pending now is finished.
        """
        oldest = self._redis.xpending(key, info["name"])["min"]
        return (info["last-delivered-id"].decode(), True) if oldest is None else (oldest.decode(), False)

    def _oldest_unfinished(self, key: str, info: dict[str, Any]) -> str | None:
        at, finished = self._position(key, info)
        if not finished:
            return at
        following = self._redis.xrange(key, min=f"({at}", count=1)
        return str(following[0][0].decode()) if following else None


def _order(entry_id: str) -> tuple[int, int]:
    """An entry id as numbers: milliseconds, and a sequence within them."""
    milliseconds, _, sequence = entry_id.partition("-")
    return int(milliseconds), int(sequence)
