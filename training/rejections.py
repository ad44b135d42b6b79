"""What users have rejected (`features.events.NEGATIVE_ACTIONS`): never learned from, and never recommended to them again.

Kept with the histories of a bundle. The last events of a user in the cache say what was rejected since, but they are few, expire,
and know nothing of lists that were made before anybody asked.

Legend: `U` users, `R` rejected pairs, `A` asked users.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

from training.excluded_items import ExcludedItems
from training.interactions import IntArray, LongArray


@dataclass(frozen=True)
class Rejections:
    """Rejected items by user, each once.

    Shapes: indptr (U + 1,) int64; item_idx (R,) int32, those of user u at `indptr[u]:indptr[u + 1]`.
    """

    indptr: LongArray
    item_idx: IntArray

    @classmethod
    def of(cls, user_idx: IntArray, item_idx: IntArray, num_users: int, num_items: int) -> Self:
        """From pairs in any order, repeated ones too."""
        pairs = np.unique(user_idx.astype(np.int64) * num_items + item_idx)
        indptr = np.searchsorted(pairs, np.arange(num_users + 1, dtype=np.int64) * num_items)
        return cls(indptr.astype(np.int64), (pairs % max(num_items, 1)).astype(np.int32))

    def of_user(self, row: int) -> IntArray:
        """Items that one user has rejected; none for row -1."""
        if row < 0:
            return np.zeros(0, dtype=np.int32)
        return np.asarray(self.item_idx[self.indptr[row] : self.indptr[row + 1]], dtype=np.int32)

    def of_users(self, rows: IntArray) -> ExcludedItems:
        """What the (A,) asked users have rejected; nothing for rows of -1."""
        starts = self.indptr[rows]
        lengths = np.where(rows >= 0, self.indptr[rows + 1] - starts, 0)
        first = np.cumsum(lengths) - lengths
        entries = np.repeat(starts - first, lengths) + np.arange(int(lengths.sum()))
        asked = np.repeat(np.arange(len(rows), dtype=np.int32), lengths)
        return ExcludedItems(asked, np.asarray(self.item_idx[entries], dtype=np.int32))

    def without(self, row: int) -> Rejections:
        """The same with nothing rejected by one user."""
        start, stop = int(self.indptr[row]), int(self.indptr[row + 1])
        indptr = np.array(self.indptr)
        indptr[row + 1 :] -= stop - start
        return Rejections(indptr, np.delete(self.item_idx, np.arange(start, stop)))
