"""The state of a user or an item after its last event: the one definition behind batch tables, training sets and live pushes.

A state is a row of the view `user_activity` or `item_activity`. Item states of parts merge into the state of the whole
(`features.state_merge`), in any order, so events that come one by one give the values that the batch gives.

Legend: `A` asked states, `E` events, `W` tiles.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import scipy.sparse as sp

from feature_repo.request_columns import DAY_US, HOUR_US, SECOND_US, category_parts
from feature_repo.specs import (
    CATEGORY_BYTES,
    DAY_TILES,
    HOUR_TILES,
    ITEM_ACTIVITY_SPECS,
    RECENT_ID_BYTES,
    RECENT_ITEMS,
    TOP_CATEGORIES,
    USER_ACTIVITY_SPECS,
    category_attribute,
)
from features.activity_log import ActivityLog, IntArray, LongArray
from features.columns import arrow_type

STATES_PER_BLOCK = 50_000
"""Rows computed at once: about 200 MB of working memory for full users."""

Side = Literal["user", "item"]

ItemCategories = Mapping[str, Sequence[str]]
"""item_id -> its categories, paths already split into parts."""


def categories_of(items: pa.Table | None) -> dict[str, list[str]]:
    """Categories of each item out of the catalogue's table: `categories`, or else `tags`, paths split into parts."""
    name = category_attribute(items.column_names) if items is not None else None
    if items is None or name is None:
        return {}
    lists = zip(items.column("item_id").to_pylist(), items.column(name).to_pylist(), strict=True)
    return {item: category_parts(categories or []) for item, categories in lists}


class UserStates:
    """States of users: rows of `user_activity`.

    Args:
        log: the users' activity.
        categories: item_id -> categories; items that are not in it have none.
    """

    def __init__(self, log: ActivityLog, categories: ItemCategories) -> None:
        self.log = log
        self._days, self._hours = _TileRuns(log, DAY_US), _TileRuns(log, HOUR_US)
        vocabulary, self._of_item = _category_matrix(log.other_ids, categories)
        self._category_names = pa.array(vocabulary, type=pa.string())
        self._item_names = pa.array(log.other_ids, type=pa.string())
        self._category_bytes = pc.binary_length(self._category_names).to_numpy().astype(np.int64)
        self._item_bytes = id_bytes(self._item_names)

    def after(self, rows: LongArray, stops: LongArray) -> Iterator[pa.Table]:
        """States after the events before `stops`, as blocks of `user_id` and the features of `user_activity`.

        Args:
            rows: (A,) rows of users.
            stops: (A,) event numbers; state a is that of the events `indptr[rows[a]]:stops[a]`, at least one.
        """
        for start in range(0, len(rows), STATES_PER_BLOCK):
            yield self._block(rows[start : start + STATES_PER_BLOCK], stops[start : start + STATES_PER_BLOCK])

    def _block(self, rows: LongArray, stops: LongArray) -> pa.Table:
        log = self.log
        starts, last = log.indptr[rows], log.time_us[stops - 1]
        value_count, value_mean = _values(log, starts, stops)
        recent, length = self._recent(starts, stops)
        offsets = np.concatenate([[0], np.cumsum(length)])
        owner = np.repeat(np.arange(len(rows)), length)
        items = log.other[recent]
        ages_s = (last // SECOND_US)[owner] - log.time_us[recent] // SECOND_US
        taste_offsets, taste, weight = _top_categories(self._of_item, items, length, self._category_bytes)
        arrays = {
            "user_events": pa.array(stops - starts),
            "user_value_count": pa.array(value_count),
            "user_value_mean": pa.array(value_mean, from_pandas=True),
            "user_last_event_us": _times(last, log.has_times),
            "user_day_tiles": _tile_lists(self._days.counts(rows, stops, DAY_TILES), log.has_times),
            "user_hour_tiles": _tile_lists(self._hours.counts(rows, stops, HOUR_TILES), log.has_times),
            "recent_items": _lists(offsets, self._item_names.take(pa.array(items))),
            "recent_ages_s": _lists(offsets, pa.array(ages_s)),
            "recent_actions": _letters(offsets, log.action[recent]),
            "recent_distinct_items": pa.array(_distinct(owner, items, len(rows))),
            "user_categories": _lists(taste_offsets, self._category_names.take(pa.array(taste))),
            "user_category_weights": _lists(taste_offsets, pa.array(weight)),
        }
        return _state_table("user", log.ids[rows], arrays)

    def _recent(self, starts: LongArray, stops: LongArray) -> tuple[LongArray, LongArray]:
        """Event numbers of the recent items of each state, oldest first, and how many each has: (sum of these,), (A,)."""
        length = np.minimum(stops - starts, RECENT_ITEMS)
        offsets = np.concatenate([[0], np.cumsum(length)])
        recent = np.repeat(stops - length - offsets[:-1], length) + np.arange(offsets[-1])
        owner = np.repeat(np.arange(len(stops)), length)
        before = np.concatenate([[0], np.cumsum(self._item_bytes[self.log.other[recent]])])
        fits = before[offsets[1:]][owner] - before[:-1] <= RECENT_ID_BYTES
        fits[offsets[1:] - 1] = True
        return recent[fits], np.bincount(owner[fits], minlength=len(stops))


class ItemStates:
    """States of items: rows of `item_activity`; `log` is the items' activity."""

    def __init__(self, log: ActivityLog) -> None:
        self.log = log
        self._days = _TileRuns(log, DAY_US)

    def after(self, rows: LongArray, stops: LongArray) -> Iterator[pa.Table]:
        """States after the events before `stops`: as `UserStates.after`, for `item_activity`."""
        for start in range(0, len(rows), STATES_PER_BLOCK):
            yield self._block(rows[start : start + STATES_PER_BLOCK], stops[start : start + STATES_PER_BLOCK])

    def _block(self, rows: LongArray, stops: LongArray) -> pa.Table:
        log = self.log
        starts = log.indptr[rows]
        value_count, value_mean = _values(log, starts, stops)
        arrays = {
            "item_events": pa.array(stops - starts),
            "item_value_count": pa.array(value_count),
            "item_value_mean": pa.array(value_mean, from_pandas=True),
            "item_first_event_us": _times(log.time_us[starts], log.has_times),
            "item_last_event_us": _times(log.time_us[stops - 1], log.has_times),
            "item_day_tiles": _tile_lists(self._days.counts(rows, stops, DAY_TILES), log.has_times),
        }
        return _state_table("item", log.ids[rows], arrays)


def id_bytes(ids: pa.Array) -> LongArray:
    """What each id takes of `RECENT_ID_BYTES`."""
    size = pc.binary_length(ids).to_numpy().astype(np.int64)
    hexadecimal = pc.match_substring_regex(ids, "^[0-9a-fA-F-]+$").to_numpy(zero_copy_only=False)
    return np.where(hexadecimal, -(-5 * size // 8), size)


def _letters(offsets: LongArray, codes: npt.NDArray[np.uint8]) -> pa.Array:
    """The codes of each list as one text, a digit each."""
    text = pa.py_buffer((codes + ord("0")).astype(np.uint8).tobytes())
    return pa.StringArray.from_buffers(len(offsets) - 1, pa.py_buffer(offsets.astype(np.int32).tobytes()), text)


def state_schema(side: Side) -> pa.Schema:
    """Columns of a state table: the id, then the features of the side's activity view."""
    specs = USER_ACTIVITY_SPECS if side == "user" else ITEM_ACTIVITY_SPECS
    return pa.schema([(f"{side}_id", pa.string()), *((spec.name, arrow_type(spec)) for spec in specs)])


def _state_table(side: Side, ids: npt.NDArray[np.object_], arrays: Mapping[str, pa.Array]) -> pa.Table:
    schema = state_schema(side)
    return pa.table([pa.array(ids, type=pa.string()), *(arrays[name] for name in schema.names[1:])], schema=schema)


class _TileRuns:
    """Runs of consecutive events of one entity in one tile: tiles of any state are read off a few runs back from its end."""

    def __init__(self, log: ActivityLog, tile_us: int) -> None:
        tile = log.time_us // tile_us
        new = np.ones(len(log), dtype=np.bool_)
        new[1:] = (log.entity[1:] != log.entity[:-1]) | (tile[1:] != tile[:-1])
        self._start = np.flatnonzero(new)
        self._length = np.diff(np.append(self._start, len(log)))
        self._tile = tile[self._start]
        self._run = np.cumsum(new) - 1
        self._log = log

    def counts(self, rows: LongArray, stops: LongArray, width: int) -> npt.NDArray[np.int32]:
        """(A, width) int32: events in each of the last tiles, [:, 0] the tile of the state's last event."""
        tiles = np.zeros((len(rows), width), dtype=np.int32)
        run = self._run[stops - 1]
        anchor = self._tile[run]
        tiles[:, 0] = stops - self._start[run]
        oldest = self._run[self._log.indptr[rows]]
        live = np.flatnonzero(run > oldest)
        while len(live):
            run[live] -= 1
            back = anchor[live] - self._tile[run[live]]
            near = back < width
            live, back = live[near], back[near]
            tiles[live, back] = self._length[run[live]]
            live = live[run[live] > oldest[live]]
        return tiles


def _values(log: ActivityLog, starts: LongArray, stops: LongArray) -> tuple[LongArray, npt.NDArray[np.float64]]:
    """Count and mean of the values in `starts:stops`, every range summed by itself so that no other user's values round it."""
    known = ~np.isnan(log.value)
    before = np.concatenate([[0], np.cumsum(known)])
    count = (before[stops] - before[starts]).astype(np.int64)
    if not known.any():
        return count, np.full(len(starts), np.nan)
    edges = np.stack([starts, stops], axis=1).ravel()
    padded = np.append(np.where(known, log.value, 0.0), 0.0)  # reduceat needs the end of the last range to exist
    total = np.add.reduceat(padded, edges)[::2]
    return count, np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _category_matrix(items: npt.NDArray[np.object_], categories: ItemCategories) -> tuple[list[str], sp.csr_matrix]:
    """Sorted category names and a 0/1 matrix (items, categories)."""
    lists = [categories.get(item, ()) for item in items]
    vocabulary = sorted({name for names in lists for name in names})
    number = {name: column for column, name in enumerate(vocabulary)}
    indptr = np.concatenate([[0], np.cumsum([len(names) for names in lists])]).astype(np.int64)
    indices = np.array([number[name] for names in lists for name in names], dtype=np.int32)
    ones = np.ones(len(indices), dtype=np.int32)
    return vocabulary, sp.csr_matrix((ones, indices, indptr), shape=(len(items), max(len(vocabulary), 1)))


def _top_categories(
    of_item: sp.csr_matrix, items: IntArray, length: LongArray, name_bytes: LongArray
) -> tuple[LongArray, LongArray, npt.NDArray[np.float32]]:
    """List offsets, category numbers and shares of the strongest categories of each list of recent items, as many as fit.

    Equal shares are ordered by name.
    """
    indptr = np.concatenate([[0], np.cumsum(length)])
    lists = sp.csr_matrix((np.ones(len(items), np.int32), items, indptr), shape=(len(length), of_item.shape[0]))
    counts = (lists @ of_item).tocsr()
    counts.sum_duplicates()
    owner = np.repeat(np.arange(len(length)), np.diff(counts.indptr))
    order = np.lexsort((counts.indices, -counts.data, owner))  # names are sorted, so is their number
    place = np.arange(len(order)) - np.repeat(counts.indptr[:-1], np.diff(counts.indptr))
    first = np.concatenate([[0], np.cumsum(name_bytes[counts.indices[order]])])
    taken = first[1:] - first[counts.indptr[:-1]][owner]
    best = order[(place < TOP_CATEGORIES) & ((taken <= CATEGORY_BYTES) | (place == 0))]
    kept = np.bincount(owner[best], minlength=len(length))
    weight = (counts.data[best] / length[owner[best]]).astype(np.float32)
    return np.concatenate([[0], np.cumsum(kept)]), counts.indices[best].astype(np.int64), weight


def _distinct(owner: LongArray, items: IntArray, rows: int) -> LongArray:
    """(rows,) int64: distinct items of each owner's list."""
    if not len(items):
        return np.zeros(rows, dtype=np.int64)
    key = np.sort(owner * (int(items.max()) + 1) + items)
    first = np.append(True, key[1:] != key[:-1])
    return np.bincount(key[first] // (int(items.max()) + 1), minlength=rows).astype(np.int64)


def _lists(offsets: LongArray, values: pa.Array) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array(offsets, type=pa.int32()), values)


def _times(time_us: LongArray, known: bool) -> pa.Array:
    return pa.array(time_us) if known else pa.nulls(len(time_us), pa.int64())


def _tile_lists(tiles: npt.NDArray[np.int32], known: bool) -> pa.Array:
    if not known:
        return pa.nulls(len(tiles), pa.list_(pa.int32()))
    return _lists(np.arange(len(tiles) + 1) * tiles.shape[1], pa.array(tiles.ravel()))
