"""The head of an order under a filter, whichever way it is found; item-to-item retrieval by it at a size where nothing is dense."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from training.models.base import top_k
from training.models.transition_knn import TransitionKnn
from training.popular_order import PopularOrder
from training.queries import queries_from_histories

ITEMS = 20_000


@pytest.mark.parametrize("passing", [0, 1, 7, 300, 2_000, 19_999, 20_000])
@pytest.mark.parametrize("count", [1, 10, 500])
def test_head_is_the_first_allowed(passing: int, count: int) -> None:
    """Both ways, and with items that are not in the order."""
    rng = np.random.default_rng(passing)
    first = rng.permutation(ITEMS)[:15_000].astype(np.int32)
    allowed = np.zeros(ITEMS, dtype=bool)
    allowed[rng.permutation(ITEMS)[:passing]] = True
    assert PopularOrder(first, ITEMS).head(count, allowed).tolist() == first[allowed[first]][:count].tolist()
    assert PopularOrder(first, ITEMS).head(count).tolist() == first[:count].tolist()


@pytest.mark.parametrize("share", [1.0, 0.5, 0.01, 0.0005])
def test_sparse_retrieval_is_the_best_of_all_scores(share: float) -> None:
    """Against a look at every known item; repeated history items count twice, history is left out."""
    rng = np.random.default_rng(3)
    model = TransitionKnn(TransitionKnn.Config())
    popularity = np.where(rng.random(ITEMS) < 0.8, rng.random(ITEMS), 0.0).astype(np.float32)
    weights = sp.random(ITEMS, ITEMS, density=30 / ITEMS, format="csr", dtype=np.float32, rng=rng)
    weights = weights @ sp.diags((popularity > 0).astype(np.float32))
    model.set_weights(weights.tocsr(), popularity)
    queries = queries_from_histories([[5, 6, 5], [], rng.integers(0, ITEMS, 40).tolist(), [19_999]])
    allowed = rng.random(ITEMS) < share
    found = model.retrieve(queries, 50, allowed)
    scores = model.score(queries)
    scores[:, ~allowed | (popularity == 0)] = -np.inf
    scores[queries.row, queries.item_idx] = -np.inf
    expected = top_k(scores, 50)
    np.testing.assert_array_equal((found.item_idx >= 0).sum(axis=1), (expected.item_idx >= 0).sum(axis=1))
    np.testing.assert_allclose(found.score, expected.score, rtol=1e-5)
