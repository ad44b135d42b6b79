"""Diversity: maximal marginal relevance over item vectors and categories.

next item = argmax (1 - d) relevance - d (largest similarity to an item already chosen); d = 0 keeps the order, d = 1 looks at
similarity alone. Relevance is the score between the lowest and the highest of the pool. Similarity is the cosine of item vectors
and of categories, the mean of both where both are known.

Source: Carbonell and Goldstein 1998, "The use of MMR, diversity-based reranking". Legend: `n` ranked items, `D` width.
"""

from __future__ import annotations

import numpy as np

from serving.caps import values_of
from serving.columns import Column
from training.interactions import FloatArray, IntArray, LongArray

MAX_PLACES = 100
"""Places that are chosen one by one; a longer list goes on by score. 10 cost about 0.1 ms, 100 about 1 ms."""
POOL_PER_PLACE, LEAST_POOL = 5, 50
"""Items that are looked at: so many a place, and no fewer than that."""


def diversified(scores: FloatArray, features: FloatArray, places: int, diversity: float) -> LongArray:
    """Order of the n items in which the first ones differ: (n,) int64, the items beyond the pool as they were.

    Args:
        scores: (n,) float32, best first.
        features: (n, D) float32 rows of unit length or zero (`similarity_features`), of the pool at least.
        places: items that will be shown.
        diversity: 0 to 1.
    """
    n, places = len(scores), min(places, MAX_PLACES)
    pool = min(n, max(POOL_PER_PLACE * places, LEAST_POOL))
    if diversity <= 0 or pool < 2:
        return np.arange(n)
    relevance = scores[:pool].astype(np.float64)
    spread = float(relevance.max() - relevance.min())
    relevance = (1.0 - diversity) * ((relevance - relevance.min()) / spread if spread > 0 else np.ones(pool))
    nearest = np.zeros(pool)
    chosen: list[int] = []
    left = np.ones(pool, dtype=bool)
    for _ in range(min(places, pool)):
        gain = np.where(left, relevance - diversity * nearest, -np.inf)
        # The first place is the most relevant item's, also where similarity alone counts.
        best = int(gain.argmax()) if chosen else 0
        chosen.append(best)
        left[best] = False
        nearest = np.maximum(nearest, features[:pool] @ features[best])
    return np.concatenate([chosen, np.flatnonzero(left), np.arange(pool, n)]).astype(np.int64)


def pool_size(n: int, places: int) -> int:
    """Items of a list whose features `diversified` reads."""
    return min(n, max(POOL_PER_PLACE * min(places, MAX_PLACES), LEAST_POOL))


def similarity_features(rows: IntArray, categories: Column | None, vectors: FloatArray | None) -> FloatArray:
    """(n, D) float32 whose inner products are the similarities of `rows`.

    Args:
        rows: (n,) items.
        categories: their categories, None where the dataset has none.
        vectors: (N', D') float32 item vectors of unit length or zero; items from N' on have none.
    """
    parts = []
    owner, code = values_of(categories, rows)
    if len(owner):
        known, local = np.unique(code, return_inverse=True)
        words = np.zeros((len(rows), len(known)), dtype=np.float32)
        words[owner, local] = 1.0
        parts.append(_unit(words))
    if vectors is not None:
        known_rows = np.flatnonzero(rows < len(vectors))
        found = np.zeros((len(rows), vectors.shape[1]), dtype=np.float32)
        found[known_rows] = vectors[rows[known_rows]]
        parts.append(_unit(found))
    if not parts:
        return np.zeros((len(rows), 1), dtype=np.float32)
    return np.concatenate(parts, axis=1) * np.float32(len(parts) ** -0.5)


def _unit(values: FloatArray) -> FloatArray:
    length = np.linalg.norm(values, axis=1, keepdims=True)
    return (values / np.where(length > 0, length, 1.0)).astype(np.float32)
