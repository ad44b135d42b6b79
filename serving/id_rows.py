"""Which row has an id: hashes of the ids, sorted. 8 bytes an id, where a dict with its numbers takes 60 at a million of them.

The hashes are CRC-32: the same in every process and version, which row numbers and Python's own hashes are not, so that cursors can
hold them (`page_cursor`). Ids of one hash are told apart by looking at them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from zlib import crc32

import numpy as np
import numpy.typing as npt

from training.interactions import IntArray

Hashes = npt.NDArray[np.uint32]


def id_hashes(ids: Sequence[str]) -> Hashes:
    """(len(ids),) uint32. Between two ids the interpreter can go to another thread: a million of them take half a second."""
    return np.array([crc32(item_id.encode("utf-8", "surrogatepass")) for item_id in ids], dtype=np.uint32)


class IdRows(Mapping[str, int]):
    """Id -> row.

    Args:
        ids: (N,) str, each once; kept and not copied.
        before: of the first of the ids, so that only the others have to be hashed.
    """

    def __init__(self, ids: npt.NDArray[np.object_], before: IdRows | None = None) -> None:
        self._ids = ids
        start = 0 if before is None else len(before)
        hashes = id_hashes(ids[start:].tolist())
        order = np.argsort(hashes, kind="stable").astype(np.int32)
        self._hashes, self._order = hashes[order], order + np.int32(start)
        if before is not None:
            places = before._hashes.searchsorted(self._hashes, "right")
            self._hashes = np.insert(before._hashes, places, self._hashes)
            self._order = np.insert(before._order, places, self._order)

    def __getitem__(self, item_id: str) -> int:
        wanted = np.uint32(_hash(item_id))  # of the array's own type, which searchsorted would otherwise make a copy to match
        place = int(self._hashes.searchsorted(wanted))
        while place < len(self._hashes) and self._hashes[place] == wanted:
            row = int(self._order[place])
            if self._ids[row] == item_id:
                return row
            place += 1
        raise KeyError(item_id)

    def find(self, item_ids: Sequence[str]) -> IntArray:
        """(len(item_ids),) int32 row of each id, -1 where unknown: many at once."""
        if not len(item_ids) or not len(self):
            return np.full(len(item_ids), -1, dtype=np.int32)
        wanted = id_hashes(item_ids)
        place = np.minimum(self._hashes.searchsorted(wanted), len(self) - 1)
        rows: IntArray = np.where(self._hashes[place] == wanted, self._order[place], -1).astype(np.int32)
        for number in np.flatnonzero(rows >= 0).tolist():
            if self._ids[rows[number]] != item_ids[number]:  # another id has the same hash
                rows[number] = self.get(item_ids[number], -1)
        return rows

    def of_hashes(self, hashes: Hashes) -> IntArray:
        """Rows of all ids with one of the hashes; hashes of no id are left out."""
        starts, stops = self._hashes.searchsorted(hashes, "left"), self._hashes.searchsorted(hashes, "right")
        counts = stops - starts
        offsets = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
        return self._order[np.repeat(starts, counts) + offsets]

    def __iter__(self) -> Iterator[str]:
        return iter(self._ids.tolist())

    def __len__(self) -> int:
        return len(self._ids)


def _hash(item_id: str) -> int:
    return crc32(item_id.encode("utf-8", "surrogatepass"))  # callers may ask for any text
