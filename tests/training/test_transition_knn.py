"""Transition kNN against a slow loop, and in a world where the answer is planted."""

from __future__ import annotations

import numpy as np
import pandas as pd

from training.dataset import from_frame
from training.models.base import TrainingData, top_k
from training.models.transition_knn import TransitionKnn, TransitionKnnConfig, transition_counts
from training.queries import queries_from_histories, queries_from_users


def random_frame(rng: np.random.Generator, users: int = 30, items: int = 20, rows: int = 300) -> pd.DataFrame:
    frame = pd.DataFrame({"user_id": rng.integers(0, users, rows), "item_id": rng.integers(0, items, rows)})
    return frame.assign(position=np.arange(rows))


def test_counts_equal_the_slow_loop(rng: np.random.Generator) -> None:
    interactions = from_frame(random_frame(rng))
    slow = np.zeros((interactions.num_items, interactions.num_items))
    for user in range(interactions.num_users):
        history = interactions.item_idx[interactions.indptr[user] : interactions.indptr[user + 1]]
        for i in range(len(history)):
            for gap in range(1, 4):
                if i + gap < len(history):
                    slow[history[i], history[i + gap]] += 0.7 ** (gap - 1)
    np.testing.assert_allclose(transition_counts(interactions, 3, 0.7).toarray(), slow, rtol=1e-5)


def test_successor_comes_first_in_a_chain() -> None:
    chain = [f"i{n}" for n in range(10)]
    frame = pd.DataFrame([(f"u{u}", item, place) for u in range(20) for place, item in enumerate(chain[u % 5 : u % 5 + 5])])
    interactions = from_frame(frame.set_axis(["user_id", "item_id", "position"], axis=1))
    model = TransitionKnn(TransitionKnnConfig(history_decay=0.3)).fit(TrainingData(interactions))
    best = model.retrieve(queries_from_histories([[2, 3, 4]]), 1).item_idx[0, 0]
    assert interactions.item_ids[best] == "i5"


def test_sparse_retrieval_equals_the_dense_top_k(rng: np.random.Generator) -> None:
    interactions = from_frame(random_frame(rng, users=200, items=2000, rows=1500))
    model = TransitionKnn().fit(TrainingData(interactions))
    queries = queries_from_users(interactions, np.arange(interactions.num_users, dtype=np.int32))
    allowed = rng.random(interactions.num_items) < 0.5
    for mask in (None, allowed):
        found = model.retrieve(queries, 20, mask)
        scores = model.score(queries)
        scores[queries.row, queries.item_idx] = -np.inf
        if mask is not None:
            scores[:, ~mask] = -np.inf
        expected = top_k(scores, 20)
        np.testing.assert_allclose(found.score, expected.score, rtol=1e-6)
        np.testing.assert_allclose(np.take_along_axis(scores, found.item_idx, axis=1), found.score, rtol=1e-6)
