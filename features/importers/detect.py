"""Which reader opens a path: by the user's word, else by what is there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from features.errors import DatasetNotFoundError, ImportFormatError
from features.importers.folder import read_folder
from features.importers.source import RawDataset

FORMATS = ("auto", "movielens", "sequences", "csv", "parquet")


def open_source(source: str, fmt: str, *, cache: Path, mapping: Mapping[str, str]) -> RawDataset:
    """Open files for import.

    Args:
        source: path of a folder or file, or the name of a public dataset.
        fmt: one of `FORMATS`.
        cache: folder for downloads.
        mapping: canonical name -> column, from the user.

    Raises:
        DatasetNotFoundError: neither such a path nor such a name.
        ImportFormatError: the format is unknown, or does not fit what is there.
    """
    if fmt not in FORMATS:
        raise ImportFormatError(f"format {fmt!r} is not known; use one of {', '.join(FORMATS)}")
    path = Path(source).expanduser()
    if not path.exists():
        raise DatasetNotFoundError(f"there is no file or folder {source!r}")
    return read_folder(path)
