"""Deleting a person's rows from files that are not stores: Parquet tables of users, and the rejects of imports."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from features.errors import StoreError
from features.parquet_codec import PARQUET_CODEC
from features.person import Person
from features.store_files import writer_lock

WAIT_S = 120.0
"""How long one who takes people out of files waits for the others."""
_WORD = re.compile(r"[^\s,;|\t\"'{}\[\]]+")


@contextmanager
def writing_alone(root: Path) -> Iterator[None]:
    """Whoever writes files below a dataset's folder anew without some people does it in here: of two at once, the later one would
    bring back those that the other has taken out.

    Raises:
        StoreError: somebody else has been at it for `WAIT_S`.
    """
    with writer_lock(root / "erasing.lock", WAIT_S):
        yield


def erase_from_parquet(folder: Path, person: Person) -> int:
    """Rewrite the Parquet files below a folder that hold a person's rows; returns how many rows went.

    Files in folders with a leading dot may still be written: whoever puts them in place looks at erasures then.

    Raises:
        StoreError: a file cannot be read or rewritten.
    """
    deleted = 0
    for path in sorted(folder.rglob("*.parquet")):
        try:
            if "user_id" not in pq.read_schema(path).names:
                continue
            if not pc.any(person.rows(pq.read_table(path, columns=["user_id"], partitioning=None))).as_py():
                continue
            rows = pq.read_table(path, partitioning=None)
            kept = rows.filter(pc.invert(person.rows(rows)))
            replace_rows(path, kept)
            deleted += rows.num_rows - kept.num_rows
        except pa.ArrowInvalid as error:
            if not any(part.startswith(".") for part in path.relative_to(folder).parts[:-1]):
                raise StoreError(f"{path} cannot be read: {error}; delete it, or make it again") from error
        except OSError as error:
            raise StoreError(f"{path} cannot be rewritten: {error}; free space or check permissions") from error
    return deleted


def replace_rows(path: Path, rows: pa.Table) -> None:
    """Let a Parquet file hold these rows instead; who reads it meanwhile sees the old ones or the new ones."""
    temporary = path.with_suffix(".tmp")
    pq.write_table(rows, temporary, compression=PARQUET_CODEC)
    os.replace(temporary, path)


def erase_from_rejects(folder: Path, person: Person) -> int:
    """Take lines in which the user's id stands out of rejects files; returns how many."""
    deleted = 0
    for path in sorted(folder.glob("rejects-*.csv")):
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            lines = list(csv.reader(file))
        kept = [line for line in lines if not any(person.user_id in _words(cell) for cell in line)]
        if len(kept) < len(lines):
            temporary = path.with_suffix(".tmp")
            with temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
                csv.writer(file).writerows(kept)
            os.replace(temporary, path)
            deleted += len(lines) - len(kept)
    return deleted


def _words(text: str) -> set[str]:
    return {text, *_WORD.findall(text)}
