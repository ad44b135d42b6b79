"""Conditions of filters as column masks: what a comparison, `in`, a text method or `size` means for each form of column.

An absent `available` reads true; absent or empty `regions` and `languages` mean everywhere; any other missing attribute compares
false, whatever the operator. How conditions are written is `filters`'.

Legend: `N` items, `V` words of a column's vocabulary.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from features.errors import EventError
from features.events import parse_timestamp
from serving.columns import BoolColumn, Column, IdColumn, ListColumn, NumberColumn, TextColumn, words_equal
from serving.filter_syntax import error_at
from training.interactions import BoolArray

EVERYWHERE = frozenset({"regions", "languages"})
"""List attributes that mean everywhere when absent or empty."""
PATHS = frozenset({"categories"})
"""List attributes whose words are paths that match by part."""

COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_COMPARE_WORDS: dict[str, Callable[..., pa.Array]] = {
    "==": pc.equal,
    "!=": pc.not_equal,
    "<": pc.less,
    "<=": pc.less_equal,
    ">": pc.greater,
    ">=": pc.greater_equal,
}
TEXT_METHODS: dict[str, Callable[..., pa.Array]] = {
    "startsWith": pc.starts_with,
    "endsWith": pc.ends_with,
    "contains": pc.match_substring,
}

Literal = str | float | int | bool
Mask = Callable[[Mapping[str, Column], int], BoolArray]
"""Columns and N to (N,) bool."""


@dataclass(frozen=True)
class Attribute:
    """An attribute where it stands in an expression; `size` where its number of entries is meant."""

    name: str
    position: int
    expression: str
    size: bool = False

    def mismatch(self, what: str) -> Exception:
        """The error that says what the attribute is, where it was used as something else."""
        return error_at(self.expression, self.position, f"{self.name} {what}")


def compared(node: Attribute, symbol: str, value: Literal | tuple[Literal, ...]) -> Mask:
    """`attribute symbol value`. The mask raises FilterError where the column's type does not fit."""

    def mask(columns: Mapping[str, Column], n: int) -> BoolArray:
        column = columns.get(node.name)
        if node.size:
            return _size_compared(node, column, symbol, value, n)
        if column is None:
            if node.name == "available" and isinstance(value, bool):
                return np.full(n, bool(COMPARE[symbol](True, value)), dtype=bool)
            return np.zeros(n, dtype=bool)
        if isinstance(column, ListColumn):
            raise node.mismatch("is a list: use in, or size")
        if isinstance(value, tuple):
            raise node.mismatch("is not a list")
        if isinstance(column, BoolColumn):
            if not isinstance(value, bool) or symbol not in {"==", "!="}:
                raise node.mismatch("is true or false")
            if node.name == "available":
                return np.asarray(COMPARE[symbol](column.values | column.missing, value), dtype=bool)
            return ~column.missing & COMPARE[symbol](column.values, value)
        if isinstance(column, NumberColumn):
            return ~column.missing & COMPARE[symbol](column.values, _number(node, column, value))
        if not isinstance(value, str):
            raise node.mismatch("is text")
        if isinstance(column, IdColumn):
            if symbol not in {"==", "!="}:
                raise node.mismatch("is an id: compare it with == or !=, or use in")
            return column.where_any([value]) == (symbol == "==")
        return column.where(_bools(_COMPARE_WORDS[symbol](column.words, value)))

    return mask


def one_of(node: Attribute, values: tuple[Literal, ...]) -> Mask:
    """`attribute in [values]`."""
    masks = [compared(node, "==", value) for value in values]

    def mask(columns: Mapping[str, Column], n: int) -> BoolArray:
        column = columns.get(node.name)
        if isinstance(column, IdColumn) and all(isinstance(value, str) for value in values):
            return column.where_any([str(value) for value in values])
        found = np.zeros(n, dtype=bool)
        for one in masks:
            found |= one(columns, n)
        return found

    return mask


def has_word(node: Attribute, word: str) -> Mask:
    """`"word" in attribute`."""

    def mask(columns: Mapping[str, Column], n: int) -> BoolArray:
        column = columns.get(node.name)
        if column is None:
            return np.full(n, node.name in EVERYWHERE, dtype=bool)
        if isinstance(column, TextColumn):
            return column.where(words_equal(column.words, word))
        if not isinstance(column, ListColumn):
            raise node.mismatch("is not a list")
        found = column.where_any(words_equal(column.words, word, paths=node.name in PATHS))
        return found | (column.sizes == 0) if node.name in EVERYWHERE else found

    return mask


def text_matches(node: Attribute, method: str, text: str) -> Mask:
    """`attribute.method("text")`; of a list, any of its words."""

    def mask(columns: Mapping[str, Column], n: int) -> BoolArray:
        column = columns.get(node.name)
        if column is None:
            return np.zeros(n, dtype=bool)
        if isinstance(column, TextColumn | ListColumn):
            words = _bools(TEXT_METHODS[method](column.words, text))
            return column.where(words) if isinstance(column, TextColumn) else column.where_any(words)
        raise node.mismatch("is not text")

    return mask


def _size_compared(node: Attribute, column: Column | None, symbol: str, value: Literal | tuple[Literal, ...], n: int) -> BoolArray:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise node.mismatch("has a size, which is a number")
    if column is None:
        return np.full(n, node.name in EVERYWHERE and bool(COMPARE[symbol](0, value)), dtype=bool)
    if isinstance(column, ListColumn):
        fits = np.asarray(COMPARE[symbol](column.sizes, value), dtype=bool)
        return fits if node.name in EVERYWHERE else fits & ~column.missing
    if isinstance(column, TextColumn):
        return column.where(np.asarray(COMPARE[symbol](np.asarray(pc.utf8_length(column.words)), value), dtype=bool))
    raise node.mismatch("has no size")


def _number(node: Attribute, column: NumberColumn, value: Literal) -> float | int:
    if column.is_time and isinstance(value, str):
        try:
            moment = parse_timestamp(value)
        except EventError:
            moment = None
        if moment is None:
            raise node.mismatch(f"is a time; {value!r} is not ISO 8601")
        return round(moment.timestamp() * 1e6)
    if isinstance(value, bool | str) or column.is_time:
        raise node.mismatch("is a time: compare it with ISO 8601 text" if column.is_time else "is a number")
    return value


def _bools(array: pa.Array) -> BoolArray:
    return np.asarray(array, dtype=bool)
