"""Interactions as columns: the one form in which models, splits and samplers see activity.

Owns the mapping between outside ids and row numbers (`item_id` / `item_idx`) and the order of histories. Reading the store
is `features.activity_store`'s work, splitting is `training.splits`'.

Legend: `E` interactions, `U` users, `N` items.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

IntArray = npt.NDArray[np.int32]
LongArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]
ByteArray = npt.NDArray[np.uint8]
IdArray = npt.NDArray[np.object_]


@dataclass(frozen=True)
class Interactions:
    """Positive activity, sorted by user and, within a user, by history order.

    Shapes and units:
        user_ids (U,) str, item_ids (N,) str: row number -> outside id. `item_ids` holds every catalogue item too,
            those without activity included.
        user_idx, item_idx (E,) int32.
        time_us (E,) int64: event time in microseconds since the epoch, strictly increasing within a user. Synthetic
            (0, 1, 2, ... within the user) where the dataset has no times.
        time_known (E,) bool: False where the time was imputed or synthetic.
        value (E,) float32: rating or amount, NaN where none was given.
        split (E,) object: the `split` column of the file ("train", "test", ...), None where none.
        action (E,) uint8: `features.events.ACTION_CODES`, 0 where not known.
    """

    user_ids: IdArray
    item_ids: IdArray
    user_idx: IntArray
    item_idx: IntArray
    time_us: LongArray
    time_known: BoolArray
    value: FloatArray
    split: IdArray
    action: ByteArray

    @property
    def num_users(self) -> int:
        """U."""
        return len(self.user_ids)

    @property
    def num_items(self) -> int:
        """N."""
        return len(self.item_ids)

    def __len__(self) -> int:
        return len(self.user_idx)

    @property
    def has_times(self) -> bool:
        """Whether any interaction has a real time."""
        return bool(self.time_known.any())

    @cached_property
    def indptr(self) -> LongArray:
        """(U + 1,) int64: rows `indptr[u]:indptr[u + 1]` are the history of user u, oldest first."""
        return np.searchsorted(self.user_idx, np.arange(self.num_users + 1)).astype(np.int64)

    @cached_property
    def from_end(self) -> IntArray:
        """(E,) int32: 0 for a user's last interaction, 1 for the one before, and so on."""
        return (self.indptr[self.user_idx + 1] - 1 - np.arange(len(self))).astype(np.int32)

    def select(self, keep: BoolArray) -> Interactions:
        """The interactions where `keep` (E,) is True; vocabularies stay, so row numbers keep their meaning."""
        return replace(
            self,
            user_idx=self.user_idx[keep],
            item_idx=self.item_idx[keep],
            time_us=self.time_us[keep],
            time_known=self.time_known[keep],
            value=self.value[keep],
            split=self.split[keep],
            action=self.action[keep],
        )

    def to_csr(self, weight: FloatArray | None = None) -> sp.csr_matrix:
        """Users by items (U, N) float32; repeated pairs are summed. Weights default to one."""
        data = np.ones(len(self), dtype=np.float32) if weight is None else weight
        matrix = sp.csr_matrix((data, (self.user_idx, self.item_idx)), shape=(self.num_users, self.num_items))
        matrix.sum_duplicates()
        return matrix
