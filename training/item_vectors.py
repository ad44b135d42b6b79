"""Item vectors from who took what: the cheap similarity of a candidate to a history that rankers use as a feature.

Rank-D factorisation of the users-by-items matrix, rows scaled to unit length and columns damped by popularity, by randomised
subspace iteration. Source: Halko, Martinsson and Tropp 2011, algorithm 4.4.

Legend: `U` users, `N` items, `D` width, `B` queries, `K` candidates, `H` looked-at history entries.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from training.interactions import BoolArray, FloatArray, IntArray, Interactions
from training.queries import QueryBatch

WIDTH = 48
ITERATIONS = 4
OVERSAMPLING = 8
MAX_USERS = 200_000
"""Users that the factorisation looks at, drawn by the seed: vectors of items converge long before all users are read."""
RECENT = 10
"""History entries that a candidate is compared to, the newest."""


def item_vectors(interactions: Interactions, *, width: int = WIDTH, seed: int = 0) -> FloatArray:
    """(N, D) float32 unit vectors, 0 for items without activity; D is smaller than `width` on tiny data."""
    rng = np.random.default_rng(seed)
    matrix = interactions.to_csr()
    matrix.data[:] = 1.0
    if matrix.shape[0] > MAX_USERS:
        matrix = matrix[np.sort(rng.choice(matrix.shape[0], MAX_USERS, replace=False))]
    popularity = np.maximum(np.asarray(matrix.sum(axis=0)).ravel(), 1.0)
    length = np.maximum(np.asarray(matrix.sum(axis=1)).ravel(), 1.0)
    scaled = (sp.diags(length**-0.5) @ matrix @ sp.diags(popularity**-0.5)).tocsr().astype(np.float32)
    rank = max(min(width + OVERSAMPLING, *matrix.shape), 1)
    basis = rng.normal(size=(matrix.shape[1], rank)).astype(np.float32)
    for _ in range(ITERATIONS):
        basis, _ = np.linalg.qr(scaled.T @ (scaled @ basis))
    _, singular, right = np.linalg.svd(scaled @ basis, full_matrices=False)
    vectors = (basis @ right.T)[:, :width] * singular[:width]
    norm = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.where(norm > 1e-8, vectors / np.maximum(norm, 1e-8), 0.0).astype(np.float32)


def history_similarity(vectors: FloatArray, queries: QueryBatch, item_idx: IntArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Cosine of each candidate to the newest history entry, the largest and the mean over the newest `RECENT` entries.

    Shapes: vectors (N, D), item_idx (B, K) int32 -> three (B, K) float32; NaN for queries without history.
    """
    recent, there = recent_items(queries, RECENT)
    candidates = vectors.take(item_idx, axis=0, mode="clip")
    cosine = candidates @ vectors[recent].transpose(0, 2, 1)  # (B, K, H)
    mask = there[:, None, :]
    count = there.sum(axis=1)[:, None]
    known = count > 0
    largest = np.where(mask, cosine, -np.inf).max(axis=2)
    mean = np.where(mask, cosine, 0.0).sum(axis=2) / np.maximum(count, 1)
    unknown = np.float32(np.nan)
    return (
        np.where(known, cosine[:, :, 0], unknown).astype(np.float32),
        np.where(known, largest, unknown).astype(np.float32),
        np.where(known, mean, unknown).astype(np.float32),
    )


def recent_items(queries: QueryBatch, count: int) -> tuple[IntArray, BoolArray]:
    """The newest `count` items of each history, newest first: (B, count) int32 (0 where there is none) and which are there."""
    place = queries.indptr[1:, None] - 1 - np.arange(count)
    there = place >= queries.indptr[:-1, None]
    if not len(queries.item_idx):
        return np.zeros(place.shape, dtype=np.int32), there
    return np.where(there, queries.item_idx[np.where(there, place, 0)], 0).astype(np.int32), there
