"""The dataset folder: `interactions.parquet` and, where known, `users.parquet` and `items.parquet`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from features.errors import ImportFormatError
from features.importers.source import RawBatch, RawDataset, RawTable

BATCH_ROWS = 262_144
"""Rows read at once: bounded memory for files of any size."""


def read_folder(path: Path) -> RawDataset:
    """Open a dataset folder, a single interactions Parquet file, or a folder of Parquet parts (`interactions.parquet` may be one).

    Raises:
        ImportFormatError: there is no interactions file, or a file is no readable Parquet.
    """
    named = path / "interactions.parquet"
    parts = _parts(named if named.exists() else path)
    if not parts:
        raise ImportFormatError(f"{path} has no interactions.parquet; a dataset folder needs one with user_id and item_id")
    opened = [_open(part) for part in parts]

    def batches() -> Iterator[RawBatch]:
        for part in parts:
            row = 1
            try:
                for batch in _open(part).iter_batches(batch_size=BATCH_ROWS):
                    yield RawBatch(pa.Table.from_batches([batch]), part.name, np.arange(row, row + batch.num_rows))
                    row += batch.num_rows
            except (pa.ArrowException, OSError) as error:
                raise ImportFormatError(f"{part} is damaged after row {row - 1}: {error}") from error

    return RawDataset(
        format="parquet",
        interactions=batches,
        columns=tuple(opened[0].schema_arrow.names),
        items=catalogue_parquet(path, "item"),
        users=catalogue_parquet(path, "user"),
        expected_rows=sum(file.metadata.num_rows for file in opened),
    )


def is_dataset_folder(path: Path) -> bool:
    """Whether a path is a dataset folder or Parquet."""
    return (path / "interactions.parquet").exists() or bool(_parts(path))


def catalogue_parquet(folder: Path, side: Literal["item", "user"]) -> RawTable | None:
    """The `items.parquet` or `users.parquet` of a folder; None where there is none.

    Raises:
        ImportFormatError: it is no readable Parquet.
    """
    path = folder / f"{side}s.parquet"
    if not path.is_file():
        return None
    try:
        return RawTable(_open(path).read(), path.name)
    except (pa.ArrowException, OSError) as error:
        raise ImportFormatError(f"{path} cannot be read as Parquet: {error}") from error


def _parts(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        return []
    beside = ("items.parquet", "users.parquet")
    return sorted(part for part in path.rglob("*.parquet") if part.is_file() and part.name not in beside)


def _open(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise ImportFormatError(f"{path} cannot be read as Parquet: {error}") from error
