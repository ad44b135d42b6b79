"""Holds the rows of a file until they can be ordered user by user, in bounded memory: past a limit they go to disk by user."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc as ipc

from features.histories import ROW_SCHEMA
from features.row_order import take_rows

MEMORY_ROWS = 2_000_000
"""Rows held and ordered at once; about 1 GB at the peak of ordering."""

BUCKETS = 128
"""Files by user that rows are spread over once they exceed memory; up to BUCKETS x MEMORY_ROWS rows stay within it."""


class RowBuffer:
    """Rows of `ROW_SCHEMA` in, groups of whole users out. A context manager: leaving it removes its scratch files.

    Args:
        scratch: folder for scratch files; created when needed.
        memory_rows: rows to hold in memory.
    """

    def __init__(self, scratch: Path, memory_rows: int = MEMORY_ROWS) -> None:
        self._scratch = scratch
        self._memory_rows = memory_rows
        self._held: list[pa.Table] = []
        self._held_rows = 0
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._writers: dict[int, ipc.RecordBatchFileWriter] = {}
        self._bucket_rows = np.zeros(BUCKETS, dtype=np.int64)
        self.rows = 0

    def __enter__(self) -> RowBuffer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for writer in self._writers.values():
            writer.close()
        if self._folder is not None:
            self._folder.cleanup()

    def add(self, rows: pa.Table) -> None:
        """Take rows, in file order."""
        self._held.append(rows)
        self._held_rows += rows.num_rows
        self.rows += rows.num_rows
        if self._held_rows >= self._memory_rows:
            self._spill()

    def groups(self) -> Iterator[pa.Table]:
        """Tables that together hold every row once, all rows of a user in one of them and in file order."""
        if self._folder is None:
            if self._held:
                yield pa.concat_tables(self._held)
            return
        self._spill()
        for writer in self._writers.values():
            writer.close()
        files = sorted(self._writers)
        self._writers = {}
        group: list[int] = []
        for bucket in files:
            if group and self._bucket_rows[[*group, bucket]].sum() > self._memory_rows:
                yield self._read(group)
                group = []
            group.append(bucket)
        if group:
            yield self._read(group)

    def _spill(self) -> None:
        if not self._held:
            return
        if self._folder is None:
            self._scratch.mkdir(parents=True, exist_ok=True)
            self._folder = tempfile.TemporaryDirectory(dir=self._scratch, prefix="import-")
        rows = pa.concat_tables(self._held)
        self._held, self._held_rows = [], 0
        who = pc.coalesce(rows["user_id"], rows["session_id"]).combine_chunks().dictionary_encode()
        hashes = pd.util.hash_array(who.dictionary.to_numpy(zero_copy_only=False), categorize=False)
        bucket_of = (hashes % BUCKETS)[who.indices.to_numpy()].astype(np.int64)
        order = np.argsort(bucket_of, kind="stable")
        sizes = np.bincount(bucket_of, minlength=BUCKETS)
        rows = take_rows(rows, order)
        start = 0
        for bucket in np.flatnonzero(sizes):
            writer = self._writers.get(int(bucket))
            if writer is None:
                writer = ipc.new_file(str(self._path(int(bucket))), ROW_SCHEMA, options=ipc.IpcWriteOptions(compression="lz4"))
                self._writers[int(bucket)] = writer
            writer.write_table(rows.slice(start, int(sizes[bucket])))
            start += int(sizes[bucket])
        self._bucket_rows += sizes

    def _path(self, bucket: int) -> Path:
        if self._folder is None:
            raise ValueError("no rows were spilled")
        return Path(self._folder.name) / f"{bucket:03d}.arrow"

    def _read(self, buckets: list[int]) -> pa.Table:
        tables = []
        for bucket in buckets:
            with ipc.open_file(str(self._path(bucket))) as reader:
                tables.append(reader.read_all())
        return pa.concat_tables(tables)
