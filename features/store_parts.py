"""What goes into an activity store's parts: rows made to fit the schema, split by event date, written as Parquet."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from features.errors import StoreError
from features.events import EVENT_SCHEMA
from features.parquet_codec import PARQUET_CODEC
from features.row_order import THREADS, take_rows

_DAY_US = 86_400_000_000
_REPEATING = [name for name in EVENT_SCHEMA.names if pa.types.is_string(EVENT_SCHEMA.field(name).type) and name != "event_id"]


def conform(events: pa.Table) -> pa.Table:
    columns = []
    for field in EVENT_SCHEMA:
        if field.name in events.column_names:
            columns.append(events[field.name])
        elif field.nullable:
            columns.append(pa.nulls(events.num_rows, field.type))
        else:
            raise StoreError(f"events lack the column {field.name!r}")
    extra = set(events.column_names) - set(EVENT_SCHEMA.names)
    if extra:
        raise StoreError(f"events have the unknown column {sorted(extra)[0]!r}; allowed: {', '.join(EVENT_SCHEMA.names)}")
    for field, column in zip(EVENT_SCHEMA, columns, strict=True):
        if not field.nullable and column.null_count:
            raise StoreError(f"events have no value in {column.null_count} rows of {field.name!r}")
    try:
        return pa.table(columns, names=EVENT_SCHEMA.names).cast(EVENT_SCHEMA)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, ValueError) as error:
        raise StoreError(f"events do not fit the schema: {error}") from error


def by_date(events: pa.Table) -> list[tuple[str, pa.Table]]:
    """The rows of each UTC event date, dates ascending; rows of a date keep their order."""
    day = np.floor_divide(pc.cast(events["timestamp"], pa.int64()).to_numpy(), _DAY_US)
    order = np.argsort(day, kind="stable")
    table = events if (order[1:] > order[:-1]).all() else take_rows(events, order)
    day = day[order]
    starts = np.flatnonzero(np.diff(day, prepend=day[0] - 1))
    stops = np.append(starts[1:], len(day))
    table = table.combine_chunks()
    names = [str(np.datetime64(int(day[start]), "D")) for start in starts]
    return [(name, table.slice(start, stop - start)) for name, start, stop in zip(names, starts, stops, strict=True)]


def write_parts(parts: Sequence[tuple[pa.Table, Path]]) -> None:
    """Write parts, several at a time."""
    if len(parts) == 1:
        write_part(*parts[0])
        return
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(lambda part: write_part(*part), parts))


def write_part(rows: pa.Table, path: Path) -> None:
    # Statistics and dictionaries of a part with few rows cost more than the rows; ids never repeat.
    large = rows.num_rows >= 1000
    pq.write_table(
        rows,
        path,
        compression=PARQUET_CODEC,
        use_dictionary=_REPEATING if large else False,
        write_statistics=["timestamp"] if large else False,
        store_schema=False,
    )
