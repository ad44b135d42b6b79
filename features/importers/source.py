"""What every reader gives: raw columns in batches, as the files hold them. Judging and typing them is `rows`' work."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa


@dataclass(frozen=True)
class BadRow:
    """A row that the reader itself could not take apart.

    Args:
        number: 1-based number of the row in its file; a header counts as a row.
        reason: what is wrong.
        text: the row as far as it can be shown.
    """

    number: int
    reason: str
    text: str


@dataclass(frozen=True)
class RawBatch:
    """Some rows of an interactions file.

    Args:
        table: columns under the file's own names.
        file: the file's name, for the rejects file.
        row_numbers: (n,) 1-based numbers of the rows in the file; a header counts as a row.
        bad_rows: rows between them that could not be taken apart.
    """

    table: pa.Table
    file: str
    row_numbers: npt.NDArray[np.int64]
    bad_rows: tuple[BadRow, ...] = ()


@dataclass(frozen=True)
class RawTable:
    """A whole catalogue file.

    Args:
        table: columns under the file's own names.
        file: the file's name, for the rejects file.
        bad_rows: rows that could not be taken apart.
        row_numbers: (n,) 1-based numbers of the rows in the file, a header counts as a row; None where they are 1 to n.
    """

    table: pa.Table
    file: str
    bad_rows: tuple[BadRow, ...] = ()
    row_numbers: npt.NDArray[np.int64] | None = None


@dataclass(frozen=True)
class RawDataset:
    """A dataset as its files hold it.

    Args:
        format: name of the format that read it.
        interactions: starts reading; each call reads from the beginning.
        columns: names of the interactions' columns.
        items, users: catalogue files; None where there is no such file.
        expected_rows: how many interactions to expect, for progress; None where unknown.
        meanings: canonical name -> column of the interactions, where the format says it and the names do not.
        notes: what the user should know about how the files were read.
    """

    format: str
    interactions: Callable[[], Iterator[RawBatch]]
    columns: tuple[str, ...]
    items: RawTable | None = None
    users: RawTable | None = None
    expected_rows: int | None = None
    meanings: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
