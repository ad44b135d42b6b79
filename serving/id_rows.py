"""Which row has an id: a table of hashes, sorted. 12 bytes an id, where a dict with its numbers takes 60 at a million of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from training.interactions import IntArray


class IdRows(Mapping[str, int]):
    """Id -> row.

    Args:
        ids: (N,) str, each once; kept and not copied.
    """

    def __init__(self, ids: npt.NDArray[np.object_]) -> None:
        hashes = np.fromiter(map(hash, ids.tolist()), dtype=np.int64, count=len(ids))
        self._ids = ids
        self._order: IntArray = np.argsort(hashes).astype(np.int32)
        self._hashes = hashes[self._order]

    def __getitem__(self, item_id: str) -> int:
        wanted = hash(item_id)
        place = int(self._hashes.searchsorted(wanted))
        while place < len(self._hashes) and self._hashes[place] == wanted:  # nearly always once: hashes are of 64 bits
            row = int(self._order[place])
            if self._ids[row] == item_id:
                return row
            place += 1
        raise KeyError(item_id)

    def find(self, item_ids: Sequence[str]) -> IntArray:
        """(len(item_ids),) int32 row of each id, -1 where unknown: many at once."""
        if not len(item_ids) or not len(self):
            return np.full(len(item_ids), -1, dtype=np.int32)
        wanted = np.fromiter(map(hash, item_ids), dtype=np.int64, count=len(item_ids))
        place = np.minimum(self._hashes.searchsorted(wanted), len(self) - 1)
        rows: IntArray = np.where(self._hashes[place] == wanted, self._order[place], -1).astype(np.int32)
        for number in np.flatnonzero(rows >= 0).tolist():
            if self._ids[rows[number]] != item_ids[number]:  # another id has the same hash
                rows[number] = self.get(item_ids[number], -1)
        return rows

    def __iter__(self) -> Iterator[str]:
        return iter(self._ids.tolist())

    def __len__(self) -> int:
        return len(self._ids)
