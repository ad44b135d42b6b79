"""DuckDB reads remote files with several threads: each gets the bytes that it asked for."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileOpener, LocalFileSystem

from features.shared_files import SharedFile, SharedFiles


class FarFile(LocalFileOpener):
    """A file that is far away: between `seek` and `read`, other threads have their turn."""

    def seek(self, *arguments: Any) -> int:
        position = int(self.f.seek(*arguments))
        time.sleep(0.001)
        return position


class Far(LocalFileSystem):
    protocol = ("far",)
    cachable = False

    def _open(self, path: str, mode: str = "rb", **options: Any) -> FarFile:
        return FarFile(path, mode, fs=self)


def asked(files: AbstractFileSystem, path: Path) -> pa.Table:
    with duckdb.connect() as connection:
        connection.register_filesystem(files)
        return connection.sql(f"SELECT c1, c7, c11 FROM read_parquet('far://{path}') WHERE c3 >= '5'").to_arrow_table()


def right(files: AbstractFileSystem, path: Path, expected: pa.Table) -> bool:
    try:
        return bool(asked(files, path).sort_by("c1").equals(expected.sort_by("c1")))
    except duckdb.Error:
        return False


def test_duckdb_reads_a_remote_file_right(tmp_path: Path, rng: np.random.Generator) -> None:
    path = tmp_path / "events.parquet"
    table = pa.table({f"c{n}": [str(value) for value in rng.integers(0, 10**9, 3000)] for n in range(12)})
    pq.write_table(table, path, row_group_size=500)
    expected = table.filter(pa.compute.greater_equal(table["c3"], "5")).select(["c1", "c7", "c11"])
    for _ in range(3):
        assert right(SharedFiles(Far(), "far"), path, expected)
    # The reason for the wrapper: without it, threads read where others went. Once this fails, DuckDB needs it no more.
    assert not all(right(Far(), path, expected) for _ in range(20))


def test_each_thread_has_its_own_position(tmp_path: Path) -> None:
    path = tmp_path / "bytes"
    content = np.arange(256, dtype=np.uint8).tobytes() * 4
    path.write_bytes(content)
    file = SharedFile(Far().open(str(path)))

    def read(start: int) -> bytes:
        file.seek(start)
        first = file.read(100)
        assert file.tell() == start + 100
        return first + file.read(28)

    starts = list(range(0, 896, 7))
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(read, starts)) == [content[start : start + 128] for start in starts]
    assert file.tell() == 0, "this thread has read nothing"
    assert file.read() == content
    file.close()
    with pytest.raises(ValueError, match="closed"):
        file.read(1)
