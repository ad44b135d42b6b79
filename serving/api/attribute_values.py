"""Attributes of items and users as bodies give them: checked against the dataset's schema, as columns for the catalogue.

Legend: `n` rows of a batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import pyarrow as pa

from features.attributes import ARROW_TYPES
from features.errors import EventError
from features.events import parse_timestamp
from features.schema import AttributeType
from serving.errors import RequestError
from serving.request_values import checked_id

MAX_ROWS = 1000
"""Rows of one batch."""

Types = Mapping[str, AttributeType]

_EXPECTED: dict[AttributeType, tuple[str, tuple[type, ...]]] = {
    "string": ("text", (str,)),
    "int": ("an integer", (int,)),
    "float": ("a finite number", (int, float)),
    "bool": ("true or false", (bool,)),
    "timestamp": ("ISO 8601 text", (str, datetime)),
    "string_list": ("a list of texts", (list,)),
}


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of a batch that can be stored, one an id, and what is wrong with the others (`{index, error, field?}`)."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    rejected: list[dict[str, Any]] = field(default_factory=list)

    @property
    def receipt(self) -> dict[str, Any]:
        """The body of the answer."""
        return {"stored": len(self.rows), "rejected": self.rejected}


def checked_batch(given: Sequence[object], key: str, name: str, types: Types) -> Batch:
    """The rows of a batch, each checked by itself; where an id is given twice the last row counts.

    Args:
        given: what the body holds.
        key: `item_id` or `user_id`.
        name: of the list in the body.
        types: of the dataset's attributes.

    Raises:
        RequestError: there are none, too many, or none is valid.
    """
    if not 1 <= len(given) <= MAX_ROWS:
        raise RequestError(f"{name} has {len(given)} entries, 1 to {MAX_ROWS} are allowed", code="batch_size", field=name)
    batch, rows = Batch(), dict[str, dict[str, Any]]()
    for index, one in enumerate(given):
        try:
            row = checked_row(one, key, types)
        except RequestError as error:
            batch.rejected.append({"index": index, "error": str(error)} | ({"field": error.field} if error.field else {}))
        else:
            rows[row[key]] = row
    batch.rows.extend(rows.values())
    if not batch.rows:
        first = batch.rejected[0]
        several = f" (and {len(batch.rejected) - 1} more rejected)" if len(batch.rejected) > 1 else ""
        raise RequestError(f"{first['error']}{several}", field=first.get("field"))
    return batch


def checked_row(given: object, key: str, types: Types) -> dict[str, Any]:
    """One item or user, its id as text.

    Raises:
        RequestError: it has no id, an attribute that the dataset lacks, or a value of another type; `field` names it.
    """
    if not isinstance(given, Mapping):
        raise RequestError(f"an entry must be a JSON object with {key}, got {str(given)[:60]!r}", field=key)
    entity = given.get(key)
    if isinstance(entity, bool) or not isinstance(entity, str | int):
        raise RequestError(f"{key} must be text", field=key)
    attributes = {name: value for name, value in given.items() if name != key}
    check_attributes(attributes, types)
    return {key: checked_id(str(entity), key), **attributes}


def without_id(given: Mapping[str, Any], key: str, wanted: str) -> dict[str, Any]:
    """A body's attributes alone; it may repeat the id of its path, as one that was read before does.

    Args:
        given: the body.
        key: `item_id` or `user_id`.
        wanted: the path's id.

    Raises:
        RequestError: the body has another id.
    """
    there = given.get(key, wanted)
    if isinstance(there, bool) or not isinstance(there, str | int) or str(there) != wanted:
        raise RequestError(f"the path says {wanted[:80]!r}, the body says {str(there)[:80]!r}", field=key)
    return {name: value for name, value in given.items() if name != key}


def check_attributes(given: Mapping[str, Any], types: Types) -> None:
    """Refuse attributes that the dataset lacks and values of another type; null stands for none.

    Raises:
        RequestError: `field` names the attribute.
    """
    for name, value in given.items():
        kind = types.get(name)
        if kind is None:
            known = ", ".join(sorted(types)) or "none"
            raise RequestError(f"this dataset has no attribute {name[:80]!r} here; it has: {known}", field=name)
        if value is not None and not _fits(value, kind):
            raise RequestError(f"{name} must be {_EXPECTED[kind][0]}, got {str(value)[:60]!r}", field=name)


def as_table(rows: Sequence[Mapping[str, Any]], key: str, types: Types) -> pa.Table:
    """Checked rows as the catalogue takes them.

    Returns:
        `key` and the attributes that some row has, (n,) each, null where a row lacks one.
    """
    named = [name for name in types if any(name in row for row in rows)]
    columns = {name: pa.array([_stored(row.get(name), types[name]) for row in rows], ARROW_TYPES[types[name]]) for name in named}
    return pa.table({key: pa.array([row[key] for row in rows], pa.string()), **columns})


def _fits(value: object, kind: AttributeType) -> bool:
    if not isinstance(value, _EXPECTED[kind][1]) or (isinstance(value, bool) and kind != "bool"):
        return False
    if kind == "int":
        return isinstance(value, int) and -(2**63) <= value < 2**63
    if kind == "float":
        return isinstance(value, int | float) and _is_finite(value)
    if kind == "string_list":
        return isinstance(value, list) and all(isinstance(one, str) for one in value)
    if kind == "timestamp":
        try:
            parse_timestamp(value)
        except EventError:
            return False
    return True


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond the largest float
        return False


def _stored(value: Any, kind: AttributeType) -> Any:
    if value is None:
        return None
    if kind == "timestamp":
        return parse_timestamp(value)
    return float(value) if kind == "float" else value  # Arrow takes no integer of more than 53 bits for a float
