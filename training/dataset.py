"""From activity to `Interactions`: the one place that turns the store's rows, or a table in memory, into training data.

Reading Parquet is `features.activity_store`'s work, ordering a file's history is the importers'; what is held out is decided by
`training.splits`.

Legend: `E` interactions, `U` users, `N` items.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from training.errors import NotTrainableError
from training.interactions import BoolArray, IdArray, IntArray, Interactions, LongArray


def interactions_from_events(table: pa.Table, catalogue_items: pa.ChunkedArray | None = None) -> Interactions:
    """Rows of the activity store as `Interactions`, sorted by user and event time.

    Args:
        table: `user_id`, `item_id`, `timestamp` (microseconds, UTC), `timestamp_imputed`, `value`, `split`. Where every time is
            imputed the dataset has none, and times become the order 0, 1, 2, ... within the user.
        catalogue_items: ids of the catalogue; ids of the activity are added to them.
    """
    user_ids, user_idx = _codes(table["user_id"])
    item_ids, item_idx = _codes(table["item_id"], catalogue_items)
    time_us = table["timestamp"].cast(pa.int64()).to_numpy()
    known = ~_bools(table["timestamp_imputed"])
    order = np.lexsort((time_us, user_idx))
    user_idx, time_us, known = user_idx[order], time_us[order], known[order]
    if not known.any():
        time_us = _within_user(user_idx)
    return Interactions(
        user_ids=user_ids,
        item_ids=item_ids,
        user_idx=user_idx,
        item_idx=item_idx[order],
        time_us=time_us,
        time_known=known,
        value=table["value"].to_numpy().astype(np.float32)[order],
        split=np.asarray(table["split"].to_pandas(), dtype=object)[order],
    )


def from_frame(frame: pd.DataFrame, item_ids: IdArray | None = None) -> Interactions:
    """Interactions of a frame in the exchange form (DESIGN 4.4), without a store: for tests, notebooks and folders.

    The order is that of `position` where given, else time, else file order. Times are made strictly increasing within a user as
    imports do: raised to the predecessor's, plus the history position in microseconds. A null time takes the neighbour's and
    counts as not known; without any time the order 0, 1, 2, ... stands in.

    Args:
        frame: `user_id`, `item_id`, and optionally `position`, `timestamp`, `timestamp_imputed`, `value`, `split`.
        item_ids: further items of the catalogue.

    Raises:
        NotTrainableError: the frame is empty.
    """
    if frame.empty:
        raise NotTrainableError("the table of interactions is empty: give at least one row of user_id and item_id")
    extra = None if item_ids is None else pa.chunked_array([pa.array([str(item) for item in item_ids], pa.string())])
    user_ids, user_idx = _codes(_text_column(frame["user_id"]))
    item_codes, item_idx = _codes(_text_column(frame["item_id"]), extra)
    if "timestamp" in frame:
        stamps = pd.to_datetime(frame["timestamp"], utc=True)
        known = stamps.notna().to_numpy()
        raw_us = np.array(stamps.astype("datetime64[us, UTC]").astype("int64"), dtype=np.int64)
    else:
        known, raw_us = np.zeros(len(frame), dtype=bool), np.zeros(len(frame), dtype=np.int64)
    raw_us[~known] = raw_us[known].min() if known.any() else 0
    key = frame["position"].to_numpy(dtype=np.int64) if "position" in frame else raw_us
    order = np.lexsort((key, user_idx))
    user_idx, raw_us, known = user_idx[order], raw_us[order], known[order]
    place = _within_user(user_idx)
    time_us = _strictly_increasing(user_idx, raw_us, known, place) if known.any() else place
    if "timestamp_imputed" in frame:
        known = known & ~frame["timestamp_imputed"].fillna(False).to_numpy(dtype=bool)[order]
    missing = np.full(len(frame), np.nan, dtype=np.float32)
    split = np.full(len(frame), None, dtype=object)
    if "split" in frame:
        given = frame["split"].notna().to_numpy()
        split[given] = frame["split"].to_numpy()[given]
    return Interactions(
        user_ids=user_ids,
        item_ids=item_codes,
        user_idx=user_idx,
        item_idx=item_idx[order],
        time_us=time_us,
        time_known=known,
        value=(frame["value"].to_numpy(dtype=np.float32) if "value" in frame else missing)[order],
        split=split[order],
    )


def fold_events(interactions: Interactions) -> pa.Table:
    """The fold's activity as events for feature building: `user_id`, `item_id`, `timestamp` (us, UTC), `value` (null where none).

    Features of a fold are built from this table alone, so that no count includes a held-out row.
    """
    return pa.table(
        {
            "user_id": pa.array(interactions.user_ids[interactions.user_idx], pa.string()),
            "item_id": pa.array(interactions.item_ids[interactions.item_idx], pa.string()),
            "timestamp": pa.array(interactions.time_us, pa.int64()).cast(pa.timestamp("us", tz="UTC")),
            "value": pa.array(interactions.value.astype(np.float64), from_pandas=True),
        }
    )


def _text_column(column: pd.Series[Any]) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(column.astype(str), pa.string())])


def _codes(column: pa.ChunkedArray, extra: pa.ChunkedArray | None = None) -> tuple[IdArray, IntArray]:
    """Distinct ids in text order, those of `extra` included, and the (E,) row number of each entry of `column`."""
    encoded = pc.dictionary_encode(column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column)
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks()
    ids = encoded.dictionary
    if extra is not None:
        ids = pc.unique(pa.concat_arrays([ids.cast(pa.string()), *[chunk.cast(pa.string()) for chunk in extra.chunks]]))
    order = pc.array_sort_indices(ids).to_numpy()
    rank = np.empty(len(order), dtype=np.int32)
    rank[order] = np.arange(len(order), dtype=np.int32)
    return np.asarray(ids.take(pa.array(order)).to_pandas(), dtype=object), rank[encoded.indices.to_numpy()]


def _bools(column: pa.ChunkedArray) -> BoolArray:
    return np.asarray(pc.fill_null(column, False).to_numpy(), dtype=bool)


def _within_user(user_idx: IntArray) -> LongArray:
    """(E,) int64: 0, 1, 2, ... within each user of the sorted `user_idx`."""
    rows = np.arange(len(user_idx), dtype=np.int64)
    first = np.concatenate([[True], user_idx[1:] != user_idx[:-1]]) if len(user_idx) else np.empty(0, dtype=bool)
    return rows - np.maximum.accumulate(np.where(first, rows, 0))


def _strictly_increasing(user_idx: IntArray, raw_us: LongArray, known: BoolArray, place: LongArray) -> LongArray:
    """Times raised to the predecessor's within the user, unknown ones taken from the neighbours, plus the place in microseconds."""
    distinct, code = np.unique(raw_us, return_inverse=True)
    # One running maximum over all users: the user's number is the high digit, the rank of the time the low one.
    base = user_idx.astype(np.int64) * (len(distinct) + 1)
    level = np.maximum.accumulate(base + np.where(known, code + 1, 0)) - base
    rows = np.arange(len(user_idx), dtype=np.int64)
    # Entries before the user's first known time take that time: the next known row, where it is the same user's.
    following = np.minimum.accumulate(np.where(known, rows, len(rows))[::-1])[::-1]
    usable = np.minimum(following, len(rows) - 1)
    own = (following < len(rows)) & (user_idx[usable] == user_idx)
    time_us = distinct[np.where(level > 0, level - 1, np.where(own, code[usable], 0))]
    return np.asarray(time_us + place, dtype=np.int64)
