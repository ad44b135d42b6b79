"""The compact binary form of one ranked list: what retriever replicas answer, what the cache holds, what the gateway reads.

24 bytes of header, then 9 bytes an entry: item row, score, source. Scores are kept as they are: steps of the list's own range would
take 2 bytes less, but an item's score would then depend on how long the list is that holds it, and decoding takes twice as long.

    header: magic "SL", format 2, flags, count uint16, 2 bytes 0, computed_at_us int64, activity_at_us int64
    body: item_idx int32[count], score float32[count], source uint8[count]; all little-endian
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from training.interactions import FloatArray, IntArray

_HEADER = struct.Struct("<2sBBHxxqq")
_MAGIC, _FORMAT = b"SL", 2
_COMPLETE, _ANONYMOUS = 1, 2
_ENTRY_BYTES = 4 + 4 + 1
_ROWS, _SCORES, _SOURCES = np.dtype("<i4"), np.dtype("<f4"), np.dtype(np.uint8)

_largest = np.maximum.reduce
"""As `max` of an array, which calls it by way of Python: this is done for each cached answer."""


@dataclass(slots=True)
class CachedList:
    """A ranked list for one user and one version, best first.

    Shapes and units:
        item_idx (n,) int32 rows of the version's vocabulary; score (n,) float32; source (n,) uint8, number in the version's
        source names.
        computed_at_us: when it was computed. activity_at_us: the freshness mark of the newest activity that went into it.
        complete: there is no further item that the version could give the user.
        anonymous: nothing is known of the user; the list is empty and popular items are the answer.
    """

    item_idx: IntArray
    score: FloatArray
    source: npt.NDArray[np.uint8]
    computed_at_us: int
    activity_at_us: int
    complete: bool = False
    anonymous: bool = False

    def __len__(self) -> int:
        return len(self.item_idx)

    def fits(self, num_items: int, num_sources: int) -> bool:
        """Whether all rows and sources are among those of a version."""
        if not len(self):
            return True
        # Read without a sign, a negative row lies beyond all others.
        return bool(_largest(self.item_idx.view(np.uint32)) < num_items and _largest(self.source) < num_sources)

    def encode(self) -> bytes:
        """The list as bytes."""
        flags = _COMPLETE * self.complete | _ANONYMOUS * self.anonymous
        header = _HEADER.pack(_MAGIC, _FORMAT, flags, len(self), self.computed_at_us, self.activity_at_us)
        body = (self.item_idx.astype("<i4"), self.score.astype("<f4"), self.source.astype(np.uint8))
        return b"".join((header, *(column.tobytes() for column in body)))


def decode_list(blob: bytes) -> CachedList | None:
    """Read `encode`'s bytes; None where they are not a list of this format (an older release's, or damage)."""
    if len(blob) < _HEADER.size:
        return None
    magic, version, flags, count, computed_at_us, activity_at_us = _HEADER.unpack_from(blob)
    if magic != _MAGIC or version != _FORMAT or len(blob) != _HEADER.size + count * _ENTRY_BYTES:
        return None
    return CachedList(
        item_idx=np.frombuffer(blob, _ROWS, count, _HEADER.size),
        score=np.frombuffer(blob, _SCORES, count, _HEADER.size + 4 * count),
        source=np.frombuffer(blob, _SOURCES, count, _HEADER.size + 8 * count),
        computed_at_us=computed_at_us,
        activity_at_us=activity_at_us,
        complete=bool(flags & _COMPLETE),
        anonymous=bool(flags & _ANONYMOUS),
    )
