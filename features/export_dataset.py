"""Exporting a dataset as a folder of Parquet that imports to the same again.

Event times carry the history position in microseconds (see `histories`); here it is taken out again, so that the import puts it
back. A user whose stored positions do not follow the stored order (several imports, live events) is numbered anew by it: the times
that come out of the import are the stored ones either way. `event_id` goes along, so that an import into the same dataset adds
nothing.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from features.activity_store import ActivityStore
from features.catalogue import Catalogue
from features.errors import DatasetNotFoundError, StoreError
from features.parquet_codec import PARQUET_CODEC
from features.paths import DatasetPaths
from features.schema import Attribute

FILES = ("interactions.parquet", "items.parquet", "users.parquet")

# Columns that are written only where some event has them: stored name -> name in the folder.
_OPTIONAL = {
    "session_id": "session_id",
    "value": "value",
    "split": "split",
    "recommendation_id": "recommendation_id",
    "position": "slate_position",
    "context": "context",
}
_ORDERED = """
WITH placed AS (
    SELECT *, coalesce(user_id, session_id) AS who,
        row_number() OVER w - 1 AS place,
        history_position > coalesce(lag(history_position) OVER w, -1) AS follows
    FROM events WINDOW w AS (PARTITION BY coalesce(user_id, session_id) ORDER BY timestamp, event_id)
), numbered AS (
    SELECT *, CASE WHEN bool_and(coalesce(follows, false)) OVER (PARTITION BY who) THEN history_position ELSE place END AS history
    FROM placed
)
"""


@dataclass(frozen=True)
class ExportReport:
    """What an export wrote."""

    dataset: str
    folder: str
    interactions: int
    items: int
    users: int


def export_dataset(paths: DatasetPaths, catalogue: Catalogue, folder: Path, *, overwrite: bool = False) -> ExportReport:
    """Write a dataset folder.

    Args:
        folder: made where missing.
        overwrite: replace the files of an earlier export.

    Raises:
        DatasetNotFoundError: the dataset has no activity.
        StoreError: the folder holds a dataset already, or cannot be written.
    """
    store = ActivityStore.of(paths)
    if not store.files():
        raise DatasetNotFoundError(f"dataset {paths.dataset!r} has no activity under {paths.home}: there is nothing to export")
    existing = [name for name in FILES if (folder / name).exists()]
    if existing and not overwrite:
        raise StoreError(f"{folder} holds {existing[0]} already; choose another folder, or pass --overwrite")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in existing:
            (folder / name).unlink()
        interactions = _write_interactions(store, folder / FILES[0], has_times=catalogue.schema().has_times)
        items = _write(_items(catalogue), folder / FILES[1])
        users = _write(_users(catalogue), folder / FILES[2]) if catalogue.count_users() else 0
    except (OSError, duckdb.IOException) as error:
        raise StoreError(f"{folder} cannot be written: {error}") from error
    return ExportReport(paths.dataset, str(folder), interactions, items, users)


def _write_interactions(store: ActivityStore, path: Path, *, has_times: bool) -> int:
    with store.connect() as connection:
        connection.execute(f"SET temp_directory = '{str(path.parent).replace(chr(39), chr(39) * 2)}/.spill'")
        connection.from_parquet(store.files(), hive_partitioning=False).create_view("events")
        (used,) = connection.sql("SELECT " + ", ".join(f"count({name}) > 0" for name in _OPTIONAL) + " FROM events").fetchall()
        columns = ["event_id", "user_id", "item_id", "action", "history::INTEGER AS position"]
        if has_times:
            columns += ["timestamp - to_microseconds(history) AS timestamp", "timestamp_imputed"]
        columns += [f"{name} AS {out}" for (name, out), present in zip(_OPTIONAL.items(), used, strict=True) if present]
        reader = connection.sql(
            f"{_ORDERED} SELECT {', '.join(columns)} FROM numbered ORDER BY who, numbered.timestamp, event_id"
        ).to_arrow_reader(1 << 18)
        temporary, rows = path.with_suffix(".tmp"), 0
        with pq.ParquetWriter(temporary, reader.schema, compression=PARQUET_CODEC) as writer:
            for batch in reader:
                writer.write_batch(batch)
                rows += batch.num_rows
        os.replace(temporary, path)
        return rows


def _items(catalogue: Catalogue) -> pa.Table:
    table, attributes = catalogue.items(), catalogue.schema().item_attributes
    keep = any(attribute.name == "available" for attribute in attributes) or not pc.all(table["available"]).as_py()
    if not keep:
        table = table.drop_columns(["available"])
    return table.rename_columns([_source_name(name, attributes) for name in table.column_names])


def _users(catalogue: Catalogue) -> pa.Table:
    table, attributes = catalogue.users(), catalogue.schema().user_attributes
    return table.rename_columns([_source_name(name, attributes) for name in table.column_names])


def _source_name(name: str, attributes: tuple[Attribute, ...]) -> str:
    return next((attribute.source_name for attribute in attributes if attribute.name == name), name)


def _write(table: pa.Table, path: Path) -> int:
    temporary = path.with_suffix(".tmp")
    pq.write_table(table, temporary, compression=PARQUET_CODEC)
    os.replace(temporary, path)
    return int(table.num_rows)
