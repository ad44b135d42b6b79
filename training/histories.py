"""Who the users of a bundle are and what they did as of its training: for pyfunc, precompute and leaving out seen items.

Kept as a Parquet file of ids and memory-mapped arrays, so that processes on a machine share the pages.

Legend: `U` users, `E` interactions, `B` queries.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from training.arrays import AnyArray, map_arrays, save_arrays
from training.excluded_items import NOTHING
from training.interactions import ByteArray, FloatArray, IdArray, IntArray, Interactions, LongArray
from training.queries import QueryBatch
from training.rejections import Rejections
from training.vocabulary import Vocabulary

USERS_FILE = "users.parquet"
HISTORIES_FILE = "histories.safetensors"


@dataclass(frozen=True)
class Histories:
    """Histories of all users, oldest entry first.

    Shapes and units: user_ids (U,) str; indptr (U + 1,) int64; item_idx (E,) int32; time_us (E,) int64 microseconds since the
    epoch; value (E,) float32, NaN where none; action (E,) uint8 of `features.events.ACTION_CODES`, 0 where not known. `rejected`:
    what they have rejected; None where nobody has, or nobody knows.
    """

    user_ids: IdArray
    indptr: LongArray
    item_idx: IntArray
    time_us: LongArray
    value: FloatArray
    action: ByteArray
    rejected: Rejections | None = None

    @classmethod
    def of(cls, interactions: Interactions, rejected: Rejections | None = None) -> Histories:
        """Histories of everything in `interactions`, with what its users have rejected."""
        return cls(
            user_ids=interactions.user_ids,
            indptr=interactions.indptr,
            item_idx=interactions.item_idx,
            time_us=interactions.time_us,
            value=interactions.value,
            action=interactions.action,
            rejected=rejected,
        )

    @cached_property
    def users(self) -> Vocabulary:
        """User ids and their rows."""
        return Vocabulary(self.user_ids)

    @cached_property
    def end_us(self) -> int:
        """Time of the last interaction of all, 0 where there is none."""
        return int(self.time_us.max(initial=0))

    def queries(self, user_idx: IntArray, request_time_us: LongArray | None = None) -> QueryBatch:
        """One query a user with the whole history; users of row -1 have none.

        Args:
            user_idx: (B,) int32.
            request_time_us: (B,) int64 moment of asking; entries at or after it are left out. Defaults to right after the
                last interaction of all users, which is when these histories were known.
        """
        known = user_idx >= 0
        starts = np.where(known, self.indptr[user_idx], 0)
        lengths = np.where(known, self.indptr[user_idx + 1] - starts, 0)
        indptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        rows = np.repeat(starts - indptr[:-1], lengths) + np.arange(int(indptr[-1]))
        if request_time_us is None:
            request_time_us = np.full(len(user_idx), self.end_us + 1, dtype=np.int64)
        else:
            keep = self.time_us[rows] < np.repeat(request_time_us, lengths)
            lengths = np.bincount(np.repeat(np.arange(len(user_idx)), lengths)[keep], minlength=len(user_idx))
            rows, indptr = rows[keep], np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        return QueryBatch(
            indptr=indptr,
            item_idx=np.asarray(self.item_idx[rows], dtype=np.int32),
            time_us=np.asarray(self.time_us[rows], dtype=np.int64),
            request_time_us=request_time_us,
            user_idx=np.asarray(user_idx, dtype=np.int32),
            left_out=NOTHING if self.rejected is None else self.rejected.of_users(user_idx),
        )

    def save(self, folder: Path) -> None:
        """Write `users.parquet` and `histories.safetensors`."""
        pq.write_table(pa.table({"user_id": pa.array(self.user_ids, type=pa.string())}), folder / USERS_FILE, compression="zstd")
        arrays: dict[str, AnyArray] = {
            "indptr": self.indptr,
            "item_idx": self.item_idx,
            "time_us": self.time_us,
            "value": self.value,
            "action": self.action,
        }
        if self.rejected is not None:
            arrays |= {"rejected_indptr": self.rejected.indptr, "rejected_idx": self.rejected.item_idx}
        save_arrays(folder / HISTORIES_FILE, arrays)

    @classmethod
    def load(cls, folder: Path) -> Histories:
        """Read what `save` wrote; the arrays are memory maps. Bundles of an earlier release know no actions and no rejections."""
        arrays = map_arrays(folder / HISTORIES_FILE)
        rejected = None
        if "rejected_idx" in arrays:
            indptr, item_idx = arrays["rejected_indptr"], arrays["rejected_idx"]
            rejected = Rejections(indptr.astype(np.int64, copy=False), item_idx.astype(np.int32, copy=False))
        ids = pq.read_table(folder / USERS_FILE).column("user_id").to_numpy(zero_copy_only=False)
        return cls(
            user_ids=ids,
            indptr=arrays["indptr"].astype(np.int64, copy=False),
            item_idx=arrays["item_idx"].astype(np.int32, copy=False),
            time_us=arrays["time_us"].astype(np.int64, copy=False),
            value=arrays["value"].astype(np.float32, copy=False),
            action=arrays.get("action", np.zeros(len(arrays["item_idx"]), dtype=np.uint8)).astype(np.uint8, copy=False),
            rejected=rejected,
        )
