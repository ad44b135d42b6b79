"""The key under which Feast keeps a user online, and deleting it, without importing Feast: a gateway has no other use for it.

Source: `feast.infra.key_encoding_utils.serialize_entity_key`, version 3, and `feast.infra.online_stores.helpers._redis_key`; a test
compares.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from contextlib import closing

import redis
from redis.backoff import ExponentialBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from features.errors import FeatureStoreError
from features.redis_erasure import rewrite_log

_STRING = 2
"""`feast.types.value.ValueType.STRING`."""


def online_user_key(project: str, user_id: str) -> bytes:
    """Redis key of a user's hash."""
    name, value = b"user_id", user_id.encode()
    entity = struct.pack("<III", 1, _STRING, len(name)) + name + struct.pack("<II", _STRING, len(value)) + value
    return entity + project.encode()


def delete_online_users(url: str, project: str, user_ids: Sequence[str]) -> int:
    """Delete users' online features, from Redis' append-only file too; returns how many there were.

    Raises:
        FeatureStoreError: Redis cannot be reached.
    """
    retry = Retry(ExponentialBackoff(cap=0.5, base=0.05), 3)
    try:
        with closing(redis.Redis.from_url(url, socket_connect_timeout=2.0, socket_timeout=30.0, retry=retry)) as client:
            deleted = int(client.delete(*(online_user_key(project, one) for one in user_ids)))
            rewrite_log(client)
            return deleted
    except RedisError as error:
        raise FeatureStoreError(f"the online feature store cannot be reached: {error}; start the stack, then try again") from error
