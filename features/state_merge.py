"""Merging item states: the state of some events and the state of others make the state of all, whatever the order.

The worker keeps the states of all items and merges each batch's into them (`features.item_totals`). The result equals what
`features.aggregates` computes from all events at once: counts and tiles add. Only means are rounded. States of users are not
merged but computed anew from whole histories (`features.live_features`).

States are columns in the forms of `features.columns`; row r of one belongs to the same entity as row r of the other.

Legend: `R` entities, `W` tiles.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from feature_repo.request_columns import DAY_US
from feature_repo.specs import ITEM_ACTIVITY_SPECS
from features.activity_log import LongArray, activity_log
from features.aggregates import ItemStates, state_schema
from features.columns import FeatureColumns, table_columns

IdArray = npt.NDArray[np.object_]
Floats = npt.NDArray[np.float64]
Tiles = npt.NDArray[np.int32]


def batch_item_states(events: pa.Table, *, has_times: bool = True) -> tuple[IdArray, FeatureColumns]:
    """Items of a batch of events and the states of these events alone, one row an item."""
    states = ItemStates(activity_log(events, "item", has_times=has_times))
    return states.log.ids, _columns(states)


def merge_item_states(left: FeatureColumns, right: FeatureColumns) -> FeatureColumns:
    """States of items after the events of both sides, which must have no event in common.

    Args:
        left, right: columns of `item_activity`, (R,) each; rows of nothing (no events) are neutral.
    """
    last = np.fmax(left["item_last_event_us"], right["item_last_event_us"])
    count = left["item_value_count"] + right["item_value_count"]
    merged = {
        "item_events": left["item_events"] + right["item_events"],
        "item_value_count": count,
        "item_value_mean": np.where(count > 0, (_total(left) + _total(right)) / np.maximum(count, 1), np.nan),
        "item_first_event_us": np.fmin(left["item_first_event_us"], right["item_first_event_us"]),
        "item_last_event_us": last,
        "item_day_tiles": _aligned(left, last) + _aligned(right, last),
    }
    return {spec.name: merged[spec.name] for spec in ITEM_ACTIVITY_SPECS}


def _columns(states: ItemStates) -> FeatureColumns:
    log = states.log
    blocks = list(states.after(np.arange(len(log.ids)), log.indptr[1:]))
    return table_columns(pa.concat_tables(blocks) if blocks else state_schema("item").empty_table(), ITEM_ACTIVITY_SPECS)


def _total(state: FeatureColumns) -> Floats:
    return np.where(state["item_value_count"] > 0, state["item_value_mean"] * state["item_value_count"], 0.0)


def _aligned(state: FeatureColumns, last: Floats) -> Tiles:
    """Tiles (R, W) counted back from `last` instead of the state's own last event, which is not later."""
    tiles, own_last = state["item_day_tiles"], state["item_last_event_us"]
    rows, width = tiles.shape
    known = ~np.isnan(own_last)
    shift: LongArray = np.zeros(rows, dtype=np.int64)
    shift[known] = last[known].astype(np.int64) // DAY_US - own_last[known].astype(np.int64) // DAY_US
    source = np.arange(width) - shift[:, None]
    moved = np.take_along_axis(tiles, np.clip(source, 0, width - 1), axis=1)
    return np.where((source >= 0) & known[:, None], moved, 0).astype(np.int32)
