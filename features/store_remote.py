"""Parts of an activity store behind an fsspec URL, such as `s3://bucket/prefix/dataset`.

Asks little of the other side, so that object stores will do: whole files put, read, listed and deleted; nothing is renamed,
appended to or locked there. What a writer needs beside the parts (journal, index, lock) stays on its own machine, so one machine
writes.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import duckdb
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from features.errors import StoreError
from features.quiet_duckdb import connect
from features.shared_files import SharedFiles
from features.store_files import DATE, Part, current_parts


class RemoteFolder:
    """`PartFolder` behind a URL.

    Args:
        url: of the store's root.

    Raises:
        StoreError: no such protocol, or what it needs is not installed.
    """

    def __init__(self, url: str) -> None:
        try:
            # Listings must be of now: another process may have written.
            self._fs, path = fsspec.url_to_fs(url, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise StoreError(f"activity store {url!r}: {error}; use a folder, or a URL that fsspec can open here") from None
        self._root = path.rstrip("/")
        self._protocol = url.partition("://")[0]

    def dates(self) -> list[str]:
        """See `PartFolder.dates`."""
        found = (DATE.match(name) for name, _ in self._list(self._root))
        return sorted(match.group(1) for match in found if match)

    def parts(self, date: str) -> list[Part]:
        """See `PartFolder.parts`."""
        return current_parts(date, self._list(f"{self._root}/date={date}"))

    def files(self, date: str) -> list[tuple[str, int]]:
        """See `PartFolder.files`."""
        return [(f"date={date}/{name}", size) for name, size in self._list(f"{self._root}/date={date}")]

    def put(self, aside: Path, where: str) -> None:
        """See `PartFolder.put`."""
        self._fs.makedirs(f"{self._root}/{where}".rpartition("/")[0], exist_ok=True)
        self._fs.put_file(str(aside), f"{self._root}/{where}")
        aside.unlink()

    def remove(self, where: str) -> None:
        """See `PartFolder.remove`."""
        with contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(f"{self._root}/{where}")

    def url(self, where: str) -> str:
        """See `PartFolder.url`."""
        return f"{self._protocol}://{self._root}/{where}"

    def read(self, where: str, columns: list[str] | None = None, schema: pa.Schema | None = None) -> pa.Table:
        """See `PartFolder.read`."""
        with self._fs.open(f"{self._root}/{where}", "rb") as file:
            return pq.read_table(file, columns=columns, partitioning=None, schema=schema)

    def connect(self) -> duckdb.DuckDBPyConnection:
        """See `PartFolder.connect`."""
        connection = connect()
        connection.register_filesystem(SharedFiles(self._fs, self._protocol))
        return connection

    def note(self, name: str) -> bytes | None:
        """See `PartFolder.note`."""
        try:
            return bytes(self._fs.cat_file(f"{self._root}/{name}"))
        except FileNotFoundError:
            return None

    def write_note(self, name: str, content: bytes) -> None:
        """See `PartFolder.write_note`."""
        path = f"{self._root}/{name}"
        self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)
        self._fs.pipe_file(path, content)

    def _list(self, path: str) -> list[tuple[str, int]]:
        try:
            found = self._fs.ls(path, detail=True)
        except FileNotFoundError:
            return []
        return [(os.path.basename(one["name"].rstrip("/")), int(one["size"] or 0)) for one in found]
