"""Precomputed lists: equal to computed ones, kept as Parquet, and never taken for fresh when they are not."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import serving.precompute
from features.activity_store import ActivityStore
from features.events import EVENT_SCHEMA, Event
from serving.cache import activity_key, user_unit
from serving.cached_list import decode_list
from serving.errors import ServingError
from serving.precompute import load_only, precompute, precomputed_folder
from serving.recent_activity import decode_activity

pytestmark = pytest.mark.integration


def answer(stack, user: str, top_k: int = 10) -> dict:
    return stack.http.get(f"/v1/recommendations/{user}", params={"top_k": top_k}).json()


def test_precomputed_answers_equal_computed_ones(stack, bundle: Path, empty_cache) -> None:
    """Also where a longer list is computed than precompute keeps: an item's score does not depend on the list that holds it."""
    users = [f"u{n}" for n in range(100, 130)]
    top_k = 15
    assert 2 * top_k + 20 > stack.config.precompute_k
    computed = {user: answer(stack, user, top_k) for user in users}
    assert {one["served_from"] for one in computed.values()} == {"online"}
    empty_cache.flushall()
    report = precompute(stack.config, "1", bundle)
    assert report.users == 200
    cached = {user: answer(stack, user, top_k) for user in users}
    assert {one["served_from"] for one in cached.values()} == {"cache"}
    for user in users:
        assert cached[user]["recommended_items"] == computed[user]["recommended_items"]


def test_an_empty_cache_is_refilled_and_active_users_are_not_given_old_lists(stack, bundle: Path, empty_cache) -> None:
    precompute(stack.config, "1", bundle)
    event = Event("late-1", "i028", "view", datetime.now(UTC), user_id="u120")
    row = event.to_row(received_at=event.timestamp)
    ActivityStore(stack.config.paths.activity).append(pa.Table.from_pylist([row], schema=EVENT_SCHEMA))
    empty_cache.flushall()
    assert load_only(stack.config, "1").users == 200
    assert answer(stack, "u119")["served_from"] == "cache"
    active = answer(stack, "u120")
    assert active["served_from"] == "online"
    assert "i028" not in [item["item_id"] for item in active["recommended_items"]]


def test_marks_are_restored_with_the_last_events_of_each_user(
    stack, bundle: Path, empty_cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever blocks rows and commands come in: of one with more events than a mark holds, the last."""
    monkeypatch.setattr(serving.precompute, "ROWS_AT_ONCE", 7)
    monkeypatch.setattr(serving.precompute, "COMMANDS_PER_PIPELINE", 2)
    precompute(stack.config, "1", bundle)
    now, rows = datetime.now(UTC), []
    for user, count in (("u150", 1), ("u151", 500), ("u152", 9), ("u153", 2), ("u154", 3)):
        for number in range(count):
            at = now - timedelta(seconds=count - number)
            event = Event(f"{user}-{number}", f"i{number % 50:03d}", "view", at, user_id=user)
            shown = replace(event, event_id=f"{user}-{number}-shown", action="impression")
            rows += [one.to_row(received_at=at) for one in (event, shown)]
    ActivityStore(stack.config.paths.activity).append(pa.Table.from_pylist(rows, schema=EVENT_SCHEMA))
    empty_cache.flushall()
    load_only(stack.config, "1")

    def restored(user: str) -> list[str]:
        value = empty_cache.get(activity_key(stack.config, user_unit(user)))
        return [event.item_id for event in decode_activity(value).events]

    assert restored("u150") == ["i000"]
    assert restored("u152") == [f"i{number:03d}" for number in range(9)]
    assert len(restored("u153")) == 2
    assert len(restored("u154")) == 3
    many = restored("u151")
    assert 200 < len(many) < 400
    assert many == [f"i{number % 50:03d}" for number in range(500)][-len(many) :]


def test_refilling_leaves_newer_lists_alone(stack, bundle: Path, empty_cache) -> None:
    precompute(stack.config, "1", bundle)
    stack.http.post("/v1/events", json={"user_id": "u121", "item_id": "i029", "action": "view"})
    newer = answer(stack, "u121")
    load_only(stack.config, "1")
    again = answer(stack, "u121")
    assert again["served_from"] == "cache"
    assert again["recommended_items"] == newer["recommended_items"]


def test_ray_data_computes_the_same_lists(stack, bundle: Path, empty_cache, monkeypatch: pytest.MonkeyPatch) -> None:
    def lists() -> dict[str, tuple[np.ndarray, np.ndarray]]:
        table = pq.read_table(precomputed_folder(stack.config, "1"))
        assert table.schema.names == ["user_id", "list"]
        decoded = {user: decode_list(blob) for user, blob in zip(*(column.to_pylist() for column in table.columns), strict=True)}
        return {user: (one.item_idx, one.score) for user, one in decoded.items()}

    precompute(stack.config, "1", bundle)
    here = lists()
    monkeypatch.setattr(serving.precompute, "CLUSTER_FROM_USERS", 1)
    precompute(stack.config, "1", bundle)
    there = lists()
    assert here.keys() == there.keys()
    for user, (items, scores) in here.items():
        np.testing.assert_array_equal(items, there[user][0])
        np.testing.assert_array_equal(scores, there[user][1])


def test_nothing_precomputed_is_said(stack) -> None:
    with pytest.raises(ServingError, match="nothing is precomputed for version 99"):
        load_only(stack.config, "99")


def test_an_absent_cache_is_said_and_the_parquet_stays(make_config, bundle: Path) -> None:
    config = make_config(precompute_k=20)
    with pytest.raises(ServingError, match="cache Redis cannot be filled"):
        precompute(config, "1", bundle)
    assert pq.read_table(precomputed_folder(config, "1")).num_rows == 200
