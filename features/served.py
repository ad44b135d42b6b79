"""What was served: slates as they left the gateway, and the feature values that ranked them. Owns both rows and their wire forms.

Units (users or sessions) are sampled by a hash of their id, all of a unit's slates and lists or none, so that a slate of a sampled
unit always finds its features; `sample_rate` is in each row. A slate names the list that it shows by unit, version and the list's
time: several slates of a cached list share one row of features. Events join slates by `recommendation_id`.

Lists that were precomputed have their row from the moment of their ranking, with the values of that moment.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from features.daily_log import DailyLog
from features.errors import EventError

_TIME = pa.timestamp("us", tz="UTC")

SLATE_SCHEMA = pa.schema(
    [
        pa.field("recommendation_id", pa.string(), nullable=False),
        pa.field("site", pa.string(), nullable=False),
        pa.field("at", _TIME, nullable=False),
        pa.field("list_id", pa.string()),  # of the features below; null for popular items
        pa.field("user_id", pa.string()),
        pa.field("session_id", pa.string()),
        pa.field("model_version", pa.string()),
        pa.field("served_from", pa.string(), nullable=False),
        pa.field("degraded", pa.bool_(), nullable=False),
        pa.field("placement", pa.string()),
        pa.field("assignments", pa.list_(pa.string()), nullable=False),  # "experiment:variant"
        pa.field("item_ids", pa.list_(pa.string()), nullable=False),  # in order of the slate
        pa.field("sample_rate", pa.float64(), nullable=False),
    ]
)
"""One row of the slate log."""

FEATURE_LOG_SCHEMA = pa.schema(
    [
        pa.field("list_id", pa.string(), nullable=False),
        pa.field("site", pa.string(), nullable=False),
        pa.field("at", _TIME, nullable=False),
        pa.field("user_id", pa.string()),
        pa.field("model_version", pa.string(), nullable=False),
        pa.field("request_time_us", pa.int64(), nullable=False),
        pa.field("from_online_store", pa.bool_(), nullable=False),  # else computed from the history of the request
        pa.field("user_features", pa.string(), nullable=False),  # JSON object: name -> value, null where missing
        pa.field("item_ids", pa.list_(pa.string()), nullable=False),  # best first
        pa.field("feature_names", pa.list_(pa.string()), nullable=False),  # F
        pa.field("values", pa.list_(pa.float32()), nullable=False),  # items x F, row by row
        pa.field("sample_rate", pa.float64(), nullable=False),
        pa.field("dropped", pa.int64(), nullable=False),  # rows that the same replica had to drop since the last one
    ]
)
"""One row of the feature log: one computed list."""


@dataclass(frozen=True, slots=True)
class ServedRow:
    """A row of either log on its way: what tells it apart, and its values by column. Lists of numbers may be numpy arrays."""

    key: str
    values: Mapping[str, Any]

    def encode(self) -> bytes:
        """The payload on the bus."""
        row = {name: _packed(value) if isinstance(value, np.ndarray) else value for name, value in self.values.items()}
        return json.dumps({name: value for name, value in row.items() if value is not None}, separators=(",", ":")).encode()


def slate_log(folder: Path) -> DailyLog:
    """The slates of a dataset, below its folder."""
    return DailyLog(folder / "slates", SLATE_SCHEMA, id_column="recommendation_id", time_column="at")


def feature_log(folder: Path) -> DailyLog:
    """The feature values of a dataset's computed lists, below its folder."""
    return DailyLog(folder / "feature_log", FEATURE_LOG_SCHEMA, id_column="list_id", time_column="at")


def is_sampled(unit: str, rate: float) -> bool:
    """Whether a unit's slates and features are logged."""
    return rate > 0 and zlib.crc32(unit.encode()) < rate * 2**32


def list_id(unit: str, version: str, computed_at_us: int) -> str:
    """Id of one computed list."""
    return f"{unit}@{version}@{computed_at_us}"


def decode_slates(payloads: Sequence[bytes]) -> pa.Table:
    """Bus payloads as rows of `SLATE_SCHEMA`.

    Raises:
        EventError: a payload is not a slate.
    """
    return _decoded(payloads, SLATE_SCHEMA, "a slate")


def decode_feature_rows(payloads: Sequence[bytes]) -> pa.Table:
    """Bus payloads as rows of `FEATURE_LOG_SCHEMA`.

    Raises:
        EventError: a payload is not a row of features.
    """
    return _decoded(payloads, FEATURE_LOG_SCHEMA, "a row of features")


def _decoded(payloads: Sequence[bytes], schema: pa.Schema, what: str) -> pa.Table:
    try:
        rows: list[dict[str, Any]] = [json.loads(payload) for payload in payloads]
        for row in rows:
            if "values" in row:
                row["values"] = np.frombuffer(base64.b64decode(row["values"], validate=True), dtype="<f4")
        columns = [pa.array([row.get(field.name) for row in rows], field.type) for field in schema]
    except (ValueError, TypeError, AttributeError, pa.ArrowException) as error:
        raise EventError(f"not {what}: {error}") from None
    for field, column in zip(schema, columns, strict=True):
        if not field.nullable and column.null_count:
            raise EventError(f"not {what}: {field.name} is missing", field.name)
    return pa.table(columns, schema=schema)


def _packed(values: npt.NDArray[Any]) -> str:
    return base64.b64encode(np.ascontiguousarray(values, dtype="<f4").tobytes()).decode()
