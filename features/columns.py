"""Feature values as numpy columns: one dtype and one stand-in for a missing value per kind, offline and online alike.

| kind | numpy form | missing |
|---|---|---|
| count | (B,) int64 | 0 |
| time_us, integer, number, flag | (B,) float64 | NaN |
| text | (B,) object of str | None |
| texts | (B,) object of object arrays | empty array |
| integers, numbers | (B,) object of int64 / float32 arrays | empty array |
| tiles | (B, width) int32 | zeros |

Times fit: float64 is exact to 2**53 microseconds, the year 2255.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from feature_repo.specs import FeatureSpec
from features.errors import FeatureJoinError

FeatureColumns = dict[str, npt.NDArray[Any]]

_LIST_DTYPES: dict[str, Any] = {"texts": np.object_, "integers": np.int64, "numbers": np.float32}

_ARROW_TYPES: dict[str, pa.DataType] = {
    "count": pa.int64(),
    "time_us": pa.int64(),
    "integer": pa.int64(),
    "number": pa.float64(),
    "flag": pa.bool_(),
    "text": pa.string(),
    "texts": pa.list_(pa.string()),
    "integers": pa.list_(pa.int64()),
    "numbers": pa.list_(pa.float32()),
    "tiles": pa.list_(pa.int32()),
}


def arrow_type(spec: FeatureSpec) -> pa.DataType:
    """Type of the feature in a table."""
    return _ARROW_TYPES[spec.kind]


def table_columns(table: pa.Table, specs: Sequence[FeatureSpec]) -> FeatureColumns:
    """The features of `specs` out of a table, row for row.

    Raises:
        FeatureJoinError: a feature is not in the table.
    """
    missing = [spec.name for spec in specs if spec.name not in table.column_names]
    if missing:
        raise FeatureJoinError(f"feature {missing[0]!r} is not in the table; it has {', '.join(table.column_names)}")
    return {spec.name: _from_arrow(table.column(spec.name), spec) for spec in specs}


def value_column(values: Sequence[Any], spec: FeatureSpec) -> npt.NDArray[Any]:
    """One feature out of Python values (None is missing), as the online store returns them."""
    rows = len(values)
    if spec.kind == "count":
        return np.array([0 if value is None else value for value in values], dtype=np.int64)
    if spec.kind == "tiles":
        tiles = np.zeros((rows, spec.width), dtype=np.int32)
        for row, value in enumerate(values):
            if value is not None and len(value):
                tiles[row] = value
        return tiles
    if spec.kind in _LIST_DTYPES:
        dtype = _LIST_DTYPES[spec.kind]
        column = np.empty(rows, dtype=np.object_)
        for row, value in enumerate(values):
            column[row] = np.array(() if value is None else value, dtype=dtype)
        return column
    if spec.kind == "text":
        column = np.empty(rows, dtype=np.object_)
        column[:] = list(values)
        return column
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def missing_columns(rows: int, specs: Sequence[FeatureSpec]) -> FeatureColumns:
    """Columns of `rows` entities of which nothing is known."""
    return {spec.name: value_column([None] * rows, spec) for spec in specs}


def columns_table(columns: Mapping[str, npt.NDArray[Any]], specs: Sequence[FeatureSpec]) -> pa.Table:
    """The inverse of `table_columns`; NaN and None become null."""
    arrays = []
    for spec in specs:
        column = columns[spec.name]
        if spec.kind in ("integer", "time_us"):
            known = ~np.isnan(column)
            arrays.append(pa.array(np.where(known, column, 0).astype(np.int64), mask=~known))
        elif spec.kind == "flag":
            known = ~np.isnan(column)
            arrays.append(pa.array(np.where(known, column, 0).astype(np.bool_), mask=~known))
        elif spec.kind == "number":
            arrays.append(pa.array(column, from_pandas=True))
        else:
            arrays.append(pa.array(list(column), type=arrow_type(spec)))
    return pa.table(arrays, schema=pa.schema([pa.field(spec.name, arrow_type(spec)) for spec in specs]))


def equal_columns(left: npt.NDArray[Any], right: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """(B,) bool: rows in which two columns of one feature are the same; NaN equals NaN."""
    if left.dtype == np.object_:
        return np.array([_same(a, b) for a, b in zip(left, right, strict=True)], dtype=np.bool_)
    if left.ndim == 2:
        return np.asarray((left == right).all(axis=1))
    same = left == right
    if left.dtype.kind == "f":
        same |= np.isnan(left) & np.isnan(right)
    return same


def _same(a: object, b: object) -> bool:
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return bool(np.array_equal(a, b))
    return a == b


def _from_arrow(chunked: pa.ChunkedArray, spec: FeatureSpec) -> npt.NDArray[Any]:
    if spec.kind == "count":
        return pc.fill_null(chunked.cast(pa.int64()), 0).to_numpy()
    if spec.kind == "tiles":
        return _tiles(chunked, spec.width)
    if spec.kind in _LIST_DTYPES:
        return _ragged(chunked, _LIST_DTYPES[spec.kind])
    if spec.kind == "text":
        return np.asarray(chunked.to_numpy(zero_copy_only=False), dtype=np.object_)
    if spec.kind == "flag":
        chunked = chunked.cast(pa.int8())
    if chunked.null_count == 0:
        return np.asarray(chunked.to_numpy(), dtype=np.float64)
    return pc.fill_null(chunked.cast(pa.float64(), safe=False), float("nan")).to_numpy()


def _tiles(chunked: pa.ChunkedArray, width: int) -> npt.NDArray[np.int32]:
    tiles = np.zeros((len(chunked), width), dtype=np.int32)
    start = 0
    for chunk in chunked.chunks:
        lengths = pc.fill_null(pc.list_value_length(chunk), 0).to_numpy(zero_copy_only=False)
        filled = np.flatnonzero(lengths) + start
        if not np.isin(lengths, (0, width)).all():
            raise FeatureJoinError(f"a list of tiles has {lengths.max()} entries, not {width}")
        tiles[filled] = chunk.flatten().to_numpy(zero_copy_only=False).reshape(-1, width)
        start += len(chunk)
    return tiles


def _ragged(chunked: pa.ChunkedArray, dtype: Any) -> npt.NDArray[np.object_]:
    column = np.empty(len(chunked), dtype=np.object_)
    start = 0
    for chunk in chunked.chunks:
        lengths = pc.fill_null(pc.list_value_length(chunk), 0).to_numpy(zero_copy_only=False)
        values = np.asarray(chunk.flatten().to_numpy(zero_copy_only=False), dtype=dtype)
        stops = np.cumsum(lengths)
        for row, (lo, hi) in enumerate(zip(stops - lengths, stops, strict=True)):
            column[start + row] = values[lo:hi]
        start += len(chunk)
    return column
