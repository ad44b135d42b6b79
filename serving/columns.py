"""Item attributes as columns that filters compare and answers read. Owns their forms; `item_table` owns which item has what.

Text is held as codes into distinct words, so that a comparison touches few words and then one integer array. Words are Arrow's: a
million titles take a quarter of what Python's strings would, and text functions do not hold the interpreter.

Legend: `N` items, `L` list entries of all items, `V` distinct words of a column.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from training.interactions import BoolArray, IntArray, LongArray

PATH_SEPARATOR = " > "
"""Between the parts of a category path; `A > B` matches as itself, as `A` and as `B`."""


@dataclass(frozen=True)
class NumberColumn:
    """Numbers and, as microseconds since the epoch, times.

    Shapes: values (N,) float64 or int64, missing (N,) bool.
    """

    values: npt.NDArray[Any]
    missing: BoolArray
    is_time: bool = False
    is_integer: bool = False

    def value(self, item_idx: int) -> object:
        """The attribute of one item as JSON can carry it, None where it is missing."""
        if self.missing[item_idx]:
            return None
        if self.is_time:
            return datetime.fromtimestamp(int(self.values[item_idx]) / 1e6, UTC).isoformat()
        return int(self.values[item_idx]) if self.is_integer else float(self.values[item_idx])


@dataclass(frozen=True)
class BoolColumn:
    """Shapes: values (N,) bool, missing (N,) bool."""

    values: BoolArray
    missing: BoolArray

    def value(self, item_idx: int) -> object:
        """The attribute of one item, None where it is missing."""
        return None if self.missing[item_idx] else bool(self.values[item_idx])


@dataclass(frozen=True)
class TextColumn:
    """Shapes: codes (N,) int32 into words (V,) string, -1 where missing."""

    codes: IntArray
    words: pa.Array

    def where(self, words_V: BoolArray) -> BoolArray:
        """(N,) bool: items whose word is marked in `words_V`; missing ones are not."""
        if not len(self.words):
            return np.zeros(len(self.codes), dtype=bool)
        return np.where(self.codes >= 0, words_V[self.codes], False)

    def value(self, item_idx: int) -> object:
        """The attribute of one item, None where it is missing."""
        code = self.codes[item_idx]
        return None if code < 0 else self.words[int(code)].as_py()


@dataclass(frozen=True)
class ListColumn:
    """Lists of words.

    Shapes: indptr (N + 1,) int32, codes (L,) int32 into words (V,) string, missing (N,) bool. A missing list has no words, either;
    it is another thing than one that is there and empty where its size is asked for.
    """

    indptr: IntArray
    codes: IntArray
    words: pa.Array
    missing: BoolArray

    @cached_property
    def items_by_word(self) -> tuple[LongArray, IntArray]:
        """Items of each word: (V + 1,) int64 bounds into (L,) int32 rows."""
        row = np.repeat(np.arange(len(self.indptr) - 1, dtype=np.int32), np.diff(self.indptr))
        order = np.argsort(self.codes, kind="stable")
        bounds = np.searchsorted(self.codes[order], np.arange(len(self.words) + 1))
        return bounds.astype(np.int64), row[order]

    def where_any(self, words_V: BoolArray) -> BoolArray:
        """(N,) bool: items with at least one word marked in `words_V`."""
        found = np.zeros(len(self.indptr) - 1, dtype=bool)
        bounds, rows = self.items_by_word
        for word in np.flatnonzero(words_V):
            found[rows[bounds[word] : bounds[word + 1]]] = True
        return found

    @cached_property
    def sizes(self) -> IntArray:
        """(N,) int32: words of each item."""
        return np.diff(self.indptr)

    def value(self, item_idx: int) -> object:
        """The words of one item."""
        return [self.words[code].as_py() for code in self.codes[self.indptr[item_idx] : self.indptr[item_idx + 1]].tolist()]


@dataclass(frozen=True)
class IdColumn:
    """Ids of items, each its own; found by a table and not by looking through a million of them.

    Shapes: ids (N,) str; row_of: id -> row.
    """

    ids: npt.NDArray[np.object_]
    row_of: Mapping[str, int]

    def where_any(self, ids: Iterable[str]) -> BoolArray:
        """(N,) bool: items with one of the ids."""
        found = np.zeros(len(self.ids), dtype=bool)
        found[[row for one in ids if (row := self.row_of.get(one)) is not None]] = True
        return found

    def value(self, item_idx: int) -> object:
        """The id of one item."""
        return self.ids[item_idx]


Column = NumberColumn | BoolColumn | TextColumn | ListColumn | IdColumn


def words_equal(words: pa.Array, word: str, *, paths: bool = False) -> BoolArray:
    """(V,) bool: words that are `word` or, with `paths`, category paths with `word` as the whole, a part or a run of parts."""
    if not paths:
        return np.asarray(pc.equal(words, word), dtype=bool)
    wrapped = f"{PATH_SEPARATOR}{word}{PATH_SEPARATOR}"
    return np.fromiter(
        (wrapped in f"{PATH_SEPARATOR}{known}{PATH_SEPARATOR}" for known in words.to_pylist()), dtype=bool, count=len(words)
    )


def column_from_arrow(array: pa.ChunkedArray | pa.Array) -> Column | None:
    """The column form of an Arrow array; None for types that no filter can compare (structs, maps, binary)."""
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
    if isinstance(array, pa.ChunkedArray):  # combine_chunks of an empty chunked array
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], type=array.type)
    kind = array.type
    missing = np.asarray(pc.is_null(array))
    if pa.types.is_dictionary(kind):
        return column_from_arrow(array.cast(kind.value_type))
    if pa.types.is_boolean(kind):
        return BoolColumn(np.asarray(pc.fill_null(array, False), dtype=bool), missing)
    if pa.types.is_integer(kind):
        return NumberColumn(np.asarray(pc.fill_null(array, 0)).astype(np.int64), missing, is_integer=True)
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        values = np.asarray(pc.fill_null(array.cast(pa.float64()), np.nan))
        return NumberColumn(values, missing | np.isnan(values))
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        times = array.cast(pa.timestamp("us", tz=getattr(kind, "tz", None))).cast(pa.int64())
        return NumberColumn(np.asarray(pc.fill_null(times, 0)), missing, is_time=True)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return TextColumn(*_encode(array))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        array = pc.fill_null(array, pa.scalar([], type=kind)) if array.null_count else array
        words = array.flatten().cast(pa.string())
        lengths = np.asarray(pc.list_value_length(array)).astype(np.int64)
        return ListColumn(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32), *_encode(words), missing)
    return None


def _encode(array: pa.Array) -> tuple[IntArray, pa.Array]:
    encoded = pc.dictionary_encode(array)
    codes = np.asarray(pc.fill_null(encoded.indices, -1)).astype(np.int32)
    return codes, encoded.dictionary.cast(pa.string())
