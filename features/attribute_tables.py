"""Catalogue tables as feature tables: attributes get their feature's name and type."""

from __future__ import annotations

from dataclasses import asdict

import pyarrow as pa

from feature_repo.specs import METADATA_PREFIX, PROFILE_PREFIX, attribute_specs
from features.columns import arrow_type
from features.schema import Attribute, AttributeType

ALWAYS_US = -2_208_988_800_000_000
"""1900-01-01: attributes are joined as if they had always been so, because the catalogue keeps no history of them."""


def attributes_of(table: pa.Table, key: str) -> tuple[Attribute, ...]:
    """The attributes of a catalogue table, typed by their Arrow types; `key` is not one. Other types are left out."""
    found = []
    for field in table.schema:
        kind = _attribute_type(field.type)
        if field.name != key and kind is not None:
            found.append(Attribute(field.name, field.name, kind))
    return tuple(found)


def attribute_table(table: pa.Table, key: str, attributes: tuple[Attribute, ...] | None = None) -> pa.Table:
    """`key` and one feature column an attribute, as the views `user_profile` (key `user_id`) and `item_metadata` declare them.

    Args:
        table: the catalogue's table.
        key: `user_id` or `item_id`.
        attributes: which; by default those that the table's types give. One that the table lacks is null throughout.
    """
    attributes = attributes_of(table, key) if attributes is None else attributes
    specs = attribute_specs(
        [asdict(attribute) for attribute in attributes], PROFILE_PREFIX if key == "user_id" else METADATA_PREFIX
    )
    columns = {key: table.column(key).cast(pa.string())}
    for attribute, spec in zip(attributes, specs, strict=True):
        target = arrow_type(spec)
        if attribute.name not in table.column_names:
            columns[spec.name] = pa.nulls(len(table), target)
            continue
        column = table.column(attribute.name)
        if pa.types.is_timestamp(column.type):
            column = column.cast(pa.timestamp("us", tz=column.type.tz)).cast(pa.int64())
        columns[spec.name] = column.cast(target)
    return pa.table(columns)


def _attribute_type(kind: pa.DataType) -> AttributeType | None:
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return "string"
    if pa.types.is_boolean(kind):
        return "bool"
    if pa.types.is_integer(kind):
        return "int"
    if pa.types.is_floating(kind):
        return "float"
    if pa.types.is_timestamp(kind):
        return "timestamp"
    if pa.types.is_list(kind) and pa.types.is_string(kind.value_type):
        return "string_list"
    return None
