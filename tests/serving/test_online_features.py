"""A learned ranker with real Feast: features read online give the list that the history gives, and fill in what it lacks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pytest

from features.activity_store import ActivityStore
from features.build_features import build_features
from features.catalogue import Catalogue
from features.events import EVENT_SCHEMA, Event
from features.store import Features
from serving.config import ServingConfig
from serving.item_table import ItemTable
from serving.messages import ComputeRequest
from serving.online_users import OnlineUser, OnlineUsers
from serving.recent_activity import RecentActivity, RecentEvent
from serving.retriever import RetrieverStage
from serving.version_lists import encode_answer
from shortlist.stack.redis_server import start_redis
from training.dataset import fold_events
from training.pipeline import Pipeline

pytestmark = pytest.mark.integration
LATER_US = 86_400_000_000


@pytest.fixture(scope="module")
def config(world, item_attributes: pa.Table, tmp_path_factory: pytest.TempPathFactory, fill_catalogue) -> Iterator[ServingConfig]:
    """A dataset with its activity in the store and its features materialized into a real Redis."""
    home = tmp_path_factory.mktemp("feast")
    child, url = start_redis("features", "features", home / "redis", durable=False)
    config = ServingConfig(
        dataset="planted",
        home=home,
        mlflow_uri="http://127.0.0.1:1",
        control_url=f"sqlite:///{home / 'control.db'}",
        bus_url=url,
        features_url=url,
        cache_url=url,
    )
    try:
        catalogue = Catalogue(fill_catalogue(config.control_url, item_attributes), "planted")
        rows = [
            Event(f"e{n}", row["item_id"], "view", row["timestamp"], user_id=row["user_id"]).to_row(received_at=row["timestamp"])
            for n, row in enumerate(fold_events(world).to_pylist())
        ]
        ActivityStore(config.paths.activity).append(pa.Table.from_pylist(rows, schema=EVENT_SCHEMA))
        build_features(config.paths, catalogue)
        features = Features(config.paths, catalogue.schema(), url)
        features.apply()
        features.materialize()
        yield config
    finally:
        child.stop()


def read(config: ServingConfig, *user_ids: str) -> list[OnlineUser | None]:
    async def ask() -> list[OnlineUser | None]:
        users = OnlineUsers(config)
        users.start()
        deadline = time.monotonic() + 60
        while not users.ready and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        return await users.read(user_ids)

    return asyncio.run(ask())


def test_online_features_are_used_and_agree_with_the_history(config: ServingConfig, ranked_bundle: Path, world) -> None:
    stage = RetrieverStage(Pipeline.load(ranked_bundle), ItemTable.from_bundle(ranked_bundle))
    now_us = round(datetime.now(UTC).timestamp() * 1e6)
    *found, nobody = read(config, *world.user_ids[:8], "nobody")
    assert nobody is None
    for user_id, online in zip(world.user_ids[:8], found, strict=True):
        assert online is not None
        request = ComputeRequest(str(user_id), 20)
        query, rejected = stage.query(request, RecentActivity(), now_us, online)
        assert query.user_features.keys() == set(stage.pipeline.user_feature_names)
        lists = []
        for asked in (query, replace(query, user_features={})):
            ranked = stage.pipeline.rank(asked, stage.retrieve(request, asked, rejected), request.k)
            lists.append(encode_answer(ranked, RecentActivity(), now_us, 30))
        assert lists[0] == lists[1]


def test_a_store_that_lags_behind_is_not_believed(config: ServingConfig, ranked_bundle: Path, world) -> None:
    stage = RetrieverStage(Pipeline.load(ranked_bundle), ItemTable.from_bundle(ranked_bundle))
    user_id = str(world.user_ids[3])
    (online,) = read(config, user_id)
    newer = RecentActivity(1, (RecentEvent("i049", int(world.time_us.max()) + LATER_US, True),))
    query, _ = stage.query(ComputeRequest(user_id, 20), newer, 2_000_000_000_000_000, online)
    assert not query.user_features
    assert query.item_idx[-1] == stage.items.row("i049")
    history = stage.pipeline.histories
    assert len(query.item_idx) == history.indptr[4] - history.indptr[3] + 1
