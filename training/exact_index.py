"""Exact search for the items of greatest dot product: the oracle, and what answers where few items are left.

Legend: `B` queries, `N` items, `M` items in the index, `D` width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import numpy.typing as npt

from training.candidates import Retrieved
from training.interactions import BoolArray, FloatArray, LongArray

BLOCK_CELLS = 16_000_000
"""Scores of exact search at once: 64 MB of float32."""


class ItemIndex(ABC):
    """Finds the items of greatest dot product."""

    @abstractmethod
    def search(self, queries: FloatArray, k: int, allowed: BoolArray | None = None) -> Retrieved:
        """The `k` best items of each query, best first, padded where fewer are allowed.

        Args:
            queries: (B, D) float32.
            k: items wanted.
            allowed: (N,) bool of items that may be returned; None allows all. A read-only one is prepared once and remembered.
        """


class ExactIndex(ItemIndex):
    """Scores every allowed item.

    Args:
        vectors: (N, D) float32; not copied.
        rows: (M,) int64 items in the index, ascending.
    """

    def __init__(self, vectors: FloatArray, rows: LongArray) -> None:
        self.vectors, self.rows = vectors, rows

    def search(self, queries: FloatArray, k: int, allowed: BoolArray | None = None) -> Retrieved:
        """See `ItemIndex.search`."""
        rows = self.rows if allowed is None else self.rows[allowed[self.rows]]
        vectors = self.vectors if len(rows) == len(self.vectors) else self.vectors[rows]
        return self._best(queries, k, rows, vectors)

    def among(self, queries: FloatArray, k: int, rows: LongArray) -> Retrieved:
        """The same over the items `rows` alone, ascending."""
        return self._best(queries, k, rows, self.vectors[rows])

    def _best(self, queries: FloatArray, k: int, rows: LongArray, vectors: FloatArray) -> Retrieved:
        item_idx = np.full((len(queries), k), -1, dtype=np.int32)
        score = np.full((len(queries), k), -np.inf, dtype=np.float32)
        width = min(k, len(rows))
        block = max(1, BLOCK_CELLS // max(len(rows), 1))
        for start in range(0, len(queries) if width else 0, block):
            scores = queries[start : start + block] @ vectors.T
            part = np.argpartition(-scores, width - 1, axis=1)[:, :width] if width < len(rows) else _all_columns(scores)
            found = best_first(rows[part], np.take_along_axis(scores, part, axis=1))
            item_idx[start : start + block, :width], score[start : start + block, :width] = found.item_idx, found.score
        return Retrieved(item_idx, score)


def best_first(item: npt.NDArray[np.integer[Any]], score: FloatArray) -> Retrieved:
    """Best first, equal scores by lower item number."""
    order = np.lexsort((item, -score), axis=-1)
    return Retrieved(
        np.take_along_axis(item, order, axis=1).astype(np.int32), np.take_along_axis(score, order, axis=1).astype(np.float32)
    )


def _all_columns(scores: FloatArray) -> LongArray:
    return np.broadcast_to(np.arange(scores.shape[1]), scores.shape)
