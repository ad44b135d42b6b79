"""Where an activity store's parts lie, which of them are current, and the writer's lock.

A part is `date=YYYY-MM-DD/part-<first>-<last>.parquet`, where the numbers are the transactions whose rows it holds. Compaction
writes one part that covers several; a part whose range lies within another's of the same date is superseded and skipped, so a
reader sees each row once at every moment, without a lock or a list of files to keep.

`LocalFolder` keeps parts in a folder, `features.store_remote.RemoteFolder` behind an fsspec URL.
"""

from __future__ import annotations

import fcntl
import os
import re
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import urlparse

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from features.errors import StoreError
from features.quiet_duckdb import connect

DATE = re.compile(r"^date=(\d{4}-\d{2}-\d{2})$")
_PART = re.compile(r"^part-(\d{10})-(\d{10})\.parquet$")

_SYNCS_AT_ONCE = 16


@dataclass(frozen=True, order=True)
class Part:
    """One data file: the transactions `first` to `last` of one date."""

    first: int
    last: int
    date: str
    size: int

    @property
    def place(self) -> str:
        """The file's path below the store's root."""
        return place(self.date, self.first, self.last)


def place(date: str, first: int, last: int) -> str:
    """Path below the store's root of the part of a date (ISO, UTC) that holds the transactions `first` to `last`."""
    return f"date={date}/part-{first:010d}-{last:010d}.parquet"


class PartFolder(Protocol):
    """A place for parts. A file is put whole or not at all, also over an older one; `OSError` where the place refuses."""

    def dates(self) -> list[str]:
        """Event dates that have files, oldest first."""

    def parts(self, date: str) -> list[Part]:
        """Current parts of one date, oldest first: those that no other part covers."""

    def files(self, date: str) -> list[tuple[str, int]]:
        """Places below the root and sizes of all files of one date."""

    def put(self, aside: Path, where: str) -> None:
        """Move a local file to its place below the root."""

    def remove(self, where: str) -> None:
        """Delete a file; none may be there."""

    def url(self, where: str) -> str:
        """What `connect`'s connections open it by."""

    def read(self, where: str, columns: list[str] | None = None, schema: pa.Schema | None = None) -> pa.Table:
        """A part's rows."""

    def connect(self) -> duckdb.DuckDBPyConnection:
        """A DuckDB connection that can open `url`s."""

    def note(self, name: str) -> bytes | None:
        """A small file that lies beside the parts, None where it does not exist."""

    def write_note(self, name: str, content: bytes) -> None:
        """Replace it; durable when this returns."""


class LocalFolder:
    """`PartFolder` in a folder of this machine."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def dates(self) -> list[str]:
        """See `PartFolder.dates`."""
        if not self.root.is_dir():
            return []
        found = (DATE.match(entry.name) for entry in os.scandir(self.root))
        return sorted(match.group(1) for match in found if match)

    def parts(self, date: str) -> list[Part]:
        """See `PartFolder.parts`."""
        return current_parts(date, ((os.path.basename(where), size) for where, size in self.files(date)))

    def files(self, date: str) -> list[tuple[str, int]]:
        """See `PartFolder.files`."""
        folder = f"date={date}"
        try:
            return [(f"{folder}/{entry.name}", entry.stat().st_size) for entry in os.scandir(self.root / folder)]
        except FileNotFoundError:
            # The folder does not exist, or a file went away while it was listed: list again without it.
            return self.files(date) if (self.root / folder).is_dir() else []

    def put(self, aside: Path, where: str) -> None:
        """See `PartFolder.put`."""
        (self.root / where).parent.mkdir(parents=True, exist_ok=True)
        os.replace(aside, self.root / where)

    def remove(self, where: str) -> None:
        """See `PartFolder.remove`."""
        (self.root / where).unlink(missing_ok=True)

    def url(self, where: str) -> str:
        """See `PartFolder.url`."""
        return str(self.root / where)

    def read(self, where: str, columns: list[str] | None = None, schema: pa.Schema | None = None) -> pa.Table:
        """See `PartFolder.read`."""
        return pq.read_table(self.root / where, columns=columns, partitioning=None, schema=schema)

    def connect(self) -> duckdb.DuckDBPyConnection:
        """See `PartFolder.connect`."""
        return connect()

    def note(self, name: str) -> bytes | None:
        """See `PartFolder.note`."""
        try:
            return (self.root / name).read_bytes()
        except FileNotFoundError:
            return None

    def write_note(self, name: str, content: bytes) -> None:
        """See `PartFolder.write_note`."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_durably(path, content)


def local_root(uri: str) -> Path | None:
    """The folder that a URI names on this machine; None for another protocol."""
    parsed = urlparse(uri)
    if "://" not in uri:
        return Path(uri)
    return Path(parsed.path) if parsed.scheme in ("file", "local") else None


def current_parts(date: str, files: Iterable[tuple[str, int]]) -> list[Part]:
    """The parts among files (name, size) that no other part covers, oldest first."""
    found = [
        Part(int(match.group(1)), int(match.group(2)), date, size)
        for name, size in files
        if (match := _PART.match(name)) is not None
    ]
    found.sort(key=lambda part: (part.first, -part.last))
    current: list[Part] = []
    for part in found:
        if not current or part.last > current[-1].last:
            current.append(part)
    return current


def write_durably(path: Path, content: bytes) -> None:
    """Replace a file at once; on disk when this returns."""
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_synced(paths: list[Path]) -> None:
    """Force written files to disk: many at a time, because file systems share a sync among those who wait for one."""
    if len(paths) <= 2:
        for path in paths:
            _sync(path)
        return
    with ThreadPoolExecutor(min(len(paths), _SYNCS_AT_ONCE)) as pool:
        list(pool.map(_sync, paths))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def writer_lock(path: Path, timeout_s: float) -> Iterator[None]:
    """The one writer's lock; it ends with the process that holds it, however that dies.

    Raises:
        StoreError: another process has held it for `timeout_s`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise StoreError(
                        f"another writer has held the lock {path} for {timeout_s:.0f} s; wait for it or stop it"
                    ) from None
                time.sleep(0.01)
        yield
    finally:
        os.close(descriptor)
