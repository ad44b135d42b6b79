"""What was served, logged and read back: values equal the offline ones, a planted bug raises the alarm, examples carry labels."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from features.activity_store import ActivityStore
from features.build_features import build_features
from features.bus import SERVED_FEATURES, SLATES
from features.catalogue import Catalogue
from features.errors import EventError, FeatureJoinError
from features.events import EVENT_SCHEMA, Event
from features.logged_examples import attributed_events, logged_examples
from features.redis_bus import RedisStreamBus
from features.served import ServedRow, decode_feature_rows, decode_slates, feature_log, is_sampled, list_id, slate_log
from features.skew import describe, skew_report
from features.store import Features
from serving.batch_lists import BatchLists
from serving.cached_list import decode_list
from serving.config import ServingConfig
from serving.feature_log import FeatureLog
from serving.feature_rows import feature_rows
from serving.item_table import ItemTable
from serving.messages import ComputeRequest
from serving.online_users import OnlineUsers
from serving.recent_activity import RecentActivity
from serving.retriever import RetrieverStage
from shortlist.commands.app import run
from shortlist.stack.redis_server import start_redis
from training.dataset import fold_events
from training.pipeline import Pipeline

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def pipeline(ranked_bundle: Path) -> Pipeline:
    """A version whose ranker reads user features."""
    return Pipeline.load(ranked_bundle)


@pytest.fixture
def config(world, item_attributes: pa.Table, tmp_path: Path, fill_catalogue) -> Iterator[ServingConfig]:
    """A dataset with its activity in the store and its features in a real Redis."""
    child, url = start_redis("features", "features", tmp_path / "redis", durable=False)
    nowhere = {"mlflow_uri": "http://127.0.0.1:1", "bus_url": url, "features_url": url, "cache_url": url}
    config = ServingConfig(
        dataset="planted", home=tmp_path, control_url=f"sqlite:///{tmp_path / 'control.db'}", feature_log_rate=1.0, **nowhere
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


def serve_and_log(config: ServingConfig, pipeline: Pipeline, users: list[str]) -> list[ServedRow]:
    """Computes a list for each user as a replica does, and puts slate and features where the worker puts them."""
    stage, log = (
        RetrieverStage(pipeline, ItemTable.from_arrow(pipeline.items, pipeline.by_popularity)),
        FeatureLog(config, pipeline),
    )

    async def compute() -> list[ServedRow]:
        online = OnlineUsers(config)
        online.start()
        deadline = time.monotonic() + 120
        while not online.ready and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        rows = []
        for user in users:
            now_us, read = time.time_ns() // 1000, None
            while read is None:  # a busy machine may be slower than a request waits
                (read,) = await online.read([user])
            request = ComputeRequest(user, 20, log_as=(f"u:{user}", "1"))
            query, rejected = stage.query(request, RecentActivity(), now_us, read)
            candidates = stage.retrieve(request, query, rejected)
            rows.append(log.row(request, query, candidates, pipeline.rank(query, candidates, 20), now_us))
        return rows

    rows = asyncio.run(compute())
    feature_log(config.paths.root).append(decode_feature_rows([row.encode() for row in rows]))
    slates = []
    for number, row in enumerate(rows):
        slate = {name: row.values[name] for name in ("list_id", "site", "at", "user_id", "model_version")}
        rest = {"served_from": "online", "degraded": False, "assignments": ["demo:treatment"], "sample_rate": 0.5}
        slates.append(
            ServedRow(f"r{number}", {"recommendation_id": f"r{number}", "item_ids": row.values["item_ids"][:3], **slate, **rest})
        )
    slate_log(config.paths.root).append(decode_slates([slate.encode() for slate in slates]))
    return rows


def test_served_values_equal_the_offline_ones_and_old_windows_are_named(
    config: ServingConfig, pipeline: Pipeline, world, item_attributes
) -> None:
    users = [str(user) for user in world.user_ids[:12]]
    rows = serve_and_log(config, pipeline, users)
    assert all(row.values["from_online_store"] for row in rows)
    report = skew_report(config.paths, item_attributes, has_times=True)
    assert report.lists == 12
    assert report.alarms == []
    assert {skew.feature for skew in report.skews} >= {"user_events", "user_day_tiles", "user_events_30d", "category_affinity"}
    assert all(skew.different == 0 for skew in report.skews)
    # The walks are of 2024: a user has walked every day of the week before a label, and nothing in the week before now.
    assert set(report.lost) == {"user_events_7d", "user_events_30d"}
    shift = next(one for one in report.shifts if one.feature == "user_events_7d")
    assert (shift.served_mean, shift.trained_mean) == (0.0, 6.0)
    assert "older than the window" in describe(report)["user_events_7d (shifted)"]


def test_a_planted_bug_raises_the_alarm(
    config: ServingConfig, pipeline: Pipeline, world, item_attributes, monkeypatch, capsys
) -> None:
    users = [str(user) for user in world.user_ids[:10]]
    store = Features(config.paths, schema_of(config), config.features_url)
    serve_and_log(config, pipeline, users[:5])
    states = ActivityStore(config.paths.activity).read(["user_id", "item_id", "timestamp", "value"], user_ids=users[5:])
    from features.activity_log import activity_log
    from features.aggregates import UserStates

    log = activity_log(pa.concat_tables([states, states]), "user")  # every event counted twice
    for block in UserStates(log, {}).after(np.arange(len(log.ids)), log.indptr[1:]):
        store.push_users(block)
    serve_and_log(config, pipeline, users[5:])
    report = skew_report(config.paths, item_attributes, has_times=True)
    assert {"user_events", "user_day_tiles", "user_categories"} <= set(report.alarms)
    skew = next(one for one in report.skews if one.feature == "user_events")
    assert (skew.compared, skew.different) == (10, 5)
    assert "served 16, offline 8" in skew.example
    monkeypatch.chdir(config.home)
    monkeypatch.setenv("SHORTLIST_HOME", str(config.home))
    assert run(["features", "skew", "--dataset", "planted", "--json"]) == 1
    assert json.loads(capsys.readouterr().out.strip().splitlines()[-1])["alarms"] == report.alarms


def schema_of(config: ServingConfig):
    from features.control_store import ControlStore

    return Catalogue(ControlStore(config.control_url), config.dataset).schema()


def test_events_find_slate_position_assignment_and_the_values_served(
    config: ServingConfig, pipeline: Pipeline, world, monkeypatch, capsys
) -> None:
    rows = serve_and_log(config, pipeline, [str(user) for user in world.user_ids[:3]])
    now, items = datetime.now(UTC), rows[1].values["item_ids"]
    done = [
        Event("c1", items[1], "click", now, "u1", recommendation_id="r1", position=1),
        Event("c2", items[1], "impression", now, "u1", recommendation_id="r1", position=1),
        Event("c3", "i059", "click", now, "u1", recommendation_id="r1"),
        Event("c4", items[0], "click", now, "u1", recommendation_id="never-logged"),
    ]
    stored = pa.Table.from_pylist([event.to_row(received_at=now) for event in done], schema=EVENT_SCHEMA)
    ActivityStore(config.paths.activity).append(stored)
    found = {row["event_id"]: row for row in attributed_events(config.paths).to_pylist()}
    assert set(found) == {"c1", "c2", "c3"}
    assert (found["c1"]["slate_position"], found["c1"]["assignments"], found["c1"]["weight"]) == (1, ["demo:treatment"], 2.0)
    assert found["c1"]["list_id"] == rows[1].values["list_id"]
    assert found["c3"]["slate_position"] is None
    examples = logged_examples(config.paths).to_pylist()
    assert len(examples) == 9
    row = next(one for one in examples if one["recommendation_id"] == "r1" and one["slate_position"] == 1)
    assert (row["label"], row["actions"], row["weight"]) == (1, ["click", "impression"], 2.0)
    assert sum(one["label"] for one in examples) == 1
    names = rows[1].values["feature_names"]
    served = rows[1].values["values"].reshape(-1, len(names))[1]
    for name, value in zip(names, served, strict=True):
        assert (row[name] is None and np.isnan(value)) or row[name] == value
    monkeypatch.chdir(config.home)
    monkeypatch.setenv("SHORTLIST_HOME", str(config.home))
    out = config.home / "rows.parquet"
    assert run(["features", "logged", "--dataset", "planted", "--out", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out.strip().splitlines()[-1])["rows"] == 9


def test_precomputed_lists_are_logged_with_the_values_that_ranked_them(config: ServingConfig, bundle: Path) -> None:
    batch = BatchLists(config.model_dump_json(), str(bundle), 20, "7")
    bus = RedisStreamBus(config.bus_url, config.dataset)
    bus.ensure_groups(SERVED_FEATURES)
    made = batch({"id": np.arange(12)})
    rows = decode_feature_rows([entry.payload for entry in bus.tail(SERVED_FEATURES, 100)]).to_pylist()
    assert len(rows) == len(made["list"]) == 12
    pipeline, ids = batch.pipeline, np.array(batch.pipeline.items["item_id"].to_pylist())
    for row, user, blob in zip(rows, made["user_id"].tolist(), made["list"].tolist(), strict=True):
        shown = decode_list(blob)
        assert shown is not None
        # A slate of this cached list finds the row by the list's own unit, version and time.
        assert row["list_id"] == list_id(f"u:{user}", "7", shown.computed_at_us)
        assert row["item_ids"] == ids[shown.item_idx].tolist()
        assert (row["user_id"], row["model_version"], row["from_online_store"]) == (user, "7", False)
        # Alone as in a block.
        number = pipeline.histories.user_ids.tolist().index(user)
        query = pipeline.histories.queries(np.array([number], np.int32), np.array([row["request_time_us"]]))
        allowed = np.ones((1, len(ids)), dtype=bool)
        allowed[0, query.item_idx] = False
        candidates = pipeline.retrieve(query, allowed, 20, exclude_history=False)
        ranked = pipeline.rank(query, candidates, 20)
        (alone,) = feature_rows(config, pipeline, "7", [("u", user)], query, candidates, ranked, 0)
        np.testing.assert_allclose(np.array(row["values"], np.float32), alone.values["values"], rtol=1e-4, atol=1e-5)
    bus.close()


def test_lists_are_precomputed_while_the_bus_is_away(config: ServingConfig, bundle: Path) -> None:
    away = config.model_copy(update={"bus_url": "redis://127.0.0.1:1/0"})
    assert len(BatchLists(away.model_dump_json(), str(bundle), 20, "7")({"id": np.arange(3)})["list"]) == 3


def test_nothing_logged_is_said(config: ServingConfig, item_attributes) -> None:
    with pytest.raises(FeatureJoinError, match="feature_log_rate"):
        skew_report(config.paths, item_attributes, has_times=True)
    with pytest.raises(FeatureJoinError, match="feature_log_rate"):
        logged_examples(config.paths)


def test_units_are_sampled_whole() -> None:
    units = [f"u:{number}" for number in range(20_000)]
    share = sum(is_sampled(unit, 0.05) for unit in units) / len(units)
    assert 0.04 < share < 0.06
    assert not any(is_sampled(unit, 0.0) for unit in units)
    assert all(is_sampled(unit, 1.0) for unit in units)
    assert {unit for unit in units if is_sampled(unit, 0.05)} <= {unit for unit in units if is_sampled(unit, 0.1)}


def test_a_real_stack_logs_slates_and_values_of_sampled_users(stack, empty_cache) -> None:
    rate = stack.config.feature_log_rate
    sampled = next(f"u{number}" for number in range(200) if is_sampled(f"u:u{number}", rate))
    other = next(f"u{number}" for number in range(200) if not is_sampled(f"u:u{number}", rate))
    bus = RedisStreamBus(stack.config.bus_url, stack.config.dataset)
    first, answer = [
        stack.http.get(f"/v1/recommendations/{user}", params={"top_k": 4}).json() for user in (other, sampled, sampled)
    ][1:]
    assert [first["served_from"], answer["served_from"]] == ["online", "cache"]

    def told() -> dict[str, dict[str, Any]]:
        """Slates by their answers' ids: other tests have answers too, and two gateways send theirs in any order."""
        slates = decode_slates([entry.payload for entry in bus.tail(SLATES, 1000)]).to_pylist()
        return {slate["recommendation_id"]: slate for slate in slates}

    def rows(list_id: str) -> list[dict[str, Any]]:
        found = decode_feature_rows([entry.payload for entry in bus.tail(SERVED_FEATURES, 1000)]).to_pylist()
        return [row for row in found if row["list_id"] == list_id]

    ids = [first["recommendation_id"], answer["recommendation_id"]]
    stack.wait(lambda: set(ids) <= told().keys() and rows(told()[ids[0]]["list_id"]))
    slates = [told()[one] for one in ids]
    (row,) = rows(slates[0]["list_id"])
    assert [slate["served_from"] for slate in slates] == ["online", "cache"]
    assert {slate["list_id"] for slate in slates} == {row["list_id"]}
    assert slates[1]["item_ids"] == [item["item_id"] for item in answer["recommended_items"]] == row["item_ids"][:4]
    assert row["feature_names"] == ["transition_knn_score", "popularity_score"]
    assert len(row["values"]) == 2 * len(row["item_ids"])
    bus.close()


@pytest.mark.parametrize("payload", [b"?", b"[]", b"{}", b'{"list_id": "a", "values": "%"}'])
def test_rows_that_are_none(payload: bytes) -> None:
    for decode in (decode_slates, decode_feature_rows):
        with pytest.raises(EventError, match="not a"):
            decode([payload])
