"""What a feature is: name, kind, unit and description, said once for Feast's Field, for training and for serving.

The numpy form of a kind (dtype, what stands for a missing value) is `features.columns`' work.

A dataset's schema reaches this package as the decoded `schema.json`, a plain mapping, because `feature_repo` is the lowest
layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from feast import Field
from feast.types import Array, Bool, Float32, Float64, Int32, Int64, String

Kind = Literal["count", "time_us", "integer", "number", "flag", "text", "texts", "integers", "numbers", "tiles"]

_FEAST_TYPES: dict[str, Any] = {
    "count": Int64,
    "time_us": Int64,
    "integer": Int64,
    "number": Float64,
    "flag": Bool,
    "text": String,
    "texts": Array(String),
    "integers": Array(Int64),
    "numbers": Array(Float32),
    "tiles": Array(Int32),
}

_ATTRIBUTE_KINDS: dict[str, Kind] = {
    "string": "text",
    "int": "integer",
    "float": "number",
    "bool": "flag",
    "timestamp": "time_us",
    "string_list": "texts",
}


@dataclass(frozen=True)
class FeatureSpec:
    """One feature.

    Args:
        name: unique over all views, because feature services join them side by side.
        kind: what the value is: `count` (never missing), `time_us` (microseconds since the epoch, UTC), `integer`, `number`,
            `flag`, `text`, `texts` / `integers` / `numbers` (lists of any length), `tiles` (a list of exactly `width` counts).
        unit: unit of the value, "1" for pure numbers.
        description: one sentence.
        width: length of `tiles`; 0 for other kinds.
    """

    name: str
    kind: Kind
    unit: str
    description: str
    width: int = 0

    def field(self) -> Field:
        """The Feast field; dtype and unit are part of its description and tags."""
        dtype = _FEAST_TYPES[self.kind]
        return Field(
            name=self.name,
            dtype=dtype,
            description=f"{self.description} [{dtype}, unit: {self.unit}]",
            tags={"unit": self.unit, "kind": self.kind},
        )


def attribute_specs(attributes: Sequence[Mapping[str, str]], prefix: str) -> tuple[FeatureSpec, ...]:
    """Features of the attributes that `schema.json` lists, named `<prefix>_<name>`; times get the suffix `_us`.

    Args:
        attributes: mappings with `name`, `source_name` and `type`.
        prefix: keeps attribute names apart from computed features and users' apart from items'.

    Raises:
        ValueError: an attribute type that is not known.
    """
    specs = []
    for attribute in attributes:
        kind = _ATTRIBUTE_KINDS.get(attribute["type"])
        if kind is None:
            raise ValueError(
                f"attribute {attribute['name']!r} has type {attribute['type']!r}; allowed: {', '.join(_ATTRIBUTE_KINDS)}"
            )
        time = kind == "time_us"
        specs.append(
            FeatureSpec(
                name=attribute_feature(attribute["name"], prefix, is_time=time),
                kind=kind,
                unit="us since epoch, UTC" if time else "1",
                description=f"Attribute {attribute['source_name']!r} as the catalogue holds it.",
            )
        )
    return tuple(specs)


def attribute_feature(name: str, prefix: str, *, is_time: bool = False) -> str:
    """Feature name of an attribute."""
    return f"{prefix}_{name}_us" if is_time else f"{prefix}_{name}"
