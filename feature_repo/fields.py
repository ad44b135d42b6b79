"""Feast's Field of a feature."""

from __future__ import annotations

from typing import Any

from feast import Field
from feast.types import Array, Bool, Float32, Float64, Int32, Int64, String

from feature_repo.specs import FeatureSpec

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


def feast_field(spec: FeatureSpec) -> Field:
    """The field; dtype and unit are part of its description and tags."""
    dtype = _FEAST_TYPES[spec.kind]
    return Field(
        name=spec.name,
        dtype=dtype,
        description=f"{spec.description} [{dtype}, unit: {spec.unit}]",
        tags={"unit": spec.unit, "kind": spec.kind},
    )
