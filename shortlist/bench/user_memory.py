"""What a user's online features take in Redis, by the number of the user's events, pushed through Feast as the worker does."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import redis

from features.activity_log import activity_log
from features.aggregates import UserStates
from features.paths import DatasetPaths
from features.schema import DatasetSchema
from features.store import Features
from shortlist.stack.redis_server import start_redis

EVENTS_PER_USER = (10, 50, 500)
USERS = 1_000
ITEMS = 20_000
CATEGORIES = 60
WEEK_S = 7 * 86_400


def measure_user_memory() -> list[dict[str, Any]]:
    """Bytes of a user for each of `EVENTS_PER_USER`: as Redis says of the key, and of its memory in all."""
    return [_measured(per_user) for per_user in EVENTS_PER_USER]


def _measured(per_user: int) -> dict[str, Any]:
    rng = np.random.default_rng(per_user)
    rows = USERS * per_user
    # Sessions of some ten events: minutes between two events, and a tenth of the times days.
    gaps_s = np.where(rng.random(rows) < 0.1, rng.exponential(WEEK_S / 4, rows), rng.exponential(300, rows))
    times_us = 1_700_000_000_000_000 + (np.cumsum(gaps_s.reshape(USERS, per_user), axis=1) * 1e6).astype(np.int64).ravel()
    events = pa.table(
        {
            "user_id": np.repeat(np.array([f"user-{n:08d}" for n in range(USERS)]), per_user),
            "item_id": np.char.add("item-", rng.integers(0, ITEMS, rows).astype(str)),
            "timestamp": pa.array(times_us).cast(pa.timestamp("us", tz="UTC")),
            "value": rng.integers(1, 6, rows).astype(np.float64),
        }
    )
    numbers = rng.integers(0, CATEGORIES, (ITEMS, 3))
    categories = {f"item-{n}": [f"Category {c}" for c in dict.fromkeys(numbers[n].tolist())] for n in range(ITEMS)}
    log = activity_log(events, "user")
    blocks = list(UserStates(log, categories).after(np.arange(USERS), log.indptr[1:]))
    with tempfile.TemporaryDirectory(prefix="shortlist-bench-") as folder:
        child, url = start_redis("bench-features", "bench", Path(folder), durable=True)
        try:
            features = Features(DatasetPaths(Path(folder) / "home", "bench"), DatasetSchema("bench"), url, user_ttl_s=86_400)
            features.apply()
            with redis.Redis.from_url(url) as client:
                before = client.info("memory")["used_memory"]
                for block in blocks:
                    features.push_users(block)
                keys = list(client.scan_iter(count=USERS))
                sizes = [int(client.memory_usage(key, samples=0) or 0) for key in keys]
                used = client.info("memory")["used_memory"] - before
                expiring = sum(client.ttl(key) > 0 for key in keys)
        finally:
            child.stop()
    return {
        "events_per_user": per_user,
        "users": len(keys),
        "key_bytes_mean": round(float(np.mean(sizes))),
        "key_bytes_max": max(sizes),
        "used_memory_per_user": round(used / len(keys)),
        "expiring": expiring,
    }
