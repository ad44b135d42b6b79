"""Request features on columns against one pair at a time, and against the on-demand view's own function."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from feature_repo.request_columns import DAY_US, HOUR_US, REQUEST_FEATURES, category_parts
from feature_repo.request_views import request_udf
from features.request_features import ItemFeatureColumns, request_features

NOW_US = 1_700_000_000_000_000


def lists(values: list[list[Any]], dtype: Any) -> np.ndarray[Any, Any]:
    column = np.empty(len(values), dtype=object)
    for row, value in enumerate(values):
        column[row] = np.array(value, dtype=dtype)
    return column


@pytest.fixture
def sides(rng: np.random.Generator) -> tuple[dict[str, Any], dict[str, Any]]:
    users, items = 7, 40
    names = [f"c{n}" for n in range(15)]
    last = NOW_US - rng.integers(0, 35 * DAY_US, users).astype(np.float64)
    day_tiles = rng.integers(0, 4, (users, 30)).astype(np.int32)
    hour_tiles = rng.integers(0, 3, (users, 24)).astype(np.int32)
    last[0], day_tiles[0], hour_tiles[0] = np.nan, 0, 0  # user 0 did nothing
    last[1], day_tiles[1], hour_tiles[1] = np.nan, 0, 0  # user 1 acted at unknown times
    taste = [list(rng.choice(names, rng.integers(0, 6), replace=False)) for _ in range(users)]
    user = {
        "user_events": np.array([0, 9, *rng.integers(1, 50, users - 2)]),
        "user_last_event_us": last,
        "user_day_tiles": day_tiles,
        "user_hour_tiles": hour_tiles,
        "user_categories": lists(taste, object),
        "user_category_weights": lists([list(rng.random(len(t))) for t in taste], np.float32),
    }
    first = NOW_US - rng.integers(40 * DAY_US, 90 * DAY_US, items).astype(np.float64)
    item_last = NOW_US - rng.integers(-2 * DAY_US, 35 * DAY_US, items).astype(np.float64)
    first[3] = item_last[3] = np.nan
    events = rng.integers(1, 50, items)
    events[3] = 0
    tiles = rng.integers(0, 4, (items, 30)).astype(np.int32)
    tiles[3] = 0
    item = {
        "item_events": events,
        "item_first_event_us": first,
        "item_last_event_us": item_last,
        "item_day_tiles": tiles,
        "metadata_categories": lists(
            [list(rng.choice([*names, "c1 > d"], rng.integers(0, 4), replace=False)) for _ in range(items)], object
        ),
        "metadata_created_at_us": np.where(rng.random(items) < 0.5, NOW_US - 100 * DAY_US, np.nan),
    }
    return user, item


def one_pair(user: dict[str, Any], item: dict[str, Any], u: int, i: int, now: int) -> list[float]:
    def windows(side: dict[str, Any], row: int, who: str, tiles: str, tile_us: int, window: int) -> float:
        if side[f"{who}_events"][row] == 0:
            return 0.0
        last = side[f"{who}_last_event_us"][row]
        if np.isnan(last):
            return float("nan")
        ages = max(now // tile_us - int(last) // tile_us, 0) + np.arange(side[tiles].shape[1])
        return float(side[tiles][row][ages < window].sum())

    parts = category_parts(item["metadata_categories"][i])
    share = dict(zip(user["user_categories"][u], user["user_category_weights"][u], strict=True))
    created = item["metadata_created_at_us"][i]
    born = item["item_first_event_us"][i] if np.isnan(created) else created
    return [
        windows(user, u, "user", "user_hour_tiles", HOUR_US, 24),
        windows(user, u, "user", "user_day_tiles", DAY_US, 7),
        windows(user, u, "user", "user_day_tiles", DAY_US, 30),
        windows(item, i, "item", "item_day_tiles", DAY_US, 7),
        windows(item, i, "item", "item_day_tiles", DAY_US, 30),
        (now - born) / DAY_US,
        (now - user["user_last_event_us"][u]) / DAY_US,
        float(np.mean([share.get(part, 0.0) for part in parts])) if parts else float("nan"),
    ]


def test_columns_equal_one_pair_at_a_time(sides: tuple[dict[str, Any], dict[str, Any]], rng: np.random.Generator) -> None:
    user, item = sides
    now = np.array([NOW_US + b * 11 * HOUR_US for b in range(7)], dtype=np.int64)
    idx = rng.integers(-1, 40, (7, 30)).astype(np.int32)
    features = request_features(user, ItemFeatureColumns.prepare(item), now, idx)
    assert list(features) == list(REQUEST_FEATURES)
    for b in range(7):
        for k in range(30):
            expected = np.full(8, np.nan) if idx[b, k] < 0 else one_pair(user, item, b, idx[b, k], int(now[b]))
            np.testing.assert_allclose([values[b, k] for values in features.values()], expected, rtol=1e-5, atol=1e-6)
    assert all(values.dtype == np.float32 for values in features.values())


def test_on_demand_view_gives_the_same_values(sides: tuple[dict[str, Any], dict[str, Any]], rng: np.random.Generator) -> None:
    user, item = sides
    users, items = rng.integers(0, 7, 60), rng.integers(0, 40, 60)
    now = np.full(60, NOW_US, dtype=np.int64)

    def plain(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return value.tolist()
        return None if isinstance(value, float) and np.isnan(value) else value

    inputs = {name: [plain(column[u]) for u in users] for name, column in user.items()}
    inputs |= {name: [plain(column[i]) for i in items] for name, column in item.items()} | {"request_time_us": now.tolist()}
    online = request_udf(inputs)
    rows = {name: column[users] for name, column in user.items()}
    offline = request_features(rows, item, now, items[:, None].astype(np.int32))
    for name, values in offline.items():
        np.testing.assert_array_equal(np.array(online[name]), values[:, 0].astype(np.float64), err_msg=name)


def test_windows_age_without_new_events(sides: tuple[dict[str, Any], dict[str, Any]]) -> None:
    user, item = sides
    later = np.full(7, NOW_US + 400 * DAY_US, dtype=np.int64)
    features = request_features(user, item, later, np.zeros((7, 1), dtype=np.int32))
    for name in ("user_events_1d", "user_events_7d", "user_events_30d", "item_events_30d"):
        assert np.nansum(features[name]) == 0


def test_blocks_do_not_change_values(
    sides: tuple[dict[str, Any], dict[str, Any]], rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    user, item = sides
    now, idx = np.full(7, NOW_US, dtype=np.int64), rng.integers(-1, 40, (7, 9)).astype(np.int32)
    whole = request_features(user, item, now, idx)
    monkeypatch.setattr("features.request_features._CELLS_PER_BLOCK", 1)
    for name, values in request_features(user, item, now, idx).items():
        np.testing.assert_array_equal(values, whole[name])


def test_paths_count_as_each_part() -> None:
    assert category_parts(["A > B > C", "B", "", "D "]) == ["A", "B", "C", "D"]
