"""CandidateSet: the one immutable value that travels from the retrievers to the answer.

Legend: `B` queries, `K` candidates, `S` sources.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from training.interactions import BoolArray, FloatArray, IntArray, LongArray


@dataclass(frozen=True)
class Retrieved:
    """What one retriever returns: best first, padded with item -1 and score -inf.

    Shapes: item_idx (B, k) int32, score (B, k) float32. Scores order items within a query; their scale is the source's own.
    """

    item_idx: IntArray
    score: FloatArray


@dataclass(frozen=True)
class CandidateSet:
    """The union of all sources' candidates, one row a query.

    Shapes:
        item_idx (B, K) int32: -1 is padding, always at the end of a row; no item twice in a row.
        score (B, K, S) float32: NaN where the source did not return the item.
        rank (B, K, S) float32: 0 for the source's best, NaN where the source did not return the item.
        sources: S names, the order of the last axis.
    """

    sources: tuple[str, ...]
    item_idx: IntArray
    score: FloatArray
    rank: FloatArray

    @property
    def valid(self) -> BoolArray:
        """(B, K) bool: True where there is a candidate."""
        return self.item_idx >= 0

    @property
    def sourced(self) -> BoolArray:
        """(B, K) bool: True for candidates that some source returned; False for padding and items that only fill a list."""
        return np.asarray(~np.isnan(self.rank).all(axis=2), dtype=bool)

    def columns(self, columns: LongArray) -> CandidateSet:
        """Of query b the candidates `columns[b]`, (B, K') int64, in that order."""
        rows = np.arange(len(self.item_idx))[:, None]
        return CandidateSet(self.sources, self.item_idx[rows, columns], self.score[rows, columns], self.rank[rows, columns])

    def slice(self, start: int, stop: int) -> CandidateSet:
        """Queries `start` to `stop` (exclusive). No copy."""
        part = slice(start, stop)
        return CandidateSet(self.sources, self.item_idx[part], self.score[part], self.rank[part])

    def take(self, rows: LongArray) -> CandidateSet:
        """The queries `rows`, in that order."""
        return CandidateSet(self.sources, self.item_idx[rows], self.score[rows], self.rank[rows])


@dataclass(frozen=True)
class RankedLists:
    """Final lists, best first, padded with item -1 and score -inf.

    Shapes: item_idx (B, k) int32, score (B, k) float32, source (B, k) int8: index into `sources` of the retriever that ranked
    the item highest, -1 for padding.
    """

    sources: tuple[str, ...]
    item_idx: IntArray
    score: FloatArray
    source: np.ndarray[tuple[int, ...], np.dtype[np.int8]]
