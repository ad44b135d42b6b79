"""Files of an activity store: where a partition's parts lie, which of them are current, and the writer's lock.

A part is `date=YYYY-MM-DD/part-<first>-<last>.parquet`, where the numbers are the transactions whose rows it holds. Compaction
writes one part that covers several; a part whose range lies within another's of the same date is superseded and skipped, so a
reader sees each row once at every moment, without a lock or a list of files to keep.
"""

from __future__ import annotations

import fcntl
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from features.errors import StoreError

_PART = re.compile(r"^part-(\d{10})-(\d{10})\.parquet$")
_DATE = re.compile(r"^date=(\d{4}-\d{2}-\d{2})$")


@dataclass(frozen=True, order=True)
class Part:
    """One data file: the transactions `first` to `last` of one date."""

    first: int
    last: int
    path: Path

    @classmethod
    def name(cls, first: int, last: int) -> str:
        """File name of a part."""
        return f"part-{first:010d}-{last:010d}.parquet"


def partition(root: Path, date: str) -> Path:
    """Folder of one event date (ISO, UTC)."""
    return root / f"date={date}"


def dates(root: Path) -> list[str]:
    """Event dates that have a folder, oldest first."""
    if not root.is_dir():
        return []
    found = (_DATE.match(entry.name) for entry in os.scandir(root))
    return sorted(match.group(1) for match in found if match)


def parts(root: Path, date: str) -> list[Part]:
    """Current parts of one date, oldest first: those that no other part covers."""
    try:
        names = [entry.name for entry in os.scandir(partition(root, date))]
    except FileNotFoundError:
        return []
    found = [
        Part(int(match.group(1)), int(match.group(2)), partition(root, date) / name)
        for name in names
        if (match := _PART.match(name)) is not None
    ]
    if len(found) < 2:
        return found
    found.sort(key=lambda part: (part.first, -part.last))
    current: list[Part] = []
    for part in found:
        if not current or part.last > current[-1].last:
            current.append(part)
    return current


def write_synced(paths: list[Path]) -> None:
    """Force written files to disk: one by one while they are few, else by one sync of the machine."""
    if len(paths) > 32:
        os.sync()
        return
    for path in paths:
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
                        f"another writer has held the activity store's lock {path} for {timeout_s:.0f} s; wait for it or stop it"
                    ) from None
                time.sleep(0.01)
        yield
    finally:
        os.close(descriptor)
