"""Simulated people: tastes are those of their activity, clicks follow the click model that is stated."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from features.simulated_users import ClickModel, SimulatedUsers

CATEGORIES = {"a": ["Art"], "b": ["Books"], "ab": ["Art", "Books"]}


def people(**options: int) -> SimulatedUsers:
    rows = [("u1", "a"), ("u1", "a"), ("u1", "b"), ("u2", "b"), (None, "b"), ("u3", "x")]
    table = pa.table({"user_id": [user for user, _ in rows], "item_id": [item for _, item in rows]})
    return SimulatedUsers(table, CATEGORIES, **options)


def test_tastes_are_shares_of_a_users_own_activity() -> None:
    found = people()
    assert found.user_ids == ["u1", "u2", "u3"]
    np.testing.assert_allclose(found.fit("u1", ["a", "b", "ab", "x", "new"]), [1.0, 0.5, 0.75, 0.0, 0.0])
    np.testing.assert_allclose(found.fit("u2", ["a", "b"]), [0.0, 1.0])
    np.testing.assert_allclose(found.fit("u3", ["x", "a"]), [1.0, 0.0])
    np.testing.assert_allclose(found.fit(None, ["a", "b"]), found.fit("stranger", ["a", "b"]))
    assert found.fit("u1", []).shape == (0,)


def test_active_users_come_more_often(rng: np.random.Generator) -> None:
    drawn = people().draw(rng, 5000)
    assert drawn.count("u1") / 5000 == pytest.approx(3 / 5, abs=0.03)


def test_many_users_are_sampled() -> None:
    assert len(people(max_users=2).user_ids) == 2


def test_clicks_fall_with_the_position_as_stated(rng: np.random.Generator) -> None:
    model, fit = ClickModel(eta=1.0, best=0.8, worst=0.2), np.array([1.0, 1.0, 0.0, 1.0])
    share = np.mean([model.clicks(fit, rng) for _ in range(20_000)], axis=0)
    np.testing.assert_allclose(share, [0.8, 0.4, 0.2 / 3, 0.2], atol=0.012)
    flat = np.mean([ClickModel(eta=0.0).clicks(np.ones(4), rng) for _ in range(5_000)], axis=0)
    assert np.ptp(flat) < 0.05


def test_no_activity_is_nobody() -> None:
    assert SimulatedUsers(pa.table({"user_id": pa.array([], pa.string()), "item_id": pa.array([], pa.string())}), {}).user_ids == []
