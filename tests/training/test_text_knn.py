"""Text-kNN against a slow count over dense cosines, what a mask does not change, and what pairs of items teach of words."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from training.content_columns import content_columns
from training.dataset import from_frame
from training.models.base import TrainingData
from training.models.item_item import PRIOR, popularity_share
from training.models.text_knn import TextKnn, TextKnnConfig
from training.queries import queries_from_users
from training.text_vectors import code_weights, token_weights
from training.token_metric import item_tokens

WORDS = np.array(["oak", "silk", "brass", "linen", "lamp", "table", "chair", "cushion"])


def world() -> TrainingData:
    rng = np.random.default_rng(3)
    rows = [(f"u{user:02d}", f"i{item:02d}") for user in range(25) for item in rng.choice(30, rng.integers(1, 7), replace=False)]
    interactions = from_frame(
        pd.DataFrame(rows, columns=["user_id", "item_id"]), item_ids=np.array(["new-1", "new-2", "new-3"], dtype=object)
    )
    titles = np.array([" ".join(rng.choice(WORDS, 3)) for _ in range(interactions.num_items)], dtype=object)
    return TrainingData(interactions, {"title": titles})


@pytest.mark.parametrize("strongest", [0, 1, 2])
def test_it_is_the_slow_sum_over_the_history(strongest: int) -> None:
    data = world()
    config = TextKnnConfig(code_weight=0, freedom=0, sharpness=2.0, strongest=strongest, history_decay=0.8)
    users = np.arange(data.interactions.num_users, dtype=np.int32)
    queries = queries_from_users(data.interactions, users)
    columns = content_columns(data.item_attributes, data.interactions.num_items)
    words = token_weights(columns.documents, columns.tags[:, :0], 1.0).toarray()
    words /= np.maximum(np.linalg.norm(words, axis=1, keepdims=True), 1e-12)
    expected = np.tile(PRIOR * popularity_share(data.interactions), (len(queries), 1))
    for b in range(len(queries)):
        history = queries.history(b)
        parts = (words[history] @ words.T) ** 2.0 * 0.8 ** np.arange(len(history))[::-1, None]
        parts = -np.sort(-parts, axis=0)
        expected[b] += parts[: strongest or len(parts)].sum(axis=0)
    np.testing.assert_allclose(TextKnn(config).fit(data).score(queries), expected, rtol=1e-4, atol=1e-6)


def test_histories_and_catalogues_that_are_too_large_for_one_block_score_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    data = world()
    model = TextKnn(TextKnnConfig(strongest=2)).fit(data)
    queries = queries_from_users(data.interactions, np.arange(data.interactions.num_users, dtype=np.int32))
    expected = model.score(queries)
    monkeypatch.setattr("training.models.text_knn.CELLS_AT_ONCE", 20)
    np.testing.assert_allclose(model.score(queries), expected, rtol=1e-5)


def test_a_mask_leaves_the_scores_of_what_it_allows() -> None:
    data = world()
    model = TextKnn(TextKnnConfig(strongest=2)).fit(data)
    queries = queries_from_users(data.interactions, np.arange(data.interactions.num_users, dtype=np.int32))
    new = np.char.startswith(data.interactions.item_ids.astype(str), "new")
    found, scores = model.retrieve(queries, 5, new), model.score(queries)
    assert (found.item_idx[:, :3] >= 0).all()
    assert (found.item_idx[:, 3:] == -1).all()
    np.testing.assert_allclose(found.score[:, :3], -np.sort(-scores[:, new], axis=1), rtol=1e-5)
    assert (model.retrieve(queries, 5, np.zeros_like(new)).item_idx == -1).all()


def maker_world(freedom: float) -> tuple[float, float]:
    """Users keep to one maker, measures say nothing. -> cosines of an item to a new one of its maker and one of its measure."""
    rng = np.random.default_rng(0)
    makers, measures = rng.integers(0, 12, 240), rng.integers(0, 12, 240)
    rows = [(f"u{u:03d}", f"i{i:03d}") for u in range(300) for i in rng.choice(np.flatnonzero(makers == u % 12), 4, replace=False)]
    ids = [f"i{i:03d}" for i in range(240)]
    titles = dict(zip(ids, (f"maker{m} measure{s}" for m, s in zip(makers, measures, strict=True)), strict=True))
    titles |= {"old": "maker0 measure0", "new-maker": "maker0 measure1", "new-measure": "maker1 measure0"}
    interactions = from_frame(pd.DataFrame(rows, columns=["user_id", "item_id"]), item_ids=np.array(list(titles), dtype=object))
    data = TrainingData(interactions, {"title": np.array([titles[str(i)] for i in interactions.item_ids], dtype=object)})
    tokens = item_tokens(data, text_weight=1.0, code_weight=0.0, freedom=freedom, seed=0)
    row = {str(item): n for n, item in enumerate(interactions.item_ids)}
    cosine = (tokens[row["old"]] @ tokens[[row["new-maker"], row["new-measure"]]].T).toarray()[0]
    return float(cosine[0]), float(cosine[1])


def test_pairs_that_users_took_say_which_words_count() -> None:
    maker, measure = maker_world(freedom=0.0)
    assert abs(maker - measure) < 0.2
    maker, measure = maker_world(freedom=0.3)
    assert maker > 0.8 > 0.4 > measure


def test_codes_are_alike_by_their_beginnings() -> None:
    weights = code_weights(["lamp B00475X", "table B00476Y", "A1 chair", "oak C99475X", ""])
    alike = (weights @ weights.T).toarray()
    assert alike[0, 1] > 0.4
    assert alike[0, 3] == alike[0, 2] == alike[4, 4] == 0.0
    assert code_weights(["lamp", "table"]).shape == (2, 0)
