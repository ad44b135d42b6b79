"""Items that are left out of queries' answers whatever a mask says: what a user has met, rejected, or does not want this time.

They are few a query, so that queries with different ones still share a mask, an index and a batch.

Legend: `B` queries, `E` pairs of a query and an item.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from training.interactions import IntArray, LongArray


@dataclass(frozen=True)
class ExcludedItems:
    """Pairs of a query's number and an item, both (E,) int32. An item may stand there twice."""

    row: IntArray
    item_idx: IntArray

    def __len__(self) -> int:
        return len(self.row)

    def of(self, b: int) -> IntArray:
        """Items left out of query b's answer."""
        return self.item_idx[self.row == b]

    def most(self) -> int:
        """Pairs of the query that has most of them."""
        return int(np.bincount(self.row).max(initial=0))

    def keys(self, num_items: int) -> LongArray:
        """(E,) int64 `row * num_items + item_idx`."""
        return self.row.astype(np.int64) * num_items + self.item_idx

    def slice(self, start: int, stop: int) -> ExcludedItems:
        """Those of the queries `start` to `stop` (exclusive), numbered from 0."""
        kept = (self.row >= start) & (self.row < stop)
        return ExcludedItems(self.row[kept] - np.int32(start), self.item_idx[kept])

    def take(self, rows: IntArray | LongArray) -> ExcludedItems:
        """Those of the queries `rows`, numbered in that order."""
        order = np.argsort(self.row, kind="stable")
        ascending = self.row[order]
        first, last = np.searchsorted(ascending, rows, side="left"), np.searchsorted(ascending, rows, side="right")
        lengths = last - first
        entries = np.repeat(first - np.cumsum(lengths) + lengths, lengths) + np.arange(int(lengths.sum()))
        return ExcludedItems(np.repeat(np.arange(len(rows), dtype=np.int32), lengths), self.item_idx[order[entries]])


NOTHING = ExcludedItems(np.zeros(0, dtype=np.int32), np.zeros(0, dtype=np.int32))


def joined(parts: Sequence[ExcludedItems], starts: Sequence[int]) -> ExcludedItems:
    """All of the parts, the queries of each numbered from its start on."""
    rows = [part.row + np.int32(start) for part, start in zip(parts, starts, strict=True)]
    if not rows:
        return NOTHING
    return ExcludedItems(np.concatenate(rows), np.concatenate([part.item_idx for part in parts]))
