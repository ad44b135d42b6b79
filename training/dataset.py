"""From activity to `Interactions`: the one place that turns the store's rows, or a table in memory, into training data.

Reading Parquet is `features.activity_store`'s work, ordering a file's history is the importers'; what is held out is decided by
`training.splits`.

Legend: `E` interactions, `U` users, `N` items.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from features.activity_store import ActivityStore
from features.catalogue import Catalogue
from features.control_store import ControlStore
from features.events import NEGATIVE_ACTIONS, POSITIVE_ACTIONS, action_codes
from features.histories import FileTraits, order_and_times
from features.paths import DatasetPaths
from training.errors import NotTrainableError
from training.interactions import BoolArray, IdArray, IntArray, Interactions, LongArray
from training.models.base import TrainingData
from training.rejections import Rejections

COLUMNS = ["user_id", "item_id", "action", "value", "timestamp", "timestamp_imputed", "split", "flag"]
"""Columns of the activity store that training reads."""

MISSING = np.iinfo(np.int64).max
"""How `features.histories` writes an absent time or position."""


def load_training_data(
    paths: DatasetPaths,
    control_url: str,
    as_of: datetime | None = None,
    extra_actions: frozenset[str] = frozenset(),
) -> TrainingData:
    """All positive activity of a dataset up to `as_of`, with the catalogue's items and both sides' attributes.

    Rows with a flag (unknown action or item) and rows of anonymous sessions are not trained on, nor are rejections, which are kept
    so that lists leave them out. Items of the catalogue without activity get row numbers too, so that content models can recommend
    them.

    Args:
        paths: the dataset.
        control_url: SQL URL of the control store, where the catalogue lives.
        as_of: events later than this are not read; None reads all.
        extra_actions: actions counted as interest besides `POSITIVE_ACTIONS`.

    Raises:
        NotTrainableError: the dataset has no positive activity.
    """
    wanted = POSITIVE_ACTIONS | extra_actions
    table = ActivityStore.of(paths).read(columns=COLUMNS, as_of=as_of, actions=wanted | NEGATIVE_ACTIONS)
    table = table.filter(pc.and_(pc.is_null(table["flag"]), pc.is_valid(table["user_id"])))
    negative = table.filter(pc.is_in(table["action"], value_set=pa.array(sorted(NEGATIVE_ACTIONS))))
    table = table.filter(pc.is_in(table["action"], value_set=pa.array(sorted(wanted))))
    if table.num_rows == 0:
        raise NotTrainableError(
            f"dataset {paths.dataset!r} has no activity with an action of interest ({', '.join(sorted(POSITIVE_ACTIONS))}): "
            "import data or log events first"
        )
    control = ControlStore(control_url)
    catalogue = Catalogue(control, paths.dataset)
    items, users = catalogue.items(), catalogue.users()
    control.close()
    interactions = interactions_from_events(table, catalogue_items=items["item_id"])
    return TrainingData(
        interactions=interactions,
        item_attributes=_aligned_attributes(items, "item_id", interactions.item_ids),
        user_attributes=_aligned_attributes(users, "user_id", interactions.user_ids),
        rejected=_rejections(negative, interactions),
    )


def interactions_from_events(table: pa.Table, catalogue_items: pa.ChunkedArray | None = None) -> Interactions:
    """Rows of the activity store as `Interactions`, sorted by user and event time.

    Args:
        table: `user_id`, `item_id`, `timestamp` (microseconds, UTC), `timestamp_imputed`, `value`, `split`, and where known
            `action`. Where every time is imputed the dataset has none, and times become the order 0, 1, 2, ... within the user.
        catalogue_items: ids of the catalogue; ids of the activity are added to them.
    """
    user_ids, user_idx = _codes(table["user_id"])
    item_ids, item_idx = _codes(table["item_id"], catalogue_items)
    time_us = table["timestamp"].cast(pa.int64()).to_numpy()
    known = ~_bools(table["timestamp_imputed"])
    order = np.lexsort((time_us, user_idx))
    user_idx, time_us, known = user_idx[order], time_us[order], known[order]
    return Interactions(
        user_ids=user_ids,
        item_ids=item_ids,
        user_idx=user_idx,
        item_idx=item_idx[order],
        time_us=_strictly_increasing(user_idx, time_us) if known.any() else _within_user(user_idx),
        time_known=known,
        value=table["value"].to_numpy().astype(np.float32)[order],
        split=np.asarray(table["split"].to_pandas(), dtype=object)[order],
        action=action_codes(table["action"])[order] if "action" in table.column_names else np.zeros(len(order), dtype=np.uint8),
    )


def from_frame(frame: pd.DataFrame, item_ids: IdArray | None = None) -> Interactions:
    """Interactions of a frame in the exchange form (DESIGN 4.4), without a store: for tests, notebooks and folders.

    The order is that of `position` where given, else time, else file order. Times are made strictly increasing within a user as
    imports do: raised to the predecessor's, plus the history position in microseconds. A null time takes the neighbour's and
    counts as not known; without any time the order 0, 1, 2, ... stands in.

    Args:
        frame: `user_id`, `item_id`, and optionally `position`, `timestamp`, `timestamp_imputed`, `action`, `value`, `split`.
        item_ids: further items of the catalogue.

    Raises:
        NotTrainableError: the frame is empty.
    """
    if frame.empty:
        raise NotTrainableError("the table of interactions is empty: give at least one row of user_id and item_id")
    extra = None if item_ids is None else pa.chunked_array([pa.array([str(item) for item in item_ids], pa.string())])
    user_ids, user_idx = _codes(_text_column(frame["user_id"]))
    item_codes, item_idx = _codes(_text_column(frame["item_id"]), extra)
    raw_us = np.full(len(frame), MISSING, dtype=np.int64)
    if "timestamp" in frame:
        given = frame["timestamp"].notna().to_numpy()
        stamps = pd.to_datetime(frame["timestamp"], utc=True).astype("datetime64[us, UTC]").astype("int64")
        raw_us[given] = np.asarray(stamps, dtype=np.int64)[given]
    known = raw_us != MISSING
    position = frame["position"].to_numpy(dtype=np.int64) if "position" in frame else np.full(len(frame), MISSING, dtype=np.int64)
    traits = FileTraits(int(raw_us.min()) if known.any() else None, "position" in frame)
    order, time_us, _ = order_and_times(user_idx, raw_us, position, traits)
    user_idx, known = user_idx[order], known[order]
    if not known.any():
        time_us = _within_user(user_idx)
    if "timestamp_imputed" in frame:
        known = known & ~frame["timestamp_imputed"].fillna(False).to_numpy(dtype=bool)[order]
    missing = np.full(len(frame), np.nan, dtype=np.float32)
    split = np.full(len(frame), None, dtype=object)
    if "split" in frame:
        given = frame["split"].notna().to_numpy()
        split[given] = frame["split"].to_numpy()[given]
    action = np.zeros(len(frame), dtype=np.uint8)
    if "action" in frame:
        action = action_codes(_text_column(frame["action"]))
    return Interactions(
        user_ids=user_ids,
        item_ids=item_codes,
        user_idx=user_idx,
        item_idx=item_idx[order],
        time_us=time_us,
        time_known=known,
        value=(frame["value"].to_numpy(dtype=np.float32) if "value" in frame else missing)[order],
        split=split[order],
        action=action[order],
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


def _rejections(negative: pa.Table, interactions: Interactions) -> Rejections | None:
    """What users of the interactions have rejected of their items; None for nothing."""
    user, item = (
        pc.fill_null(pc.index_in(negative[name], value_set=pa.array(ids, pa.string())), -1).to_numpy().astype(np.int32)
        for name, ids in (("user_id", interactions.user_ids), ("item_id", interactions.item_ids))
    )
    known = (user >= 0) & (item >= 0)
    if not known.any():
        return None
    return Rejections.of(user[known], item[known], interactions.num_users, interactions.num_items)


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


def _strictly_increasing(user_idx: IntArray, time_us: LongArray) -> LongArray:
    """The least strictly increasing times within each user that are not earlier: live events may share a microsecond."""
    tied = (user_idx[1:] == user_idx[:-1]) & (time_us[1:] <= time_us[:-1])
    if not tied.any():
        return time_us
    place = _within_user(user_idx)
    distinct, rank = np.unique(time_us - place, return_inverse=True)
    # One running maximum over all users: the user's number is the high digit, the rank of the time the low one.
    high = user_idx.astype(np.int64) * len(distinct)
    return np.asarray(distinct[np.maximum.accumulate(high + rank) - high] + place, dtype=np.int64)


def _aligned_attributes(table: pa.Table, key: str, ids: IdArray) -> dict[str, npt.NDArray[np.generic]]:
    """Attribute columns in the order of `ids`; ids without a row get null (None, NaN or NaT)."""
    positions = pc.index_in(pa.array(ids, pa.string()), value_set=table[key].combine_chunks().cast(pa.string()))
    return {name: _column(table[name].take(positions)) for name in table.column_names if name != key}


def _column(column: pa.ChunkedArray) -> npt.NDArray[np.generic]:
    """Numbers as int64, or float64 with NaN for null; times as datetime64[us]; text, bools and lists as objects with None."""
    kind = column.type
    if pa.types.is_timestamp(kind):
        return np.asarray(column.cast(pa.timestamp("us")).to_numpy(), dtype="datetime64[us]")
    if pa.types.is_integer(kind) and column.null_count == 0:
        return np.asarray(column.to_numpy(), dtype=np.int64)
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return np.asarray(column.to_numpy(), dtype=np.float64)
    values = np.empty(len(column), dtype=object)
    values[:] = column.to_pylist()
    return values
