"""Named values beside the bus: the newest one of each replaces the last. For snapshots that many read and one writes.

Keys: `sl:{<site>:<dataset>}:board:<name>`. What a value means is its writer's business.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import redis
from redis.backoff import ExponentialBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from features.errors import BusUnavailableError


class RedisBoard:
    """The board of one dataset. Safe to share between threads.

    Args:
        url: of the Redis that holds the online features.
        dataset: namespace of the keys.
        site: tenant part of the keys.
    """

    def __init__(self, url: str, dataset: str, *, site: str = "local") -> None:
        self._url, self._prefix = url, f"sl:{{{site}:{dataset}}}:board:"
        retry = Retry(ExponentialBackoff(cap=0.1, base=0.02), 2)
        self._redis = redis.Redis.from_url(url, retry=retry, socket_timeout=5.0, socket_connect_timeout=1.0)

    def put(self, name: str, value: bytes, ttl_s: int) -> None:
        """Replace a value; it is gone `ttl_s` seconds after the last `put`.

        Raises:
            BusUnavailableError: Redis cannot be reached or refuses.
        """
        with self._translated():
            self._redis.set(self._prefix + name, value, ex=ttl_s)

    def get(self, name: str) -> bytes | None:
        """A value, None where there is none; raises as `put`."""
        with self._translated():
            found: bytes | None = self._redis.get(self._prefix + name)
        return found

    def close(self) -> None:
        """Close connections."""
        self._redis.close()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except RedisError as error:
            where = urlsplit(self._url)  # without the password that it may hold
            raise BusUnavailableError(f"Redis at {where.hostname or where.path}:{where.port or ''} failed ({error})") from error
