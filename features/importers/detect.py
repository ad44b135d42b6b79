"""Which reader opens a path: by the user's word, else by what is there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from features.errors import DatasetNotFoundError, ImportFormatError
from features.importers.columns import FOLDER
from features.importers.csvs import catalogue_text, interactions_file, read_csv
from features.importers.folder import catalogue_parquet, is_dataset_folder, read_folder
from features.importers.movielens import is_movielens, read_movielens
from features.importers.named import known_names, read_named
from features.importers.sequences import read_sequences
from features.importers.source import RawDataset
from features.importers.text import first_lines, open_path

FORMATS = ("auto", "movielens", "sequences", "csv", "parquet")

_PARQUET_MAGIC = b"PAR1"


def open_source(source: str, fmt: str, *, cache: Path, mapping: Mapping[str, str]) -> RawDataset:
    """Open files for import.

    Args:
        source: path of a folder or file, or the name of a public dataset.
        fmt: one of `FORMATS`.
        cache: folder for downloads.
        mapping: canonical name -> column, from the user.

    Raises:
        DatasetNotFoundError: neither such a path nor such a name, or a public dataset that cannot be fetched.
        ImportFormatError: the format is unknown, or does not fit what is there.
    """
    if fmt not in FORMATS:
        raise ImportFormatError(f"format {fmt!r} is not known; use one of {', '.join(FORMATS)}")
    path = Path(source).expanduser()
    if not path.exists():
        if source in known_names() and fmt in ("auto", "movielens"):
            return read_named(source, cache)
        raise DatasetNotFoundError(
            f"there is no file or folder {source!r} and no public dataset of that name; known names: {', '.join(known_names())}"
        )
    found = detect(path) if fmt == "auto" else fmt
    if found == "movielens":
        return read_movielens(path)
    if found == "sequences":
        return read_sequences(path)
    raw = read_csv(path, mapping) if found == "csv" else read_folder(path)
    return _completed(raw, path) if path.is_dir() else raw


def _completed(raw: RawDataset, folder: Path) -> RawDataset:
    """With the items and users that stand beside the interactions in the other of the two forms, text or Parquet."""
    beside = catalogue_parquet if raw.format == "csv" else catalogue_text
    return replace(raw, items=raw.items or beside(folder, "item"), users=raw.users or beside(folder, "user"))


def detect(path: Path) -> str:
    """The format of what is at a path.

    Raises:
        ImportFormatError: nothing there looks like one; says what would.
    """
    if path.is_dir():
        if is_dataset_folder(path):
            return "parquet"
        if is_movielens(path):
            return "movielens"
        if interactions_file(path) is not None:
            return "csv"
        raise ImportFormatError(
            f"nothing in {path} looks like a dataset: expected interactions.parquet, interactions.csv, or a MovieLens release "
            f"(u.data, ratings.dat, or ratings.csv with movies.csv). {FOLDER}"
        )
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise ImportFormatError(f"{path} cannot be read: {error}") from error
    if magic == _PARQUET_MAGIC or path.suffix == ".parquet":
        return "parquet"
    if path.name in ("u.data", "ratings.dat") or is_movielens(path):
        return "movielens"
    if magic[:2] == b"PK":
        raise ImportFormatError(f"{path} is a zip that holds no MovieLens release: unpack it and import the folder or file in it")
    return "sequences" if path.suffix not in (".csv", ".tsv") and _is_sequences(path) else "csv"


def _is_sequences(path: Path) -> bool:
    """Whether most lines are blank-separated ids without other separators."""
    lines = [line.strip() for line in first_lines(open_path(path), path.name)[:50]]
    separated = any(mark in line for line in lines for mark in (",", ";", "|", "\t", "::"))
    return bool(lines) and not separated and sum(" " in line for line in lines) * 2 > len(lines)
