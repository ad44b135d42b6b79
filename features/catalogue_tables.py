"""Raw items and users tables made into catalogue rows: canonical names and types, safe attribute names, one row an id."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from features.attributes import ARROW_TYPES, CANONICAL_ITEM_TYPES, attribute_type, safe_names
from features.importers.columns import ITEM_ALIASES, USER_ALIASES, choose_columns
from features.importers.source import RawTable
from features.importers.values import NO_ID, flat, holds_value, to_ids, to_lists, to_numbers, to_times, to_truth
from features.rejects import Rejects
from features.schema import Attribute, AttributeType

_WORDS: dict[AttributeType, str] = {
    "string": "text",
    "string_list": "lists",
    "int": "whole numbers of 64 bits",
    "float": "numbers",
    "bool": "truth values",
    "timestamp": "times within 1900 to 2200",
}


@dataclass(frozen=True)
class CatalogueRows:
    """Rows ready for the catalogue.

    Args:
        table: the id column and one typed column an attribute, under safe names; one row an id, the file's last.
        attributes: what the columns are.
        notes: what of the file is not in the rows, one sentence each.
    """

    table: pa.Table
    attributes: tuple[Attribute, ...]
    notes: tuple[str, ...] = ()


def catalogue_rows(
    source: RawTable,
    side: Literal["item", "user"],
    *,
    mapping: Mapping[str, str],
    known: Sequence[Attribute],
    rejects: Rejects,
) -> CatalogueRows:
    """Type a raw catalogue table; rows without an id go to the rejects, unreadable attribute values become null and are told.

    Args:
        source: columns under the file's own names.
        side: items or users.
        mapping: canonical name -> column, from the user; those that name no column here are not meant for this file.
        known: attributes of earlier imports, whose names and types stay.
        rejects: takes the bad rows.

    Raises:
        ImportFormatError: no id column can be found.
    """
    key, raw, file = f"{side}_id", source.table, source.file
    for bad in source.bad_rows:
        rejects.add(file, bad.number, bad.reason, bad.text)
    aliases = ITEM_ALIASES if side == "item" else USER_ALIASES
    here = {name: column for name, column in mapping.items() if name in aliases and column in raw.column_names}
    chosen = choose_columns(raw.column_names, aliases, required=[(key,)], mapping=here, what=file)
    ids, wrong = to_ids(raw[chosen[key]])
    missing = pc.is_null(ids).to_numpy(zero_copy_only=False)
    for row in np.flatnonzero(missing).tolist():
        number = row + 1 if source.row_numbers is None else int(source.row_numbers[row])
        reason = f"{key} is {NO_ID}" if wrong[row] else f"{key} is missing"
        rejects.add(file, number, reason, {name: raw[name][row].as_py() for name in raw.column_names})
    keep = _last_of_each(ids, ~missing)
    notes: list[str] = []
    if repeated := int(np.sum(~missing)) - len(keep):
        notes.append(f"{file}: {repeated:,} rows repeat the {key} of another; the last one counts")
    raw, ids = raw.take(pa.array(keep)), ids.take(pa.array(keep))
    meaning = {column: canonical for canonical, column in chosen.items() if canonical != key}
    others = [column for column in raw.column_names if column != chosen[key]]
    names = safe_names([meaning.get(column, column) for column in others], known)
    columns: dict[str, pa.Array] = {key: ids}
    attributes: list[Attribute] = []
    known_types = {attribute.name: attribute.type for attribute in known}
    for column in others:
        canonical = meaning.get(column, column)
        name = names[canonical]
        wanted = CANONICAL_ITEM_TYPES.get(canonical) if side == "item" else None
        wanted = wanted or _widened(known_types.get(name), attribute_type(raw[column].type))
        columns[name] = _typed(raw[column], wanted)
        attributes.append(Attribute(name, canonical, wanted))
        notes.extend(_left_empty(raw[column], columns[name], f"{file}: {{}} values of {column!r} are no {_WORDS[wanted]}"))
    return CatalogueRows(pa.table(columns), tuple(attributes), tuple(notes))


def _left_empty(given: pa.ChunkedArray, typed: pa.Array, what: str) -> Iterator[str]:
    """A sentence on the values that were given and could not be typed, if there are any; `what` takes their number."""
    lost = np.flatnonzero(holds_value(given) & pc.is_null(typed).to_numpy(zero_copy_only=False))
    if len(lost):
        yield f"{what.format(f'{len(lost):,}')} and were left empty (one is {given[int(lost[0])].as_py()!r})"


def _last_of_each(ids: pa.Array, usable: np.ndarray) -> np.ndarray:
    """Row numbers of the last usable row of each id, ascending."""
    codes = pc.fill_null(ids, "").dictionary_encode().indices.to_numpy()
    last = np.full(codes.max(initial=-1) + 1, -1)
    rows = np.flatnonzero(usable)
    last[codes[rows]] = rows
    return np.sort(last[last >= 0])


def _widened(known: AttributeType | None, found: AttributeType) -> AttributeType:
    if known is None or known == found:
        return found
    return "float" if {known, found} == {"int", "float"} else "string"


def _typed(column: pa.ChunkedArray, wanted: AttributeType) -> pa.Array:
    if wanted == "string_list":
        return to_lists(column)
    if wanted == "float":
        return to_numbers(column)[0]
    if wanted == "bool":
        return to_truth(column)
    if wanted == "timestamp":
        return pc.cast(to_times(column)[0], ARROW_TYPES["timestamp"])
    if wanted == "int":
        return _whole_numbers(flat(column))
    values = flat(column)
    if pa.types.is_nested(values.type):
        return pa.array([None if v is None else str(v) for v in values.to_pylist()], pa.string())
    return pc.cast(values, pa.string())


def _whole_numbers(values: pa.Array) -> pa.Array:
    """Rounded to int64; what it cannot hold is null."""
    if not pa.types.is_integer(values.type):
        values = pc.round(to_numbers(values)[0])
        fits = pc.and_(pc.greater_equal(values, -(2.0**63)), pc.less(values, 2.0**63))
    elif pa.types.is_uint64(values.type):
        fits = pc.less(values, pa.scalar(2**63, pa.uint64()))
    else:
        return pc.cast(values, pa.int64())
    return pc.cast(pc.if_else(fits, values, pa.scalar(None, values.type)), pa.int64())
