"""Attributes of items and users: safe names, types, and the JSON that the catalogue keeps.

Canonical names get typed treatment (`categories` is a list, `price` a number, `created_at` a time, ...); any other attribute
takes the type that its column has.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as paj

from features.schema import Attribute, AttributeType

ARROW_TYPES: dict[AttributeType, pa.DataType] = {
    "string": pa.string(),
    "int": pa.int64(),
    "float": pa.float64(),
    "bool": pa.bool_(),
    "timestamp": pa.timestamp("us", tz="UTC"),
    "string_list": pa.list_(pa.string()),
}
"""Arrow type of each attribute type."""

CANONICAL_ITEM_TYPES: dict[str, AttributeType] = {
    "title": "string",
    "categories": "string_list",
    "tags": "string_list",
    "regions": "string_list",
    "languages": "string_list",
    "available": "bool",
    "price": "float",
    "created_at": "timestamp",
    "year": "int",
}
"""Item attributes with a fixed type, whatever the file's column is."""

# Words that the filter language reserves, and names that feature views and joins use themselves.
_RESERVED = frozenset(
    [
        "true",
        "false",
        "null",
        "in",
        "as",
        "break",
        "const",
        "continue",
        "else",
        "for",
        "function",
        "if",
        "import",
        "let",
        "loop",
        "package",
        "namespace",
        "return",
        "var",
        "void",
        "while",
        "item_id",
        "user_id",
        "event_timestamp",
        "created_timestamp",
        "request_time_us",
    ]
)
_UNSAFE = re.compile(r"[^A-Za-z0-9]+")


def safe_names(source_names: Iterable[str], known: Sequence[Attribute] = ()) -> dict[str, str]:
    """Names that Feast, DuckDB and the filter language can carry, unique without regard to case.

    Letters, digits and single underscores stay; every other run of characters becomes one underscore. A name seen before keeps
    what it was given then.

    Args:
        source_names: the file's column names.
        known: attributes of earlier imports.

    Returns:
        source name -> safe name.
    """
    chosen = {attribute.source_name: attribute.name for attribute in known}
    taken = {name.lower() for name in chosen.values()}
    result: dict[str, str] = {}
    for source in source_names:
        if source in chosen:
            result[source] = chosen[source]
            continue
        base = _UNSAFE.sub("_", source).strip("_") or "attribute"
        if base[0].isdigit() or base.lower() in _RESERVED:
            base = f"x_{base}"
        name, number = base, 2
        while name.lower() in taken:
            name, number = f"{base}_{number}", number + 1
        taken.add(name.lower())
        chosen[source] = result[source] = name
    return result


def attribute_type(column: pa.DataType) -> AttributeType:
    """The attribute type that carries an Arrow type; what is neither number, time, truth nor list becomes text."""
    if pa.types.is_dictionary(column):
        return attribute_type(column.value_type)
    if pa.types.is_boolean(column):
        return "bool"
    if pa.types.is_integer(column):
        return "int"
    if pa.types.is_floating(column) or pa.types.is_decimal(column):
        return "float"
    if pa.types.is_timestamp(column) or pa.types.is_date(column):
        return "timestamp"
    if pa.types.is_list(column) or pa.types.is_large_list(column):
        return "string_list"
    return "string"


def merge_attributes(known: Sequence[Attribute], new: Sequence[Attribute]) -> tuple[Attribute, ...]:
    """Attributes of earlier imports widened by those of a new one: int and float make float, other differences make text."""
    merged = {attribute.name: attribute for attribute in known}
    for attribute in new:
        old = merged.get(attribute.name)
        merged[attribute.name] = (
            attribute if old is None else Attribute(old.name, old.source_name, _common_type(old.type, attribute.type))
        )
    return tuple(merged.values())


def encode_attributes(attributes: pa.Table) -> list[str]:
    """Each row as a JSON object text; nulls are left out, times are ISO 8601 in UTC."""
    names = attributes.column_names
    if not names:
        return ["{}"] * attributes.num_rows
    columns = []
    for name in names:
        column = attributes[name]
        if pa.types.is_timestamp(column.type):
            column = pc.strftime(column, format="%Y-%m-%dT%H:%M:%SZ")
        columns.append(column.to_pylist())
    encoder = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return [
        encoder.encode({name: value for name, value in zip(names, row, strict=True) if value is not None})
        for row in zip(*columns, strict=True)
    ]


def decode_attributes(texts: Sequence[str], attributes: Sequence[Attribute]) -> dict[str, pa.Array]:
    """JSON object texts as one typed array an attribute, null where a row lacks it."""
    if not texts or not attributes:
        return {a.name: pa.nulls(len(texts), ARROW_TYPES[a.type]) for a in attributes}
    schema = pa.schema([pa.field(a.name, ARROW_TYPES[a.type]) for a in attributes])
    body = "\n".join(texts).encode()
    try:
        table = paj.read_json(
            io.BytesIO(body),
            read_options=paj.ReadOptions(block_size=max(1 << 22, 2 * max(map(len, texts)) * 4)),
            parse_options=paj.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore"),
        )
        if table.num_rows == len(texts):
            return {a.name: table[a.name].combine_chunks() for a in attributes}
    except pa.ArrowInvalid:
        pass  # a value of another type than the schema's, from before the attribute was widened or from a patch: value by value
    rows = [json.loads(text) for text in texts]
    return {a.name: pa.array([_as_type(row.get(a.name), a.type) for row in rows], ARROW_TYPES[a.type]) for a in attributes}


def _common_type(one: AttributeType, other: AttributeType) -> AttributeType:
    if one == other:
        return one
    return "float" if {one, other} == {"int", "float"} else "string"


def _as_type(value: Any, wanted: AttributeType) -> Any:
    if value is None:
        return None
    try:
        if wanted == "string":
            return value if isinstance(value, str) else json.dumps(value)
        if wanted == "string_list":
            return [str(part) for part in value] if isinstance(value, list) else [str(value)]
        if wanted == "timestamp":
            moment = datetime.fromisoformat(value)
            return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
        if wanted == "bool":
            return value if isinstance(value, bool) else None
        if wanted == "int":
            number = int(value)
            return number if -(2**63) <= number < 2**63 else None
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None
