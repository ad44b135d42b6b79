"""Point-in-time features against a slow oracle that replays each user's events."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from features.errors import FeatureJoinError
from features.events import ACTION_CODES
from features.training_set import item_features_at, user_features_at

DAY_US = 86_400_000_000
SECOND_US = 1_000_000
HOUR_US = 3_600 * SECOND_US


@pytest.fixture
def world(rng: np.random.Generator) -> dict[str, Any]:
    num_events = 1_500
    users = rng.integers(0, 25, num_events)
    items = rng.integers(0, 60, num_events)
    times = np.sort(rng.choice(40 * DAY_US, num_events, replace=False)) + 1_600_000_000_000_000
    values = np.where(rng.random(num_events) < 0.5, np.round(rng.uniform(1, 5, num_events), 2), np.nan)
    shuffled = rng.permutation(num_events)
    events = pa.table(
        {
            "user_id": pa.array([f"u{u}" for u in users[shuffled]]),
            "item_id": pa.array([f"i{i}" for i in items[shuffled]]),
            "timestamp": pa.array(times[shuffled]).cast(pa.timestamp("us", tz="UTC")),
            "value": pa.array(values[shuffled], from_pandas=True),
            "action": [action_of(user, item) for user, item in zip(users[shuffled], items[shuffled], strict=True)],
        }
    )
    names = [f"c{n}" for n in range(20)]
    categories = [list(rng.choice(names, rng.integers(0, 5), replace=False)) for _ in range(60)]
    table = pa.table({"item_id": [f"i{i}" for i in range(60)], "categories": categories, "price": rng.uniform(1, 9, 60)})
    return {"events": events, "items": table, "rows": sorted(zip(times, users, items, values, strict=True))}


def action_of(user: int, item: int) -> str:
    return "purchase" if (user + item) % 3 == 0 else "view"


def oracle_user(world: dict[str, Any], user: str, before: int) -> dict[str, Any]:
    past = [(t, i, v) for t, u, i, v in world["rows"] if f"u{u}" == user and t < before]
    categories = dict(zip(world["items"]["item_id"].to_pylist(), world["items"]["categories"].to_pylist(), strict=True))
    last = past[-1][0] if past else None
    recent = past[-50:]
    counts: dict[str, int] = {}
    for _, item, _ in recent:
        for name in categories[f"i{item}"]:
            counts[name] = counts.get(name, 0) + 1
    best = sorted(counts, key=lambda name: (-counts[name], name))[:8]
    rated = [v for _, _, v in past if not np.isnan(v)]
    return {
        "user_events": len(past),
        "user_value_count": len(rated),
        "user_value_mean": np.mean(rated) if rated else np.nan,
        "user_last_event_us": np.nan if last is None else last,
        "user_day_tiles": [sum(t // DAY_US == (last or 0) // DAY_US - d for t, _, _ in past) for d in range(30)],
        "user_hour_tiles": [sum(t // HOUR_US == (last or 0) // HOUR_US - h for t, _, _ in past) for h in range(24)],
        "recent_items": [f"i{i}" for _, i, _ in recent],
        "recent_ages_s": [last // SECOND_US - t // SECOND_US for t, _, _ in recent],
        "recent_actions": "".join(str(ACTION_CODES[action_of(int(user[1:]), item)]) for _, item, _ in recent) or None,
        "recent_distinct_items": len({i for _, i, _ in recent}),
        "user_categories": best,
        "user_category_weights": [np.float32(counts[name] / len(recent)) for name in best],
    }


def test_user_features_equal_a_replay_of_strictly_earlier_events(world: dict[str, Any], rng: np.random.Generator) -> None:
    times = np.array([row[0] for row in world["rows"]], dtype=np.int64)
    asked_users = np.array([f"u{u}" for u in rng.integers(0, 28, 120)], dtype=object)  # u25 to u27 are unknown
    asked_times = np.concatenate([rng.choice(times, 100), [0, times[0], times[-1] + 1], rng.choice(times, 17) + 1]).astype(np.int64)
    asked_users[1], asked_times[1] = asked_users[0], asked_times[0]  # the same ask twice
    columns = user_features_at(world["events"], world["items"], asked_users, asked_times)
    for row, (user, before) in enumerate(zip(asked_users, asked_times, strict=True)):
        for name, expected in oracle_user(world, user, int(before)).items():
            if name == "user_value_mean":
                np.testing.assert_allclose(columns[name][row], expected, rtol=1e-12)
            else:
                np.testing.assert_array_equal(columns[name][row], expected, err_msg=f"{name} of {user} at {before}")


def test_every_event_of_a_user_can_be_asked_at_its_own_time_without_seeing_itself(world: dict[str, Any]) -> None:
    events = world["events"].sort_by([("user_id", "ascending"), ("timestamp", "ascending")])
    users = events["user_id"].to_numpy(zero_copy_only=False)
    columns = user_features_at(events, None, users, events["timestamp"].cast(pa.int64()).to_numpy(), names=["user_events"])
    first = np.searchsorted(users.astype(str), users.astype(str))
    np.testing.assert_array_equal(columns["user_events"], np.arange(len(users)) - first)
    assert list(columns) == ["user_events"]


def test_item_features_count_events_before_the_cutoff_and_carry_metadata(world: dict[str, Any]) -> None:
    cutoff = int(np.median([row[0] for row in world["rows"]]))
    ids = np.array([*(f"i{i}" for i in range(59, -1, -1)), "unknown"], dtype=object)
    columns = item_features_at(world["events"], world["items"], ids, cutoff)
    for row, item in enumerate(ids):
        past = [t for t, _, i, _ in world["rows"] if f"i{i}" == item and t < cutoff]
        assert columns["item_events"][row] == len(past)
        assert columns["item_day_tiles"][row].sum() == sum(t // DAY_US > past[-1] // DAY_US - 30 for t in past)
        if past:
            assert columns["item_first_event_us"][row] == past[0]
            assert columns["item_last_event_us"][row] == past[-1]
    prices = dict(zip(world["items"]["item_id"].to_pylist(), world["items"]["price"].to_pylist(), strict=True))
    assert [columns["metadata_price"][row] for row in range(60)] == [prices[item] for item in ids[:60]]
    assert np.isnan(columns["metadata_price"][60])


def test_without_times_windows_are_null_and_order_is_kept(world: dict[str, Any]) -> None:
    columns = user_features_at(
        world["events"], world["items"], np.array(["u1", "u2"], dtype=object), np.array([1 << 60, 1 << 60]) // 100, has_times=False
    )
    assert np.isnan(columns["user_last_event_us"]).all()
    assert not columns["user_day_tiles"].any()
    assert [len(items) for items in columns["recent_items"]] == [50, 50]


def test_a_missing_column_is_named() -> None:
    with pytest.raises(FeatureJoinError, match="'timestamp'"):
        user_features_at(pa.table({"user_id": ["a"], "item_id": ["b"]}), None, np.array(["a"], dtype=object), np.array([1]))


def test_no_asks_give_empty_columns(world: dict[str, Any]) -> None:
    columns = user_features_at(world["events"], None, np.empty(0, dtype=object), np.empty(0, dtype=np.int64))
    assert columns["user_day_tiles"].shape == (0, 30)
    assert len(columns["recent_items"]) == 0
