"""Segments of users out of their attributes: one for each value of a choice, and for each fifth of a number.

Legend: `U` users, `S` segments, `N` items.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from training.content_columns import content_columns
from training.interactions import FloatArray, Interactions
from training.models.item_item import keep_strongest

PARTS = 5
"""Parts of like size that the users are cut into by a number."""
KEPT = 1_000
"""Items kept a segment, those most taken: bounds memory, and a list looks no further."""


def user_segments(attributes: Mapping[str, npt.NDArray[np.generic]], num_users: int) -> sp.csr_matrix:
    """(U, S) float32 ones where a user is in a segment; a user whose attributes are unknown is in none."""
    columns = content_columns(attributes, num_users)
    parts = [columns.tags]
    for number in columns.numbers.T:
        known = np.flatnonzero(np.isfinite(number))
        edges = np.unique(np.quantile(number[known], np.arange(1, PARTS) / PARTS)) if len(known) else np.empty(0)
        part = np.searchsorted(edges, number[known], side="right")
        ones = np.ones(len(known), dtype=np.float32)
        parts.append(sp.csr_matrix((ones, (known, part)), shape=(num_users, len(edges) + 1)))
    return sp.hstack(parts, format="csr", dtype=np.float32)


def segment_shares(
    interactions: Interactions, weight: npt.NDArray[np.float64], members: sp.csr_matrix, shrinkage: float
) -> tuple[sp.csr_matrix, FloatArray]:
    """Shares of the items in each segment, drawn towards those of all: P(j | s) = shares[s, j] + rest[s] * P(j).

    Args:
        interactions: of all users.
        weight: (E,) what each counts.
        members: (U, S).
        shrinkage: interactions of the whole that a segment's own are joined by.

    Returns:
        (S, N) float32 shares of the `KEPT` items most taken, and (S,) float32 rest.
    """
    taken = interactions.to_csr(weight.astype(np.float32))
    counts = (members.T @ taken).tocsr().astype(np.float32)
    total = np.asarray(counts.sum(axis=1)).ravel() + np.float32(shrinkage)
    kept = keep_strongest(counts, KEPT)
    kept.data /= np.repeat(total, np.diff(kept.indptr))
    return kept, (shrinkage / total).astype(np.float32)
