"""Rows of large tables in another order, quickly: a column of nulls stays one, and columns are taken side by side."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import pyarrow as pa

THREADS = min(4, os.cpu_count() or 1)

_FEW_ROWS = 20_000
"""Up to so many rows, starting threads takes longer than they save."""


def take_rows(table: pa.Table, rows: npt.NDArray[np.int64]) -> pa.Table:
    """The rows of those numbers, in that order; one chunk a column."""
    indices = pa.array(rows)

    def taken(column: pa.ChunkedArray) -> pa.Array:
        if column.null_count == len(column):
            return pa.nulls(len(rows), column.type)
        return column.combine_chunks().take(indices)

    if len(rows) <= _FEW_ROWS:
        return pa.table([taken(column) for column in table.columns], schema=table.schema)
    with ThreadPoolExecutor(THREADS) as pool:
        return pa.table(list(pool.map(taken, table.columns)), schema=table.schema)
