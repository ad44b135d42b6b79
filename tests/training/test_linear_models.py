"""EASE and iALS against their equations solved directly, popularity against a sum by hand."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from training.dataset import from_frame
from training.errors import NotTrainableError
from training.models import ease, ease_local
from training.models.base import TrainingData, top_k
from training.models.ease import Ease, EaseConfig
from training.models.ials import Ials, IalsConfig
from training.models.item_item import PRIOR
from training.models.popularity import Popularity, PopularityConfig
from training.queries import queries_from_histories, queries_from_users
from training.testing import small_world


@pytest.mark.parametrize("double", [True, False])
def test_ease_is_its_closed_form(monkeypatch: pytest.MonkeyPatch, double: bool) -> None:
    monkeypatch.setattr(ease, "DOUBLE_UP_TO", 1000 if double else 0)
    monkeypatch.setattr(ease, "ROWS_AT_ONCE", 7)
    data = small_world()
    taken = data.interactions.to_csr().toarray() > 0
    active = taken.any(axis=0)
    gram = taken[:, active].T.astype(float) @ taken[:, active]
    precision = np.linalg.inv(gram + 3.0 * np.eye(len(gram)))
    expected = -precision / np.diag(precision)
    np.fill_diagonal(expected, 0.0)
    model = Ease(EaseConfig(l2=3.0)).fit(data)
    found = model.weights.toarray()[np.ix_(active, active)]
    np.testing.assert_allclose(found, expected, atol=1e-9 if double else 1e-5)

    history = [4, 9, 2]
    scores = model.score(queries_from_histories([history]))[0, active]
    places = np.flatnonzero(active)
    decayed = sum(0.8 ** (2 - n) * expected[np.flatnonzero(places == item)[0]] for n, item in enumerate(history))
    np.testing.assert_allclose(scores, decayed + PRIOR * model.popularity[active], atol=1e-5)


def test_ease_keeps_the_strongest_neighbours() -> None:
    data = small_world()
    full = Ease(EaseConfig(l2=3.0)).fit(data).weights.toarray()
    few = Ease(EaseConfig(l2=3.0, neighbours=4)).fit(data).weights
    assert np.diff(few.indptr).max() == 4
    for row in np.flatnonzero(np.diff(few.indptr)):
        strongest = np.sort(np.abs(full[row]))[-4:]
        np.testing.assert_allclose(np.sort(np.abs(few[row].data)), strongest, rtol=1e-5)


def test_local_ease_with_every_item_as_neighbour_is_the_closed_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ease_local, "PRODUCT_ENTRIES", 500)
    data = small_world()
    dense = Ease(EaseConfig(l2=3.0)).fit(data).weights.toarray()
    local = Ease(EaseConfig(l2=3.0, dense_up_to=0, support=100)).fit(data).weights.toarray()
    # Items that share no user with the target have no weight in the local solve, and get a small one in the closed form.
    taken = data.interactions.to_csr().toarray() > 0
    together = taken.T.astype(int) @ taken.astype(int) > 0
    complete = np.flatnonzero(together.sum(axis=0) == together.any(axis=0).sum())
    assert len(complete)
    np.testing.assert_allclose(local[:, complete], dense[:, complete], atol=1e-5)


def test_local_ease_solves_each_item_on_its_nearest(rng: np.random.Generator) -> None:
    taken = sp.csr_matrix((rng.random((60, 12)) < 0.5).astype(np.float32))
    gram = (taken.T @ taken).toarray()
    cosine = gram / np.sqrt(np.outer(np.diag(gram), np.diag(gram)))
    found = ease_local.local_weights(taken, 2.0, 3).toarray()
    for item in range(12):
        near = np.flatnonzero(found[:, item])
        others = np.delete(np.arange(12), [item, *near])
        assert cosine[near, item].min() >= cosine[others, item].max() - 1e-6
        expected = np.linalg.solve(gram[np.ix_(near, near)] + 2.0 * np.eye(3), gram[near, item])
        np.testing.assert_allclose(found[near, item], expected, rtol=1e-4)


def test_ease_finds_planted_pairs_above_the_dense_limit() -> None:
    # Item 2n is always taken with item 2n + 1, among random others.
    rng = np.random.default_rng(3)
    rows = []
    for user in range(600):
        pair = 2 * rng.integers(0, 100)
        rows += [(user, int(item)) for item in {pair, pair + 1, *rng.integers(0, 200, 3).tolist()}]
    data = TrainingData(from_frame(pd.DataFrame(rows, columns=["user_id", "item_id"])))
    model = Ease(EaseConfig(l2=1.0, dense_up_to=50, support=20)).fit(data)
    numbers = data.interactions.item_ids.astype(int)
    found = model.retrieve(queries_from_histories([[n] for n in range(len(numbers))]), 1).item_idx[:, 0]
    assert (numbers[found] == (numbers ^ 1)).mean() > 0.95


def test_ease_refuses_what_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ease.psutil, "virtual_memory", lambda: SimpleNamespace(available=1000))
    for config in (EaseConfig(), EaseConfig(dense_up_to=0)):
        with pytest.raises(
            NotTrainableError, match=r"ease needs about .* GB for 30 items and 0.0 GB are free: set a lower dense_up"
        ):
            Ease(config).fit(small_world())


def test_ease_asks_for_less_memory_where_it_solves_locally() -> None:
    frame = pd.DataFrame({"user_id": np.arange(30_000) // 2, "item_id": np.arange(30_000)})
    interactions = from_frame(frame)
    assert Ease.training_bytes(EaseConfig(dense_up_to=60_000), interactions) > 4 * 30_000**2
    assert Ease.training_bytes(EaseConfig(), interactions) < 2_000_000_000


def test_ials_folds_in_by_its_equation() -> None:
    data = small_world()
    # Two histories are solved by entries, the long one by factors.
    histories = [[1, 2, 3], [7, 8], [n % 30 for n in range(40)]]
    for config in (IalsConfig(factors=8, iterations=2, history_decay=0.7, alpha=4.0), IalsConfig(factors=64, iterations=2)):
        model = Ials(config).fit(data)
        found = model.fold_in(queries_from_histories(histories))
        items = model.item_factors.astype(np.float64)
        for row, history in enumerate(histories):
            left = items.T @ items + config.l2 * np.eye(items.shape[1])
            right = np.zeros(items.shape[1])
            for age, item in enumerate(reversed(history)):
                share = config.history_decay**age
                left += config.alpha * share * np.outer(items[item], items[item])
                right += (1 + config.alpha) * share * items[item]
            expected = np.linalg.solve(left, right)
            np.testing.assert_allclose(found[row], expected, atol=1e-4 * np.abs(expected).max())


def test_ials_without_decay_is_the_library_s_own_answer() -> None:
    from implicit.cpu.als import AlternatingLeastSquares

    data = small_world()
    model = Ials(IalsConfig(factors=8, iterations=3, history_decay=1.0)).fit(data)
    library = AlternatingLeastSquares(factors=8, regularization=model.config.l2, use_cg=False)
    library.item_factors = model.item_factors
    taken = [3, 4, 5, 6]
    row = np.zeros((1, data.interactions.num_items), dtype=np.float32)
    row[0, taken] = 1.0 + model.config.alpha
    library.user_factors = np.zeros((1, 8), dtype=np.float32)
    expected = library.recalculate_user(0, sp.csr_matrix(row))
    np.testing.assert_allclose(model.fold_in(queries_from_histories([taken]))[0], np.ravel(expected), rtol=1e-3, atol=1e-5)


def test_popularity_halves_after_a_half_life() -> None:
    frame = pd.DataFrame({"user_id": list("abcd"), "item_id": ["old", "old", "old", "new"]})
    frame["timestamp"] = pd.to_datetime(["2026-01-01", "2026-01-11", "2026-01-11", "2026-01-21"], utc=True)
    data = TrainingData(from_frame(frame))
    scores = Popularity(PopularityConfig(half_life_days=10.0)).fit(data).score(queries_from_histories([[]]))[0]
    new, old = scores  # ids in text order
    assert (new, old) == pytest.approx((1.0 / 1.25, 1.0))
    plain = Popularity().fit(data).score(queries_from_histories([[]]))[0]
    assert plain.tolist() == pytest.approx([1 / 3, 1.0])


def test_popularity_without_times_counts() -> None:
    data = TrainingData(from_frame(pd.DataFrame({"user_id": list("abc"), "item_id": list("xxy")})))
    scores = Popularity(PopularityConfig(half_life_days=1.0)).fit(data).score(queries_from_histories([[]]))[0]
    assert scores.tolist() == [1.0, 0.5]


def segmented_data() -> TrainingData:
    """Seven users of the south take x or y, three of the north take y or z, one is from nowhere."""
    rows = [(f"s{n}", item) for n in range(7) for item in "xy"] + [(f"n{n}", item) for n in range(3) for item in "yz"]
    interactions = from_frame(pd.DataFrame([*rows, ("who", "x")], columns=["user_id", "item_id"]))
    region = np.array([{"s": "south", "n": "north"}.get(str(user)[0]) for user in interactions.user_ids], dtype=object)
    return TrainingData(interactions, {}, {"region": region})


def test_popularity_of_a_segment_is_its_own_share_drawn_to_the_whole() -> None:
    data = segmented_data()
    model = Popularity(PopularityConfig(segments=True, shrinkage=6.0)).fit(data)
    north, south, nowhere = (int(np.flatnonzero(data.interactions.user_ids == name)[0]) for name in ("n0", "s0", "who"))
    asked = replace(queries_from_histories([[]] * 4), user_idx=np.array([north, south, nowhere, -1], dtype=np.int32))
    whole = np.array([8, 10, 3]) / 21
    scores = model.score(asked)
    np.testing.assert_allclose(scores[0], (np.array([0, 3, 3]) + 6 * whole) / 12 * 21 / 10, rtol=1e-5)
    np.testing.assert_allclose(scores[1], (np.array([7, 7, 0]) + 6 * whole) / 20 * 21 / 10, rtol=1e-5)
    np.testing.assert_allclose(scores[2:], [whole * 2.1] * 2, rtol=1e-5)


def test_popularity_by_segments_retrieves_what_it_scores(rng: np.random.Generator) -> None:
    frame = pd.DataFrame({"user_id": rng.integers(0, 60, 900), "item_id": rng.zipf(1.3, 900) % 300})
    interactions = from_frame(frame)
    ages = np.where(rng.random(interactions.num_users) < 0.2, np.nan, rng.integers(10, 80, interactions.num_users))
    clubs = np.array([f"c{user % 3}" for user in range(interactions.num_users)], dtype=object)
    model = Popularity(PopularityConfig(segments=True, shrinkage=5.0)).fit(
        TrainingData(interactions, {}, {"age": ages, "club": clubs})
    )
    queries = queries_from_users(interactions, np.arange(interactions.num_users, dtype=np.int32))
    for allowed in (None, rng.random(interactions.num_items) < 0.3):
        found = model.retrieve(queries, 12, allowed)
        scores = model.score(queries)
        scores[queries.row, queries.item_idx] = -np.inf
        if allowed is not None:
            scores[:, ~allowed] = -np.inf
        expected = top_k(scores, 12)
        np.testing.assert_allclose(found.score, expected.score, rtol=1e-6)
        assert (np.take_along_axis(scores, found.item_idx, axis=1) == found.score).all()
