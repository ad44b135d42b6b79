"""Remote files that DuckDB's threads may share.

DuckDB reads an fsspec file by `seek`, then `read`, and several of its threads do so on one file object at a time: one then gets
the bytes of where another went, which ends in errors about broken Parquet or in wrong values. Here each thread has its own
position in a file, and nothing comes between going there and reading.
"""

from __future__ import annotations

import threading
from typing import Any

from fsspec import AbstractFileSystem


class SharedFiles(AbstractFileSystem):
    """Reads what another file system holds: to be registered with DuckDB in its place.

    Args:
        files: the other file system.
        protocol: that DuckDB shall use it for.
    """

    cachable = False

    def __init__(self, files: AbstractFileSystem, protocol: str) -> None:
        super().__init__()
        self._files, self.protocol = files, protocol

    def open(self, path: str, mode: str = "rb") -> SharedFile:
        """Open a file of the other file system, for several threads."""
        return SharedFile(self._files.open(path, mode))

    def info(self, path: str) -> dict[str, Any]:
        """See `fsspec.AbstractFileSystem.info`."""
        return dict(self._files.info(path))

    def modified(self, path: str) -> Any:
        """See `fsspec.AbstractFileSystem.modified`."""
        return self._files.modified(path)


class SharedFile:
    """A file, open for reading, in which each thread has its own position.

    Args:
        file: nothing else may read it.
    """

    def __init__(self, file: Any) -> None:
        self._file = file
        self._alone = threading.Lock()
        self._here = threading.local()

    def seek(self, offset: int) -> None:
        """Set this thread's position, in bytes."""
        self._here.position = offset

    def tell(self) -> int:
        """This thread's position, in bytes."""
        return int(getattr(self._here, "position", 0))

    def read(self, size: int = -1) -> bytes:
        """Up to `size` bytes from this thread's position on."""
        with self._alone:
            self._file.seek(self.tell())
            found = bytes(self._file.read(size))
        self._here.position = self.tell() + len(found)
        return found

    def close(self) -> None:
        """Close the file for all threads."""
        self._file.close()
