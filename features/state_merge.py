"""Merging states: the state of some events and the state of others make the state of all, whatever the order.

This is the stream's side of `features.aggregates`: the worker reads the online states of the users in a batch, merges them with the
states of the batch's events, and pushes the result. It equals the state that `features.aggregates` computes from all events at
once: counts and tiles add, recent items are the newest of both by (time, item), tastes follow from them. Only means are rounded.

States are columns in the forms of `features.columns`; row r of one belongs to the same entity as row r of the other.

Legend: `R` entities, `W` tiles.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from feature_repo.request_columns import DAY_US, HOUR_US
from feature_repo.specs import ITEM_ACTIVITY_SPECS, RECENT_ITEMS, USER_ACTIVITY_SPECS
from features.activity_log import LongArray, activity_log
from features.aggregates import ItemCategories, ItemStates, UserStates, state_schema, top_categories
from features.columns import FeatureColumns, table_columns

IdArray = npt.NDArray[np.object_]
Floats = npt.NDArray[np.float64]
Tiles = npt.NDArray[np.int32]


def batch_user_states(events: pa.Table, categories: ItemCategories, *, has_times: bool = True) -> tuple[IdArray, FeatureColumns]:
    """Users of a batch of events and the states of these events alone, one row a user."""
    states = UserStates(activity_log(events, "user", has_times=has_times), categories)
    return states.log.ids, _columns(states)


def batch_item_states(events: pa.Table, *, has_times: bool = True) -> tuple[IdArray, FeatureColumns]:
    """Items of a batch of events and the states of these events alone, one row an item."""
    states = ItemStates(activity_log(events, "item", has_times=has_times))
    return states.log.ids, _columns(states)


def merge_user_states(left: FeatureColumns, right: FeatureColumns, categories: ItemCategories) -> FeatureColumns:
    """States of users after the events of both sides, which must have no event in common.

    Args:
        left, right: columns of `user_activity`, (R,) each; rows of nobody (no events) are neutral.
        categories: item_id -> categories, for the tastes.
    """
    last = np.fmax(left["user_last_event_us"], right["user_last_event_us"])
    merged = _merged_values(left, right, "user")
    merged["user_last_event_us"] = last
    for name, tile_us in (("user_day_tiles", DAY_US), ("user_hour_tiles", HOUR_US)):
        merged[name] = _aligned(left[name], left["user_last_event_us"], last, tile_us) + _aligned(
            right[name], right["user_last_event_us"], last, tile_us
        )
    rows = len(last)
    lists: dict[str, Any] = {
        name: np.empty(rows, dtype=np.object_)
        for name in ("recent_items", "recent_ages_us", "user_categories", "user_category_weights")
    }
    distinct = np.zeros(rows, dtype=np.int64)
    for row in range(rows):
        items, ages = _newest(left, right, row)
        names, weights = top_categories(items.tolist(), categories)
        lists["recent_items"][row], lists["recent_ages_us"][row] = items, ages
        lists["user_categories"][row] = np.array(names, dtype=np.object_)
        lists["user_category_weights"][row] = np.array(weights, dtype=np.float32)
        distinct[row] = len(set(items))
    merged.update(lists)
    merged["recent_distinct_items"] = distinct
    return {spec.name: merged[spec.name] for spec in USER_ACTIVITY_SPECS}


def merge_item_states(left: FeatureColumns, right: FeatureColumns) -> FeatureColumns:
    """States of items after the events of both sides; see `merge_user_states`."""
    last = np.fmax(left["item_last_event_us"], right["item_last_event_us"])
    merged = _merged_values(left, right, "item")
    merged["item_last_event_us"] = last
    merged["item_first_event_us"] = np.fmin(left["item_first_event_us"], right["item_first_event_us"])
    merged["item_day_tiles"] = _aligned(left["item_day_tiles"], left["item_last_event_us"], last, DAY_US) + _aligned(
        right["item_day_tiles"], right["item_last_event_us"], last, DAY_US
    )
    return {spec.name: merged[spec.name] for spec in ITEM_ACTIVITY_SPECS}


def _columns(states: UserStates | ItemStates) -> FeatureColumns:
    log = states.log
    specs = USER_ACTIVITY_SPECS if isinstance(states, UserStates) else ITEM_ACTIVITY_SPECS
    blocks = list(states.after(np.arange(len(log.ids)), log.indptr[1:]))
    whole = pa.concat_tables(blocks) if blocks else state_schema("user" if isinstance(states, UserStates) else "item").empty_table()
    return table_columns(whole, specs)


def _merged_values(left: FeatureColumns, right: FeatureColumns, side: str) -> FeatureColumns:
    count = left[f"{side}_value_count"] + right[f"{side}_value_count"]
    total = _total(left, side) + _total(right, side)
    return {
        f"{side}_events": left[f"{side}_events"] + right[f"{side}_events"],
        f"{side}_value_count": count,
        f"{side}_value_mean": np.where(count > 0, total / np.maximum(count, 1), np.nan),
    }


def _total(state: FeatureColumns, side: str) -> Floats:
    return np.where(state[f"{side}_value_count"] > 0, state[f"{side}_value_mean"] * state[f"{side}_value_count"], 0.0)


def _aligned(tiles: Tiles, own_last: Floats, last: Floats, tile_us: int) -> Tiles:
    """Tiles (R, W) counted back from `last` instead of `own_last`, which is not later; what leaves the width is dropped."""
    rows, width = tiles.shape
    known = ~np.isnan(own_last)
    shift: LongArray = np.zeros(rows, dtype=np.int64)
    shift[known] = last[known].astype(np.int64) // tile_us - own_last[known].astype(np.int64) // tile_us
    source = np.arange(width) - shift[:, None]
    moved = np.take_along_axis(tiles, np.clip(source, 0, width - 1), axis=1)
    return np.where((source >= 0) & known[:, None], moved, 0).astype(np.int32)


def _newest(left: FeatureColumns, right: FeatureColumns, row: int) -> tuple[IdArray, LongArray]:
    """Items and ages of the newest events of both sides, oldest first."""
    items = np.concatenate([left["recent_items"][row], right["recent_items"][row]])
    parts = []
    last = np.fmax(left["user_last_event_us"][row], right["user_last_event_us"][row])
    for side in (left, right):
        ages = side["recent_ages_us"][row]
        own = side["user_last_event_us"][row]
        # Without times the right side is the later one: its ages stand, and the left's events come before them.
        parts.append(ages + (0 if np.isnan(own) else int(last) - int(own)))
    if np.isnan(last) and len(parts[0]) and len(parts[1]):
        parts[0] = parts[0] + int(parts[1].max()) + 1
    ages = np.concatenate(parts)
    order = np.lexsort((items.astype(str), -ages))[-RECENT_ITEMS:]
    return items[order], ages[order]
