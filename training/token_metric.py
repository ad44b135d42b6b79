"""What a word says of two items going together: weights of words and tags learned from the pairs of items that users took.

TF-IDF counts every rare word alike; users tell a brand from a measure. A pair of items with activity is described by the words that
both have, and a logistic regression learns from them whether anybody took both; every word starts with the same weight, and only
what the pairs say moves it. Pairs are those that matter to nearest neighbours: each item with the items most like it by words, and
with some that share any word. Items taken together that share none are left out: they would teach that words count little. The
learned weights hold for items that nobody has taken.

Legend: `N` items, `V` words and tags, `P` pairs.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from training.content_columns import content_columns
from training.interactions import Interactions, LongArray
from training.models.base import TrainingData
from training.models.item_item import largest
from training.text_vectors import code_weights, token_weights, unit_rows

NEAREST, DRAWN = 40, 20
"""Pairs of an item: with those most like it by words, and with so many at most, drawn, that share a word with it."""
MAX_ITEMS = 20_000
"""Items whose pairs are looked at, drawn by the seed: what words say is known long before all pairs are read."""
COMMON = 10.0
"""The weight that all words share is penalised by the square of this less than what a word has for itself."""
MAX_USERS = 200_000
"""Users whose histories say what was taken together, drawn by the seed."""
ROWS_AT_ONCE = 500


def item_tokens(data: TrainingData, *, text_weight: float, code_weight: float, freedom: float, seed: int) -> sp.csr_matrix:
    """(N, V) float32 rows of length one, empty where an item has no word: what models compare items by.

    Args:
        data: attributes of items, and what was taken.
        text_weight: share of the words in a row's squared length, the rest being the tags'.
        code_weight: share of the beginnings of codes beside both.
        freedom: see `learned_tokens`.
        seed: of what is drawn.
    """

    def make() -> sp.csr_matrix:
        columns = content_columns(data.item_attributes, data.interactions.num_items)
        tags = columns.tags if text_weight < 1 else columns.tags[:, :0]
        parts = [token_weights(columns.documents, tags, text_weight) * (1.0 - code_weight) ** 0.5]
        if code_weight:
            parts.append(code_weights(columns.documents) * code_weight**0.5)
        return learned_tokens(unit_rows(sp.hstack(parts, format="csr")), data.interactions, freedom, seed)

    return data.derived(("item_tokens", text_weight, code_weight, freedom, seed), make)


def learned_tokens(tokens: sp.csr_matrix, interactions: Interactions, freedom: float, seed: int) -> sp.csr_matrix:
    """(N, V) float32 rows of length one, weighed so that cosines say what goes together; as they were where pairs teach nothing.

    Args:
        tokens: (N, V) rows of length one.
        interactions: what was taken.
        freedom: how far a word may leave the common weight, the inverse of the penalty; 0 leaves all where they are.
        seed: of what is drawn.
    """
    if freedom == 0:
        return tokens
    from sklearn.linear_model import LogisticRegression  # here: replicas import this file and do without

    left, right, together = _pairs(tokens, interactions, np.random.default_rng(seed))
    if not len(together) or together.all() or not together.any():
        return tokens
    shared = tokens[left].multiply(tokens[right]).tocsr()
    features = sp.hstack([shared, sp.csr_matrix(shared.sum(axis=1)) * COMMON], format="csr")
    # liblinear: its trust region ends where L-BFGS gives up on columns of so different a size.
    fitted = LogisticRegression(C=freedom, solver="liblinear", tol=1e-3, max_iter=100, random_state=seed).fit(features, together)
    weight = np.maximum(fitted.coef_[0, :-1] + COMMON * fitted.coef_[0, -1], 0.0)
    if not weight.any():
        return tokens
    return unit_rows(tokens @ sp.diags(np.sqrt(weight)))


def _pairs(
    tokens: sp.csr_matrix, interactions: Interactions, rng: np.random.Generator
) -> tuple[LongArray, LongArray, npt.NDArray[np.bool_]]:
    """Pairs of items with activity, (P,) each, and whether anybody took both."""
    taken = interactions.to_csr()
    if taken.shape[0] > MAX_USERS:
        taken = taken[np.sort(rng.choice(taken.shape[0], MAX_USERS, replace=False))]
    active = np.unique(taken.indices)
    if len(active) > MAX_ITEMS:
        active = np.sort(rng.choice(active, MAX_ITEMS, replace=False))
    taken, known = taken[:, active].tocsr(), tokens[active]
    by_item, across = taken.T.tocsr(), known.T.tocsr()
    left, right, together = [], [], []
    for start in range(0, len(active), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        alike, both = (known[rows] @ across).tocsr(), (by_item[rows] @ taken).tocsr()
        for row in range(alike.shape[0]):
            words = slice(alike.indptr[row], alike.indptr[row + 1])
            taken_with = both.indices[both.indptr[row] : both.indptr[row + 1]]
            nearest = alike.indices[words][largest(alike.data[words], NEAREST)]
            other = np.setdiff1d(np.concatenate([nearest, _drawn(alike.indices[words], rng)]), [start + row])
            left.append(np.full(len(other), start + row))
            right.append(other)
            together.append(np.isin(other, taken_with))
    return active[np.concatenate(left)], active[np.concatenate(right)], np.concatenate(together)


def _drawn(items: npt.NDArray[np.int32], rng: np.random.Generator) -> npt.NDArray[np.int32]:
    return rng.choice(items, DRAWN, replace=False) if len(items) > DRAWN else items
