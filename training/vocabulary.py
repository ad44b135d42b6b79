"""Outside ids to row numbers, for many ids at once."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from training.interactions import IdArray, IntArray


class Vocabulary:
    """Ids by row number, and rows by id. The table for the second is built at the first look-up.

    Args:
        ids: (N,) distinct strings.
    """

    def __init__(self, ids: IdArray) -> None:
        self.ids = ids

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def _row_of(self) -> dict[str, int]:
        return {name: row for row, name in enumerate(self.ids.tolist())}

    def rows(self, ids: Sequence[str]) -> IntArray:
        """(len(ids),) int32 row numbers, -1 where unknown."""
        row_of = self._row_of
        return np.fromiter((row_of.get(name, -1) for name in ids), dtype=np.int32, count=len(ids))

    def names(self, rows: IntArray) -> list[str]:
        """Ids of rows, none of which may be -1."""
        return [str(name) for name in self.ids[rows]]
