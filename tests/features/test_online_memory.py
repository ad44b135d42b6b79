"""What a user takes online is bounded, whatever the user did."""

from __future__ import annotations

import base64
import uuid
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import redis

from feature_repo.specs import CATEGORY_BYTES, RECENT_ID_BYTES, RECENT_ITEMS, TOP_CATEGORIES
from features.activity_log import activity_log
from features.aggregates import UserStates, id_bytes
from features.columns import equal_columns, table_columns
from features.events import POSITIVE_ACTIONS
from features.paths import DatasetPaths
from features.schema import DatasetSchema
from features.store import Features
from tests.conftest import RedisServer

pytestmark = pytest.mark.integration

BOUND = 800
"""Bytes of a user."""

IDS: dict[str, Callable[[np.random.Generator, int], list[str]]] = {
    "numbers": lambda rng, n: [str(one) for one in rng.integers(0, 10**7, n)],
    "short codes": lambda rng, n: [base64.b32encode(rng.bytes(6)).decode()[:10] for _ in range(n)],
    "random letters": lambda rng, n: [base64.b64encode(rng.bytes(8)).decode()[:11] for _ in range(n)],
    "uuids": lambda rng, n: [str(uuid.UUID(bytes=rng.bytes(16))) for _ in range(n)],
    "single letters": lambda rng, n: [chr(33 + one) for one in rng.integers(0, 90, n)],
}


@pytest.mark.parametrize("kind", list(IDS))
def test_a_user_of_500_events_takes_at_most_800_bytes(
    kind: str, rng: np.random.Generator, own_redis: RedisServer, tmp_path: Path
) -> None:
    per_user, users = 500, 20
    rows = per_user * users
    items = IDS[kind](rng, rows)
    words = [base64.b32encode(rng.bytes(9)).decode() for _ in range(40)]
    categories = {item: list(rng.choice(words, 3, replace=False)) for item in items}
    # Sessions of some ten events over three months, so that all tiles are in use.
    gap_s = np.where(rng.random(rows) < 0.1, rng.exponential(150_000, rows), rng.exponential(2_000, rows))
    times_us = 1_700_000_000_000_000 + (np.cumsum(gap_s.reshape(users, per_user), axis=1) * 1e6).astype(np.int64).ravel()
    events = pa.table(
        {
            "user_id": np.repeat([f"user-{n:08d}" for n in range(users)], per_user),
            "item_id": items,
            "timestamp": pa.array(times_us).cast(pa.timestamp("us", tz="UTC")),
            "value": rng.random(rows),
            "action": rng.choice(sorted(POSITIVE_ACTIONS), rows),
        }
    )
    log = activity_log(events, "user")
    (states,) = UserStates(log, categories).after(np.arange(users), log.indptr[1:])
    paths = DatasetPaths(tmp_path, f"memory-{uuid.uuid4().hex[:8]}")
    features = Features(paths, DatasetSchema(paths.dataset), own_redis.url, user_ttl_s=3600)
    features.apply()
    with redis.Redis.from_url(own_redis.url) as client:
        client.config_set("hash-max-listpack-value", 1024)
        features.push_users(states)
        keys = list(client.scan_iter(match=f"*{paths.feast_project}", count=1000))
        sizes = [client.memory_usage(key, samples=0) for key in keys]
    assert len(sizes) == users
    assert max(sizes) <= BOUND, sizes
    for ids, names in zip(states["recent_items"].to_pylist(), states["user_categories"].to_pylist(), strict=True):
        size = id_bytes(pa.array(ids)).sum()
        assert size <= RECENT_ID_BYTES
        assert len(ids) == RECENT_ITEMS or size + max(map(len, items)) > RECENT_ID_BYTES
        assert len(names) <= TOP_CATEGORIES
        assert sum(map(len, names)) <= CATEGORY_BYTES
    online = features.online_users(states["user_id"].to_pylist())
    specs = features.specs("user")
    expected = table_columns(states, specs)
    for spec in specs:
        assert equal_columns(online[spec.name], expected[spec.name]).all(), spec.name
