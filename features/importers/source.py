"""What every reader gives: raw columns in batches, as the files hold them. Judging and typing them is `rows`' work."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa


@dataclass(frozen=True)
class BadRow:
    """A row that the reader itself could not take apart.

    Args:
        number: 1-based number of the row in its file (the line for text files).
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
        first_row: 1-based number of the first row in its file (the line for text files).
        row_numbers: numbers of all rows, where they do not simply follow the first.
        bad_rows: rows between them that could not be taken apart.
    """

    table: pa.Table
    file: str
    first_row: int
    row_numbers: Any = None
    bad_rows: tuple[BadRow, ...] = ()


@dataclass(frozen=True)
class RawDataset:
    """A dataset as its files hold it.

    Args:
        format: name of the format that read it.
        interactions: starts reading; each call reads from the beginning.
        columns: names of the interactions' columns.
        items, users: catalogue tables with the files' own column names; None where there is no such file.
        expected_rows: how many interactions to expect, for progress; None where unknown.
        aliases: further names that mean a canonical column in this format (`{"Score": "value"}`).
    """

    format: str
    interactions: Callable[[], Iterator[RawBatch]]
    columns: tuple[str, ...]
    items: pa.Table | None = None
    users: pa.Table | None = None
    expected_rows: int | None = None
    aliases: dict[str, str] = field(default_factory=dict)
