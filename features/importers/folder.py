"""The dataset folder: `interactions.parquet` and, where known, `users.parquet` and `items.parquet`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from features.errors import ImportFormatError
from features.importers.source import RawBatch, RawDataset

BATCH_ROWS = 262_144
"""Rows read at once: bounded memory for files of any size."""


def read_folder(folder: Path) -> RawDataset:
    """Open a dataset folder, or a single interactions Parquet file.

    Raises:
        ImportFormatError: there is no `interactions.parquet`, or a file is no readable Parquet.
    """
    interactions = folder if folder.is_file() else folder / "interactions.parquet"
    if not interactions.is_file():
        raise ImportFormatError(f"{folder} has no interactions.parquet; a dataset folder needs one with user_id and item_id")
    file = _open(interactions)
    beside = folder.is_dir()

    def batches() -> Iterator[RawBatch]:
        row = 1
        try:
            for batch in _open(interactions).iter_batches(batch_size=BATCH_ROWS):
                yield RawBatch(pa.Table.from_batches([batch]), interactions.name, row)
                row += batch.num_rows
        except (pa.ArrowException, OSError) as error:
            raise ImportFormatError(f"{interactions} is damaged after row {row - 1}: {error}") from error

    return RawDataset(
        format="parquet",
        interactions=batches,
        columns=tuple(file.schema_arrow.names),
        items=_table(folder / "items.parquet") if beside else None,
        users=_table(folder / "users.parquet") if beside else None,
        expected_rows=file.metadata.num_rows,
    )


def _open(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise ImportFormatError(f"{path} cannot be read as Parquet: {error}") from error


def _table(path: Path) -> pa.Table | None:
    if not path.is_file():
        return None
    try:
        return _open(path).read()
    except (pa.ArrowException, OSError) as error:
        raise ImportFormatError(f"{path} cannot be read as Parquet: {error}") from error
