"""ItemTable: the catalogue side of one version as columns: ids, attributes, availability, popularity order.

The gateway holds one a live version, to turn cached row numbers into answers, to mask them, and to answer popular items from memory
when all else fails. Where there is no version yet, it is built from the catalogue and the activity store.

Legend: `N` items.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from serving.columns import BoolColumn, Column, ListColumn, column_from_arrow, words_equal
from serving.filters import EVERYWHERE, PATHS, compile_filter
from serving.schemas import Selection
from training.arrays import map_arrays
from training.interactions import BoolArray, IntArray
from training.pipeline import ITEMS_FILE, POPULARITY_FILE

CACHED_MASKS = 64
"""Selections whose masks are kept, least recently used first out. A mask of 1M items is 1 MB."""


class ItemTable:
    """Items of one vocabulary. Attributes and order are fixed; availability changes in place.

    Args:
        item_ids: (N,) str.
        columns: attribute name -> column of N items.
        by_popularity: (N,) int32 every row, most popular first.
    """

    def __init__(self, item_ids: npt.NDArray[np.object_], columns: Mapping[str, Column], by_popularity: IntArray) -> None:
        self.item_ids = item_ids
        self.columns = dict(columns)
        self.by_popularity = by_popularity
        self.popularity_rank: IntArray = np.empty(len(item_ids), dtype=np.int32)
        self.popularity_rank[by_popularity] = np.arange(len(item_ids), dtype=np.int32)
        self._row_of = {item_id: row for row, item_id in enumerate(item_ids.tolist())}
        available = self.columns.get("available")
        self.available: BoolArray = (
            available.values | available.missing if isinstance(available, BoolColumn) else np.ones(len(item_ids), dtype=bool)
        )
        self.columns["available"] = BoolColumn(self.available, np.zeros(len(item_ids), dtype=bool))
        self._selected = lru_cache(maxsize=CACHED_MASKS)(self._select)

    @classmethod
    def from_bundle(cls, folder: Path) -> ItemTable:
        """The items of a version's bundle, in the order of its vocabulary."""
        by_popularity = np.array(map_arrays(folder / POPULARITY_FILE)["by_popularity"], dtype=np.int32)
        return cls.from_arrow(pq.read_table(folder / ITEMS_FILE), by_popularity)

    @classmethod
    def from_arrow(cls, table: pa.Table, by_popularity: IntArray) -> ItemTable:
        """Items as an Arrow table with `item_id` and any attributes."""
        columns = {}
        for name in table.column_names:
            column = None if name == "item_id" else column_from_arrow(table.column(name))
            if column is not None:
                columns[name] = column
        ids = np.array(table.column("item_id").to_pylist(), dtype=object)
        return cls(ids, columns, by_popularity)

    @classmethod
    def from_activity(cls, items: pa.Table, events: pa.Table) -> ItemTable:
        """Catalogue items with their number of events as popularity. Items known from activity alone are added without attributes.

        Args:
            items: `item_id` and attributes.
            events: `item_id` of each event.
        """
        counted = pc.value_counts(events.column("item_id").combine_chunks())
        counts = dict(zip(counted.field("values").to_pylist(), counted.field("counts").to_pylist(), strict=True))
        known = set(items.column("item_id").to_pylist())
        extra = pa.table({"item_id": pa.array([item for item in counts if item not in known], type=pa.string())})
        table = pa.concat_tables([items.cast(items.schema), extra], promote_options="permissive")
        popularity = np.array([counts.get(item, 0) for item in table.column("item_id").to_pylist()], dtype=np.int64)
        return cls.from_arrow(table, np.argsort(-popularity, kind="stable").astype(np.int32))

    def __len__(self) -> int:
        return len(self.item_ids)

    def row(self, item_id: str) -> int:
        """Row of an item, -1 where unknown."""
        return self._row_of.get(item_id, -1)

    def rows(self, item_ids: Sequence[str]) -> IntArray:
        """Rows of the known ones among `item_ids`."""
        known = [self._row_of[item_id] for item_id in item_ids if item_id in self._row_of]
        return np.array(known, dtype=np.int32)

    def set_available(self, item_id: str, available: bool) -> None:
        """Apply a change of availability; unknown items are none of this table's business."""
        row = self._row_of.get(item_id)
        if row is not None and bool(self.available[row]) != available:
            self.available[row] = available
            self._selected.cache_clear()

    def set_all_available(self, available: BoolArray) -> None:
        """Replace the availability of all items, (N,) bool."""
        if not np.array_equal(self.available, available):
            self.available[:] = available
            self._selected.cache_clear()

    def mask(self, selection: Selection) -> BoolArray:
        """(N,) bool of items that a request may see: available, and passing its filters. Not to be written to.

        Raises:
            FilterError: the filter does not fit the attributes' types.
        """
        return self._selected(selection) if selection else self.available

    def _select(self, selection: Selection) -> BoolArray:
        keep = self.available.copy()
        for name, words in (("categories", selection.category), ("regions", selection.region), ("languages", selection.language)):
            if words:
                keep &= self._any_word(name, words)
        if selection.filter is not None:
            keep &= compile_filter(selection.filter).mask(self.columns, len(self))
        return keep

    def _any_word(self, name: str, words: Sequence[str]) -> BoolArray:
        column = self.columns.get(name)
        if not isinstance(column, ListColumn):
            return np.full(len(self), name in EVERYWHERE, dtype=bool)
        marked = np.logical_or.reduce([words_equal(column.vocabulary, word, paths=name in PATHS) for word in words])
        found = column.where_any(marked)
        return found | (column.sizes == 0) if name in EVERYWHERE else found

    def popular(self, k: int, mask: BoolArray, exclude: IntArray | None = None) -> IntArray:
        """Rows of the k most popular items in the mask, best first; fewer where fewer pass."""
        if exclude is not None and len(exclude):
            mask = mask.copy()
            mask[exclude] = False
        # Most requests are answered by the head of the order; only narrow filters need a look at the rest.
        for stop in (8 * k, len(self)):
            order = self.by_popularity[:stop]
            found = order[mask[order]][:k]
            if len(found) == k:
                break
        return found

    def fields(self, row: int, names: Sequence[str]) -> dict[str, object]:
        """Attributes of one item for an answer; None where it lacks one."""
        return {name: self.columns[name].value(row) if name in self.columns else None for name in names}
