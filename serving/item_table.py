"""ItemTable: the catalogue side of one version as columns: ids, attributes, availability, popularity order.

The gateway holds one a live version, to turn cached row numbers into answers, to mask them, and to answer popular items from memory
when all else fails. Where there is no version yet, it is built from the catalogue and the activity store.

Availability changes in place and is no part of the masks of selections, so that a delisted item costs nobody such a mask; what it
and a selection leave together is kept until the next change. Everything else is fixed: `with_items` gives a new table, in which
items that the version was not trained on have the rows after its own. A table is freed with its last reference.

Legend: `N` items, `n` rows of a list.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from serving.caps import with_values
from serving.column_edits import edited_columns
from serving.columns import BoolColumn, Column, IdColumn, ListColumn, NumberColumn, column_from_arrow, words_equal
from serving.errors import FilterError
from serving.filter_masks import EVERYWHERE, PATHS
from serving.filters import compile_filter
from serving.id_rows import Hashes, IdRows, id_hashes
from serving.schemas import Selection
from serving.weak_methods import not_holding
from training.arrays import map_arrays
from training.bundle import ITEMS_FILE, POPULARITY_FILE
from training.interactions import BoolArray, IntArray

_log = logging.getLogger("shortlist.serving")
CACHED_SELECTIONS, CACHED_EXPRESSIONS, CACHED_MASKS = 64, 256, 16
"""Masks kept, least recently used first out; rules hold some of those of expressions. A mask of 1M items is 1 MB."""


class ItemTable:
    """Items of one vocabulary.

    Args:
        item_ids: (N,) str.
        columns: attribute name -> column of N items.
        by_popularity: (N,) int32 every row, most popular first.
        num_trained: rows that the version was trained on; the others came later. All where not given.
        row_of: of the ids, where it is there already.
    """

    def __init__(
        self,
        item_ids: npt.NDArray[np.object_],
        columns: Mapping[str, Column],
        by_popularity: IntArray,
        num_trained: int | None = None,
        row_of: IdRows | None = None,
    ) -> None:
        self.item_ids = item_ids
        self.columns = dict(columns)
        self.by_popularity = by_popularity
        self.num_trained = len(item_ids) if num_trained is None else num_trained
        self.popularity_rank: IntArray = np.empty(len(item_ids), dtype=np.int32)
        self.popularity_rank[by_popularity] = np.arange(len(item_ids), dtype=np.int32)
        self._row_of = IdRows(item_ids) if row_of is None else row_of
        available = self.columns.get("available")
        self.available: BoolArray = (
            available.values | available.missing if isinstance(available, BoolColumn) else np.ones(len(item_ids), dtype=bool)
        )
        self.columns["available"] = BoolColumn(self.available, np.zeros(len(item_ids), dtype=bool))
        self.columns["item_id"] = IdColumn(item_ids, self._row_of)
        self._changes = 0
        """Of availability so far: what was computed while one was under way is found by nobody after it."""
        self.relisted_us = -math.inf
        """When an item has last become available again, microseconds since 1970: lists from before may lack it."""
        self._masked = lru_cache(maxsize=CACHED_MASKS)(not_holding(self._mask))
        self._selected = lru_cache(maxsize=CACHED_SELECTIONS)(not_holding(self._select))
        self._expressed = lru_cache(maxsize=CACHED_EXPRESSIONS)(not_holding(self._express))

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
            if isinstance(column, ListColumn):
                _ = column.items_by_word  # takes 0.3 s at a million items: not in the first request that filters by it
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

    def with_items(self, items: Mapping[str, Mapping[str, Any]]) -> ItemTable:
        """A table in which items have other attributes, or are new: new ones come last, also by popularity.

        Args:
            items: item_id -> all of its attributes as the catalogue has them; `available` is not looked at.
        """
        new = [item_id for item_id in items if item_id not in self._row_of]
        rows = self._row_of.find(list(items))
        rows[rows < 0] = len(self) + np.arange(len(new), dtype=np.int32)
        ids, row_of = self.item_ids, self._row_of
        if new:
            ids = np.empty(len(self) + len(new), dtype=object)
            ids[: len(self)], ids[len(self) :] = self.item_ids, new
            row_of = IdRows(ids, row_of)
        attributes = [{name: value for name, value in item.items() if name not in _OWN} for item in items.values()]
        columns = {name: column for name, column in self.columns.items() if name not in _OWN}
        order = np.concatenate([self.by_popularity, np.arange(len(self), len(ids), dtype=np.int32)]).astype(np.int32)
        table = ItemTable(ids, edited_columns(columns, rows, attributes, len(ids)), order, self.num_trained, row_of)
        table.available[: len(self)] = self.available
        table.relisted_us = self.relisted_us
        return table

    def __len__(self) -> int:
        return len(self.item_ids)

    def row(self, item_id: str) -> int:
        """Row of an item, -1 where unknown."""
        return self._row_of.get(item_id, -1)

    def rows(self, item_ids: Iterable[str]) -> IntArray:
        """Rows of the known ones among `item_ids`."""
        found = self._row_of.find(list(item_ids))
        return found[found >= 0]

    def hashes(self, rows: IntArray) -> Hashes:
        """(n,) uint32 hashes of the ids of some rows: the same in every version, which row numbers are not."""
        return id_hashes(self.item_ids.take(rows).tolist())

    def rows_of_hashes(self, hashes: Hashes) -> IntArray:
        """Rows of the items with one of the hashes; hashes of no item are left out."""
        return self._row_of.of_hashes(hashes)

    def read_as_integers(self, names: Iterable[str]) -> None:
        """Let attributes be shown as the integers that they are: training keeps integers that some item lacks as floats."""
        for name in names:
            column = self.columns.get(name)
            if isinstance(column, NumberColumn) and not column.is_time:
                self.columns[name] = replace(column, is_integer=True)

    def set_available(self, item_id: str, available: bool) -> None:
        """Apply a change of availability; unknown items are none of this table's business."""
        row = self._row_of.get(item_id)
        if row is not None and bool(self.available[row]) != available:
            self.available[row] = available
            self._changes += 1
            if available:
                self.relisted_us = time.time_ns() // 1000

    def set_all_available(self, available: BoolArray) -> None:
        """Replace the availability of all items, (N,) bool."""
        if not np.array_equal(self.available, available):
            self.available[:] = available
            self._changes += 1
            self.relisted_us = time.time_ns() // 1000

    def mask(self, selection: Selection) -> BoolArray:
        """(N,) bool of items that a request may see: available, and passing its filters. Read-only; the same until one changes.

        Raises:
            FilterError: the caller's filter does not fit the attributes' types.
        """
        return self._masked(selection, len(self), self._changes)

    def trained_mask(self, selection: Selection) -> BoolArray:
        """`mask` of the items that the version was trained on.

        Raises:
            FilterError: as `mask`.
        """
        return self._masked(selection, self.num_trained, self._changes)

    def passing(self, selection: Selection, rows: IntArray) -> BoolArray:
        """The mask of some rows, (n,) bool: does not touch the other items once a selection has been met.

        Raises:
            FilterError: as `mask`.
        """
        there = self.available.take(rows)
        return there & self._selected(selection).take(rows) if selection else there

    def matches(self, selection: Selection) -> None:
        """Check that a selection can be answered.

        Raises:
            FilterError: as `mask`.
        """
        if selection:
            self._selected(selection)

    def matching(self, expression: str) -> BoolArray:
        """(N,) bool of items for which an expression holds where they are available. Not to be written to.

        Raises:
            FilterError: the expression is wrong or does not fit the attributes' types.
        """
        return self._expressed(expression)

    def preference(self, selection: Selection, rows: IntArray) -> IntArray | None:
        """(n,) int32: place of each row in the request's chains of regions and languages, 0 the most wanted; None without a chain.

        Regions come first: an item of the first region and the second language is before one of the second region.
        """
        if len(selection.region) < 2 and len(selection.language) < 2:
            return None
        place = np.zeros(len(rows), dtype=np.int32)
        regions = [Selection(region=(word,)) for word in selection.region]
        languages = [Selection(language=(word,)) for word in selection.language]
        for chain in (regions, languages):
            place *= max(len(chain), 1)
            undecided = np.ones(len(rows), dtype=bool)
            for number, one in enumerate(chain):
                found = undecided & self._selected(one)[rows]
                place[found] += number
                undecided &= ~found
        return place

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

    def _mask(self, selection: Selection, stop: int, _: int) -> BoolArray:
        there = self.available[:stop]
        mask = there & self._selected(selection)[:stop] if selection else there.copy()
        mask.flags.writeable = False
        return mask

    def _select(self, selection: Selection) -> BoolArray:
        keep = np.ones(len(self), dtype=bool)
        for name, words in (("categories", selection.category), ("regions", selection.region), ("languages", selection.language)):
            if words:
                keep &= self._any_word(name, words)
        if selection.filter is not None:
            keep &= self.matching(selection.filter)
        for attribute, values, counting in selection.capped:
            try:
                counts = np.True_ if counting is None else self.matching(counting)
                keep &= ~(with_values(self.columns.get(attribute), values, len(self)) & counts)
            except FilterError as error:
                _log.error("the cap on %s is not applied: %s", attribute, error)
        standing = Selection(required=selection.required, barred=selection.barred)
        if standing and standing != selection:
            return keep & self._selected(standing)  # a filter that is met for the first time does not pay for each rule again
        for expressions, wanted in ((selection.required, True), (selection.barred, False)):
            for expression in expressions:
                try:
                    keep &= self.matching(expression) == wanted
                except FilterError as error:
                    # Nothing that a caller could mend: left out like a rule that does not fit (`RuleBook.fitting`).
                    _log.error("the filter %r of a placement, variant or rule is not applied: %s", expression, error)
        return keep

    def _express(self, expression: str) -> BoolArray:
        # What is not available is left out beside each expression: in it availability reads true, so that no mask depends on what
        # changes in place.
        there = BoolColumn(np.broadcast_to(True, len(self)), np.broadcast_to(False, len(self)))
        return compile_filter(expression).mask({**self.columns, "available": there}, len(self))

    def _any_word(self, name: str, words: Sequence[str]) -> BoolArray:
        column = self.columns.get(name)
        if not isinstance(column, ListColumn):
            return np.full(len(self), name in EVERYWHERE, dtype=bool)
        marked = np.logical_or.reduce([words_equal(column.words, word, paths=name in PATHS) for word in words])
        found = column.where_any(marked)
        return found | (column.sizes == 0) if name in EVERYWHERE else found


_OWN = frozenset({"item_id", "available"})
