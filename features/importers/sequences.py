"""Sequence files: `user item item ...` a line, oldest first, as the sequential-recommendation literature keeps its data.

A user may have several lines (also one item a line, as SASRec's files); positions count on over them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from features.errors import ImportFormatError
from features.importers.source import BadRow, RawBatch, RawDataset
from features.importers.text import open_path

BLOCK_LINES = 20_000


def read_sequences(path: Path) -> RawDataset:
    """Open a sequence file, blank- or tab-separated.

    Raises:
        ImportFormatError: it is no file.
    """
    if not path.is_file():
        raise ImportFormatError(f"{path} is not a file; the sequences format is one text file: user item item ... a line")

    def batches() -> Iterator[RawBatch]:
        seen: dict[str, int] = {}  # items of each user so far
        lines: list[bytes] = []
        first = 1
        try:
            with open_path(path)() as file:
                rest = b""
                while chunk := file.read(1 << 22):
                    parts = (rest + chunk).split(b"\n")
                    rest = parts.pop()
                    lines += parts
                    while len(lines) >= BLOCK_LINES:
                        yield _batch(lines[:BLOCK_LINES], first, path.name, seen)
                        first += BLOCK_LINES
                        lines = lines[BLOCK_LINES:]
                if rest:
                    lines.append(rest)
        except OSError as error:
            raise ImportFormatError(f"{path} cannot be read: {error}") from error
        for start in range(0, len(lines), BLOCK_LINES):
            yield _batch(lines[start : start + BLOCK_LINES], first + start, path.name, seen)

    return RawDataset(format="sequences", interactions=batches, columns=("user_id", "item_id", "position"))


def _batch(lines: list[bytes], first: int, file: str, seen: dict[str, int]) -> RawBatch:
    users: list[str] = []
    items: list[str] = []
    lengths: list[int] = []
    starts: list[int] = []
    numbers: list[int] = []
    bad: list[BadRow] = []
    for number, line in enumerate(lines, first):
        try:
            values = line.decode().split()
        except UnicodeDecodeError:
            bad.append(BadRow(number, "the line is not UTF-8 text", repr(line[:200])))
            continue
        if not values:
            continue
        if len(values) == 1:
            bad.append(BadRow(number, "the line has a user and no items", values[0]))
            continue
        user, count = values[0], len(values) - 1
        start = seen.get(user, 0)
        seen[user] = start + count
        users.append(user)
        lengths.append(count)
        starts.append(start)
        numbers.append(number)
        items += values[1:]
    length = np.array(lengths, dtype=np.int64)
    within = np.arange(len(items)) - np.repeat(np.cumsum(length) - length, length)
    table = pa.table(
        {
            "user_id": pa.array(users, pa.string()).take(pa.array(np.repeat(np.arange(len(users)), length))),
            "item_id": pa.array(items, pa.string()),
            "position": within + np.repeat(np.array(starts, dtype=np.int64), length),
        }
    )
    return RawBatch(table, file, np.repeat(np.array(numbers, dtype=np.int64), length), tuple(bad))
