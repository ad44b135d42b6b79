"""Columns with some items changed and some added: how catalogue changes reach a version between two trainings.

Every function gives a new column; readers of the old one are not disturbed. `item_table` says which items change.

Legend: `N` items before, `M` after (N or more), `C` changed items.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from features.errors import EventError
from features.events import parse_timestamp
from serving.columns import BoolColumn, Column, ListColumn, NumberColumn, TextColumn, column_from_arrow
from training.interactions import IntArray

Values = Sequence[Any]
"""Attribute of each changed item as JSON has it, None where the item lacks it. What its column cannot hold counts as lacking."""


def edited_columns(
    columns: Mapping[str, Column], rows: IntArray, items: Sequence[Mapping[str, Any]], num_items: int
) -> dict[str, Column]:
    """All columns with items replaced or added; attributes that no item had so far get a column.

    Args:
        columns: name -> column of N items; ids and availability are not among them.
        rows: (C,) rows of the items, each once; those from N on are new.
        items: C items, attribute name -> JSON value.
        num_items: M.
    """
    names = [*columns, *{name: None for item in items for name in item if name not in columns}]
    edited: dict[str, Column] = {}
    for name in names:
        values = [item.get(name) for item in items]
        column = columns.get(name) or _missing_column(values, num_items)
        if column is not None:
            edited[name] = _edited(column, rows, values, num_items)
    return edited


def _edited(column: Column, rows: IntArray, values: Values, num_items: int) -> Column:
    if isinstance(column, NumberColumn):
        return _edited_numbers(column, rows, values, num_items)
    if isinstance(column, BoolColumn):
        there = [isinstance(value, bool) for value in values]
        return BoolColumn(
            _grown(column.values, num_items, False, rows, [value is True for value in values]),
            _grown(column.missing, num_items, True, rows, [not one for one in there]),
        )
    if isinstance(column, TextColumn):
        codes, words = _coded(column.words, [value if isinstance(value, str) else None for value in values])
        return TextColumn(_grown(column.codes, num_items, -1, rows, codes), words)
    if isinstance(column, ListColumn):
        return _edited_lists(column, rows, values, num_items)
    raise AssertionError(f"{type(column).__name__} is not an attribute")


def _edited_numbers(column: NumberColumn, rows: IntArray, values: Values, num_items: int) -> NumberColumn:
    numbers = [_number(value, column) for value in values]
    return NumberColumn(
        _grown(column.values, num_items, 0, rows, [0 if number is None else number for number in numbers]),
        _grown(column.missing, num_items, True, rows, [number is None for number in numbers]),
        column.is_time,
        column.is_integer,
    )


def _edited_lists(column: ListColumn, rows: IntArray, values: Values, num_items: int) -> ListColumn:
    lists = [[str(word) for word in value] if isinstance(value, list) else [] for value in values]
    flat, words = _coded(column.words, [word for one in lists for word in one])
    old = len(column.indptr) - 1
    owner = np.repeat(np.arange(old, dtype=np.int64), np.diff(column.indptr))
    changed = np.zeros(num_items, dtype=bool)
    changed[rows] = True
    kept = ~changed[owner]
    owners = np.concatenate([owner[kept], np.repeat(rows.astype(np.int64), [len(one) for one in lists])])
    codes = np.concatenate([column.codes[kept], np.array(flat, dtype=np.int32)])
    order = np.argsort(owners, kind="stable")
    indptr = np.concatenate([[0], np.cumsum(np.bincount(owners, minlength=num_items))]).astype(np.int32)
    missing = _grown(column.missing, num_items, True, rows, [not isinstance(value, list) for value in values])
    return ListColumn(indptr, codes[order].astype(np.int32), words, missing)


def _number(value: Any, column: NumberColumn) -> float | int | None:
    if column.is_time:
        try:
            moment = None if value is None else parse_timestamp(value)
        except EventError:
            moment = None
        return None if moment is None else round(moment.timestamp() * 1e6)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = int(value) if column.is_integer else float(value)
    except (OverflowError, ValueError):  # beyond the largest float, or of infinity or NaN an integer
        return None
    holds = _is_int64(number) if isinstance(number, int) else math.isfinite(number)
    return number if holds else None


def _is_int64(number: int) -> bool:
    return -(2**63) <= number < 2**63


def _coded(words: pa.Array, wanted: Sequence[str | None]) -> tuple[list[int], pa.Array]:
    """Codes of what is wanted, -1 for None, and the words with those that they lacked."""
    distinct = list(dict.fromkeys(word for word in wanted if word is not None))
    found = pc.index_in(pa.array(distinct, type=pa.string()), value_set=words).to_pylist()
    known = {word: code for word, code in zip(distinct, found, strict=True) if code is not None}
    new = [word for word in distinct if word not in known]
    known |= {word: len(words) + place for place, word in enumerate(new)}
    grown = pa.concat_arrays([words, pa.array(new, type=pa.string())]) if new else words
    return [-1 if word is None else known[word] for word in wanted], grown


def _missing_column(values: Values, num_items: int) -> Column | None:
    """A column of `num_items` that lack the attribute, of the type of the first value; None where JSON has no such column."""
    first = next((value for value in values if value is not None), None)
    if first is None or isinstance(first, dict):
        return None
    if isinstance(first, list):
        kind = pa.list_(pa.string())
    elif isinstance(first, int) and not _is_int64(first):
        kind = pa.float64()
    else:
        kind = pa.scalar(first).type
    return column_from_arrow(pa.nulls(num_items, kind))


def _grown(array: npt.NDArray[Any], num_items: int, fill: Any, rows: IntArray, values: Sequence[Any]) -> npt.NDArray[Any]:
    grown = np.full(num_items, fill, dtype=array.dtype)
    grown[: len(array)] = array
    grown[rows] = values
    return grown
