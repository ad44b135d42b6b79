"""Caps: at most so many items of one value of an attribute in a list, the best ranked ones kept.

What a greedy walk down the list would keep, found in as many steps as values run full and not as many as there are candidates.

Legend: `n` ranked items, `E` pairs of item and value, `V` values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from serving.columns import BoolColumn, Column, IdColumn, ListColumn, NumberColumn, TextColumn
from training.interactions import BoolArray, IntArray, LongArray

Value = str | int | float | bool
"""Of an attribute, as every table has it, whatever its codes."""


@dataclass(frozen=True)
class CappedValues:
    """Which items have which values, over all attributes that are capped.

    Shapes: owner (E,) int64 places in the ranked list, value (E,) int64, each pair once; limit (V,) int64 items a value may have.
    """

    owner: LongArray
    value: LongArray
    limit: LongArray


def values_of(column: Column | None, rows: IntArray) -> tuple[LongArray, LongArray]:
    """Places of `rows` and their values as codes, (E,) int64 each: none of an item without the attribute, several of a list."""
    if isinstance(column, ListColumn):
        lengths = column.sizes[rows]
        owner = np.repeat(np.arange(len(rows)), lengths)
        starts = np.concatenate([[0], np.cumsum(lengths)[:-1]]) if len(rows) else np.zeros(0, np.int64)
        entry = np.repeat(column.indptr[rows] - starts, lengths) + np.arange(len(owner))
        return owner.astype(np.int64), column.codes[entry].astype(np.int64)
    if isinstance(column, TextColumn):
        there = np.flatnonzero(column.codes[rows] >= 0)
        return there, column.codes[rows[there]].astype(np.int64)
    if isinstance(column, NumberColumn | BoolColumn):
        there = np.flatnonzero(~column.missing[rows])
        return there, np.unique(column.values[rows[there]], return_inverse=True)[1].astype(np.int64)
    if isinstance(column, IdColumn):
        return np.arange(len(rows)), rows.astype(np.int64)
    return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)


def with_values(column: Column | None, values: Sequence[Value] | None, n: int) -> BoolArray:
    """(n,) bool of all items: those with one of the values, or (None) with any value at all."""
    if column is None:
        return np.zeros(n, dtype=bool)
    if isinstance(column, ListColumn | TextColumn):
        if values is None:
            return column.sizes > 0 if isinstance(column, ListColumn) else column.codes >= 0
        words = pa.array([value for value in values if isinstance(value, str)], type=pa.string())
        marked = np.asarray(pc.is_in(column.words, value_set=words), dtype=bool)
        return column.where_any(marked) if isinstance(column, ListColumn) else column.where(marked)
    if isinstance(column, IdColumn):
        return np.ones(n, dtype=bool) if values is None else column.where_any([str(value) for value in values])
    there = ~column.missing
    return there if values is None else there & np.isin(column.values, [value for value in values if not isinstance(value, str)])


def full_values(column: Column | None, limit: int, counting: BoolArray | None, rows: IntArray) -> tuple[Value, ...]:
    """The values of which `rows` hold as many as a cap allows; parameters as of `capped_values`."""
    owner, code = values_of(column, rows)
    if counting is not None:
        there = counting[rows[owner]]
        owner, code = owner[there], code[there]
    if column is None or not len(owner):
        return ()
    pairs = np.unique(np.stack([code, owner]), axis=1)  # a word that an item lists twice counts once
    known, first, counts = np.unique(pairs[0], return_index=True, return_counts=True)
    full = counts >= limit
    if isinstance(column, ListColumn | TextColumn):
        return tuple(column.words.take(pa.array(known[full])).to_pylist())
    holders = rows[pairs[1][first[full]]]
    if isinstance(column, IdColumn):
        return tuple(column.ids[holders].tolist())
    return tuple(column.values[holders].tolist())


def capped_values(capped: Sequence[tuple[Column | None, int, BoolArray | None]], rows: IntArray) -> CappedValues:
    """The values of all capped attributes.

    Args:
        capped: column, items a value may have, and (N,) bool of the items that count (None: all).
        rows: (n,) items, best first.
    """
    owners, values, limits = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for column, limit, counting in capped:
        owner, code = values_of(column, rows)
        if counting is not None:
            there = counting[rows[owner]]
            owner, code = owner[there], code[there]
        known, local = np.unique(code, return_inverse=True)
        pair = np.unique(owner * max(len(known), 1) + local)  # a word that an item lists twice counts once
        owners.append(pair // max(len(known), 1))
        values.append(pair % max(len(known), 1) + sum(map(len, limits)))
        limits.append(np.full(len(known), limit, dtype=np.int64))
    return CappedValues(np.concatenate(owners), np.concatenate(values), np.concatenate(limits))


def within_caps(values: CappedValues, n: int, fixed: BoolArray | None = None, reserve: int = 0) -> BoolArray:
    """(n,) bool: items that stay.

    Args:
        values: of the n items.
        n: items.
        fixed: (n,) bool items that stay whatever the caps say, and count.
        reserve: places of each value to keep free.
    """
    keep = np.ones(n, dtype=bool)
    if not len(values.owner):
        return keep
    always = np.zeros(n, dtype=bool) if fixed is None else fixed
    num_values = len(values.limit)
    room = values.limit - reserve - np.bincount(values.value[always[values.owner]], minlength=num_values)
    free = ~always[values.owner]
    owner, value = values.owner[free], values.value[free]
    while True:
        there = np.flatnonzero(keep[owner])
        ordered = there[np.lexsort((owner[there], value[there]))]
        counts = np.bincount(value[there], minlength=num_values)
        place = np.arange(len(ordered)) - np.repeat(np.cumsum(counts) - counts, counts)
        over = owner[ordered[place >= room[value[ordered]]]]
        if not len(over):
            return keep
        first = int(over.min())
        # All before the first item too many stays; whatever has a value that they have filled goes, in one step.
        full = np.bincount(value[there[owner[there] < first]], minlength=num_values) >= room
        keep[owner[(owner >= first) & full[value]]] = False
