"""Users leave the online store when they were inactive for long; items, and the users of old datasets, do not."""

from __future__ import annotations

import time
import uuid
from pathlib import Path

import pyarrow as pa
import pytest
import redis

from features.activity_log import activity_log
from features.aggregates import UserStates
from features.checks import check_features
from features.feature_tables import build_tables
from features.paths import DatasetPaths
from features.schema import DatasetSchema
from features.store import Features

pytestmark = pytest.mark.integration
DAY_US = 86_400_000_000
TTL_S = 10 * 86_400


def make(redis_url: str, root: Path, ages_days: dict[str, int]) -> Features:
    """Users with one event each, so many days ago, in tables that are built and materialized."""
    paths = DatasetPaths(root, f"expiry-{uuid.uuid4().hex[:8]}")
    now_us = time.time_ns() // 1000
    times = pa.array([now_us - age * DAY_US - 1_000_000 for age in ages_days.values()]).cast(pa.timestamp("us", tz="UTC"))
    events = pa.table({"user_id": list(ages_days), "item_id": ["article"] * len(ages_days), "timestamp": times})
    users, items = pa.table({"user_id": list(ages_days)}), pa.table({"item_id": ["article"]})
    build_tables(paths.feature_tables, DatasetSchema(paths.dataset), events, users, items, now_us)
    features = Features(paths, DatasetSchema(paths.dataset), redis_url, user_ttl_s=TTL_S)
    features.apply()
    features.materialize()
    return features


def lives(redis_url: str, features: Features) -> dict[str, int]:
    """Seconds to live of each key of the dataset, by the entity's id; -1 for ever."""
    with redis.Redis.from_url(redis_url) as client:
        keys = list(client.scan_iter(f"*{features.paths.feast_project}*"))
        return {name: client.ttl(key) for key in keys for name in ("old", "recent", "article") if name.encode() in key}


def test_inactive_users_expire_and_come_back_whole(redis_server: str, tmp_path: Path) -> None:
    features = make(redis_server, tmp_path, {"old": 11, "recent": 2})
    found = lives(redis_server, features)
    assert set(found) == {"recent", "article"}
    assert TTL_S - 600 < found["recent"] <= TTL_S
    assert found["article"] == -1
    assert features.online_users(["old", "recent"])["user_events"].tolist() == [0, 1]
    report = check_features(features, time.time_ns() // 1000)
    assert report.ok, report.differences
    assert (report.compared["user"], report.expired["user"]) == (1, 1)
    now_us = time.time_ns() // 1000
    history = pa.table({"user_id": ["old"] * 2, "item_id": ["article", "y"], "timestamp": pa.array([now_us - 11 * DAY_US, now_us])})
    for state in UserStates(log := activity_log(history, "user"), {}).after(log.rows(log.ids), log.indptr[1:]):
        features.push_users(state)
    assert features.online_users(["old"])["user_events"].tolist() == [2]
    assert TTL_S - 600 < lives(redis_server, features)["old"] <= TTL_S


def test_a_dataset_that_is_old_as_a_whole_is_served(redis_server: str, tmp_path: Path) -> None:
    features = make(redis_server, tmp_path, {"old": 4000, "recent": 3000})
    assert features.online_users(["old", "recent"])["user_events"].tolist() == [1, 1]
    assert check_features(features, time.time_ns() // 1000).ok
