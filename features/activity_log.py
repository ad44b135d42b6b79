"""Positive activity as sorted columns of one side (users or items): the input of all aggregates.

Reading the store is `features.activity_store`'s work, what is computed from the columns `features.aggregates`'.

Legend: `E` events, `U` entities of the side, `N` ids of the other side, `A` asks.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from features.errors import FeatureJoinError
from features.events import POSITIVE_ACTIONS, action_codes

LongArray = npt.NDArray[np.int64]
IntArray = npt.NDArray[np.int32]

NO_ROW = -1
"""Row of an id that has no activity."""


def positive_events(events: pa.Table) -> pa.Table:
    """The events that features count: a positive action and no flag. Columns that are absent do not filter."""
    names = events.column_names
    for column in ("item_id", "timestamp"):
        if column not in names:
            raise FeatureJoinError(f"the events have no column {column!r}; they have {', '.join(names)}")
    if "action" in names:
        events = events.filter(pc.is_in(events.column("action"), pa.array(sorted(POSITIVE_ACTIONS))))
    if "flag" in names:
        events = events.filter(pc.is_null(events.column("flag")))
    return events


@dataclass(frozen=True)
class ActivityLog:
    """Events sorted by entity, then time, the other side's id and the action: an order that does not depend on arrival.

    Shapes and units:
        ids (U,) str, sorted; indptr (U + 1,) int64: events `indptr[u]:indptr[u + 1]` are entity u's, oldest first.
        time_us (E,) int64; other (E,) int32 rows of `other_ids` (N,) str, sorted; value (E,) float64, NaN where none; action (E,)
            uint8 of `features.events.ACTION_CODES`, 0 where not known.
        has_times: False where times are only an order; whatever needs a clock is then null.
    """

    ids: npt.NDArray[np.object_]
    indptr: LongArray
    time_us: LongArray
    other: IntArray
    other_ids: npt.NDArray[np.object_]
    value: npt.NDArray[np.float64]
    action: npt.NDArray[np.uint8]
    has_times: bool

    def __len__(self) -> int:
        return len(self.time_us)

    @cached_property
    def entity(self) -> IntArray:
        """(E,) int32: entity row of each event."""
        return np.repeat(np.arange(len(self.ids), dtype=np.int32), np.diff(self.indptr))

    @cached_property
    def _row_of_id(self) -> dict[str, int]:
        return {str(name): row for row, name in enumerate(self.ids)}

    def rows(self, ids: npt.NDArray[np.object_]) -> LongArray:
        """(A,) int64: entity row of each id, `NO_ROW` where it has no activity."""
        rows = self._row_of_id
        return np.fromiter((rows.get(name, NO_ROW) for name in ids), dtype=np.int64, count=len(ids))

    def stops(self, rows: LongArray, before_us: LongArray) -> LongArray:
        """(A,) int64: end of the events of entity `rows[a]` strictly earlier than `before_us[a]`, as an event number.

        Equal to `indptr[row]` where there are none. Binary search, all asks at once. Rows must not be `NO_ROW`.
        """
        lo, hi = self.indptr[rows].copy(), self.indptr[rows + 1].copy()
        if not len(self):
            return lo
        while True:
            open_ = lo < hi
            if not open_.any():
                return lo
            middle = (lo + hi) >> 1
            earlier = open_ & (self.time_us[np.minimum(middle, len(self) - 1)] < before_us)
            lo = np.where(earlier, middle + 1, lo)
            hi = np.where(open_ & ~earlier, middle, hi)


def activity_log(events: pa.Table, side: Literal["user", "item"], *, has_times: bool = True) -> ActivityLog:
    """Sort events into the log of one side.

    Args:
        events: `item_id`, `timestamp` (or int64 microseconds) and, for users, `user_id`; `value` where known. With `action`
            and `flag`, only positive and unflagged rows count. Events without a user count for items only.
        side: whose histories.
        has_times: False where the timestamps are only an order.

    Raises:
        FeatureJoinError: a column is missing.
    """
    events = positive_events(events)
    entity_column, other_column = ("user_id", "item_id") if side == "user" else ("item_id", "user_id")
    if side == "user":
        if "user_id" not in events.column_names:
            raise FeatureJoinError(f"the events have no column 'user_id'; they have {', '.join(events.column_names)}")
        events = events.filter(pc.is_valid(events.column("user_id")))
    ids, entity = _encode(events.column(entity_column))
    if side == "user":
        other_ids, other = _encode(events.column(other_column))
    else:  # An item's state does not depend on who came.
        other_ids, other = np.empty(0, dtype=np.object_), np.zeros(events.num_rows, dtype=np.int32)
    time_us = events.column("timestamp").cast(pa.int64()).to_numpy()
    if "value" in events.column_names:
        value = pc.fill_null(events.column("value").cast(pa.float64()), float("nan")).to_numpy()
    else:
        value = np.full(events.num_rows, np.nan)
    action = np.zeros(events.num_rows, dtype=np.uint8)
    if "action" in events.column_names:
        action = action_codes(events.column("action"))
    order = np.lexsort((action, other, time_us, entity))
    entity = entity[order]
    return ActivityLog(
        ids=ids,
        indptr=np.searchsorted(entity, np.arange(len(ids) + 1)).astype(np.int64),
        time_us=time_us[order],
        other=other[order],
        other_ids=other_ids,
        value=value[order],
        action=action[order],
        has_times=has_times,
    )


def _encode(column: pa.ChunkedArray) -> tuple[npt.NDArray[np.object_], IntArray]:
    """Sorted distinct ids, and the row of each entry."""
    encoded = column.cast(pa.string()).combine_chunks().dictionary_encode()
    names = np.asarray(encoded.dictionary.to_numpy(zero_copy_only=False), dtype=np.object_)
    order = pc.array_sort_indices(encoded.dictionary).to_numpy()
    rank = np.empty(len(names), dtype=np.int32)
    rank[order] = np.arange(len(names), dtype=np.int32)
    return names[order], rank[encoded.indices.to_numpy()]
