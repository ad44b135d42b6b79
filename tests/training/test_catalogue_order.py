"""The order of the catalogue: which attribute tells, what neighbours say, and what calendar and periods make of it."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from training.catalogue_order import NEIGHBOURS, catalogue_order
from training.dataset import from_frame
from training.errors import NotTrainableError
from training.interactions import Interactions
from training.item_periods import item_periods, period_columns
from training.models.base import TrainingData
from training.models.calendar import Calendar
from training.queries import queries_from_histories

ITEMS, DAY_US = 300, 86_400 * 10**6
LATER = np.full(3, 10**16)
NEW = 150
"""Item without activity, listed in the middle."""


def world(times: bool = True) -> Interactions:
    """Item n is taken by users who are active on the days around 3 n, which is when it came up."""
    rng = np.random.default_rng(0)
    rows = [
        (f"u{item}-{copy}", f"i{other:03d}", place, 3 * other + rng.uniform(0, 5))
        for item in range(ITEMS)
        for copy in range(3)
        for place, other in enumerate(sorted({item, min(item + 1, ITEMS - 1)}))
        if other != NEW
    ]
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "position", "day"])
    if times:
        frame["timestamp"] = pd.Timestamp("1970-01-01", tz="UTC") + pd.to_timedelta(frame["day"], unit="D")
    return from_frame(frame.drop(columns="day"), item_ids=np.array([f"i{n:03d}" for n in range(ITEMS)], dtype=object))


def attributes() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {
        "serial": rng.permutation(ITEMS).astype(np.float64),  # an order that tells nothing
        "code": np.array([f"B{n:04d}" for n in range(ITEMS)], dtype=object),
        "title": np.array([f"thing {n}" for n in range(ITEMS)], dtype=object),
        "size": np.arange(ITEMS) // 100,
    }


def test_the_attribute_whose_neighbours_tell_the_time_is_the_order() -> None:
    order = catalogue_order(world(), attributes())
    assert order is not None
    np.testing.assert_array_equal(order.place, np.arange(ITEMS))
    around = order.neighbours(np.array([NEW, 100]))
    assert set(around[0]) == set(range(NEW - NEIGHBOURS, NEW + NEIGHBOURS + 1)) - {NEW}
    assert set(around[1]) == set(range(100 - NEIGHBOURS, 100 + NEIGHBOURS + 1)) - {100}


def test_without_times_or_a_telling_attribute_there_is_no_order() -> None:
    known = attributes()
    assert catalogue_order(world(times=False), known) is None
    assert catalogue_order(world(), {name: known[name] for name in ("serial", "title", "size")}) is None


def test_a_new_item_has_the_period_of_its_neighbours_and_known_ones_their_own() -> None:
    periods = item_periods(world(), attributes())
    assert periods[NEW, 1] == pytest.approx(3 * NEW + 2.5, abs=5)
    assert periods[10, 0] == pytest.approx(30, abs=2.5)
    assert np.isnan(item_periods(world(), {"title": attributes()["title"]})[NEW]).all()


def test_period_columns_count_days() -> None:
    periods = np.array([[90.0, 100.0], [200.0, 210.0]], dtype=np.float32)
    times = [np.array([100, 120]) * DAY_US, np.array([], dtype=np.int64)]
    queries = queries_from_histories([np.array([0, 0]), np.array([], dtype=np.int32)], times_us=times, request_time_us=LATER[:2])
    gap, distance, before = period_columns(periods, queries, np.array([[0, 1], [0, 1]], dtype=np.int32))
    np.testing.assert_allclose(gap[0], [10, -100], atol=1e-3)
    np.testing.assert_allclose(distance[0], [10, 100], atol=1e-3)
    np.testing.assert_allclose(before[0], [0, -80], atol=1e-3)
    assert np.isnan(gap[1]).all()


def test_the_calendar_places_a_new_item_with_users_of_its_time() -> None:
    interactions = world()
    model = Calendar().fit(TrainingData(interactions, attributes()))
    blind = Calendar().fit(TrainingData(interactions, {}))
    days = np.array([20, 3 * NEW, 880]) * DAY_US
    queries = queries_from_histories([np.array([0])] * 3, times_us=[np.array([day]) for day in days], request_time_us=LATER)
    assert model.score(queries)[:, NEW].argmax() == 1
    assert model.score(queries)[1, NEW] > model.score(queries)[1, [10, 290]].max()
    assert blind.score(queries)[1, NEW] <= blind.score(queries)[1].min()
    with pytest.raises(NotTrainableError, match="times"):
        Calendar().fit(TrainingData(world(times=False), attributes()))
