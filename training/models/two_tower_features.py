"""What the two towers read of an item or a user beside its id, free of torch: serving needs no more of the users' tower.

Legend: `N` items or users, `V` tokens, `F` numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from training.interactions import FloatArray, LongArray


@dataclass(frozen=True)
class Features:
    """What is known of each item, or user, beside its id.

    Args:
        tokens: (N, V) weights of words and tags.
        dense: (N, F) float32 without NaN.
    """

    tokens: sp.csr_matrix
    dense: FloatArray

    def bag(self, rows: LongArray) -> tuple[LongArray, LongArray, FloatArray]:
        """Token numbers, offsets and weights of the rows, as torch's `EmbeddingBag` takes them."""
        starts, lengths = self.tokens.indptr[rows].astype(np.int64), np.diff(self.tokens.indptr)[rows].astype(np.int64)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        place = np.repeat(starts - offsets[:-1], lengths) + np.arange(int(offsets[-1]))
        return self.tokens.indices[place].astype(np.int64), offsets[:-1].astype(np.int64), self.tokens.data[place]


def dense_features(numbers: FloatArray) -> FloatArray:
    """(N, 2 F) float32: numbers at mean 0 and deviation 1, cut at 5, unknown ones 0; then 1 where unknown, if any are."""
    known = np.isfinite(numbers)
    columns = []
    for value, there in zip(numbers.T, known.T, strict=True):
        mean, deviation = (float(value[there].mean()), float(value[there].std())) if there.any() else (0.0, 0.0)
        scaled = (np.where(there, value, mean) - mean) / deviation if deviation > 0 else np.zeros(len(value))
        columns.append(np.clip(scaled, -5.0, 5.0))
        if there.any() and not there.all():
            columns.append(~there)
    return np.column_stack(columns).astype(np.float32) if columns else np.empty((len(numbers), 0), dtype=np.float32)
