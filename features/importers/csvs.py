"""CSV and its relatives: one interactions file, or a folder with items and users beside it; RecBole's atomic files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from features.errors import ImportFormatError
from features.importers.columns import INTERACTION_ALIASES, ITEM_ALIASES, plain_name
from features.importers.guess import guess_text
from features.importers.source import RawDataset, RawTable
from features.importers.text import open_path, read_table, sniff, stream

_SUFFIXES = (".csv", ".tsv", ".txt", ".dat", ".inter")
_INTERACTIONS = ("interactions", "ratings", "events", "reviews", "activity")


def read_csv(path: Path, mapping: Mapping[str, str]) -> RawDataset:
    """Open a CSV file or folder.

    Without a header the columns are guessed from their values; with one, names and `--map` decide.

    Args:
        path: a file, or a folder with `interactions.csv` (or `ratings.csv`, `events.csv`, ...), `items.csv`, `users.csv`.
        mapping: canonical name -> column, from the user.

    Raises:
        ImportFormatError: no such file, no columns, or nothing in it.
    """
    file = interactions_file(path)
    if file is None:
        raise ImportFormatError(
            f"{path} has no interactions file; call it interactions.csv, with items.csv and users.csv beside it"
        )

    opener = open_path(file)
    form = sniff(opener, file.name)
    meanings: dict[str, str] = {}
    notes: tuple[str, ...] = ()
    if not form.has_header and not {"user_id", "item_id"} <= set(mapping):
        guess = guess_text(opener, file.name, form)
        meanings = {name: column for name, column in guess.mapping.items() if column not in mapping.values()}
        shown = ", ".join(f"{name}={column}" for name, column in meanings.items())
        notes = (f"{file.name} has no header; columns were guessed from their values: {shown}; correct a wrong one with --map",)
    return RawDataset(
        format="csv",
        interactions=lambda: stream(opener, file.name, form),
        columns=form.columns,
        items=_beside(path, file, "item"),
        users=_beside(path, file, "user"),
        meanings=meanings,
        notes=notes,
    )


def interactions_file(path: Path) -> Path | None:
    """The interactions file of a CSV path: the file itself, or the folder's."""
    if path.is_file():
        return path
    if not path.is_dir():
        return None
    files = _files(path)
    for name in _INTERACTIONS:
        found = next((file for file in files if _stem_and_suffix(file)[0] == name), None)
        if found is not None:
            return found
    return next((file for file in files if file.suffix == ".inter"), None)


def _files(folder: Path) -> list[Path]:
    return [entry for entry in sorted(folder.iterdir()) if entry.is_file() and _stem_and_suffix(entry)[1] in _SUFFIXES]


def _stem_and_suffix(path: Path) -> tuple[str, str]:
    name = path.name.removesuffix(".gz").removesuffix(".bz2").removesuffix(".zst")
    inner = Path(name)
    return inner.stem, inner.suffix


def _beside(path: Path, interactions: Path, side: Literal["item", "user"]) -> RawTable | None:
    """The items or users file of a folder (`items.csv`, `movies.csv`, `name.item`); a single file has none."""
    if interactions.suffix == ".inter":
        file = interactions.with_suffix(f".{side}")
        return _catalogue(file, side) if file.is_file() else None
    return catalogue_text(path, side) if path.is_dir() else None


def catalogue_text(folder: Path, side: Literal["item", "user"]) -> RawTable | None:
    """The items or users file of a folder, `items.csv` or `movies.csv` and the like; None where there is none.

    Raises:
        ImportFormatError: it cannot be read.
    """
    names = ("items", "movies", "products") if side == "item" else ("users", "customers")
    file = next((entry for entry in _files(folder) if _stem_and_suffix(entry)[0] in names), None)
    return None if file is None else _catalogue(file, side)


def _catalogue(file: Path, side: Literal["item", "user"]) -> RawTable:
    opener = open_path(file)
    form = sniff(opener, file.name)
    ids = (ITEM_ALIASES if side == "item" else INTERACTION_ALIASES)[f"{side}_id"]
    raw = read_table(opener, file.name, form, as_text=[column for column in form.columns if plain_name(column) in ids])
    return replace(raw, table=_atomic(raw.table))


def _atomic(table: pa.Table) -> pa.Table:
    """RecBole's `name:token_seq` columns as lists (blanks separate), and names without their types."""
    columns = {}
    for name in table.column_names:
        plain, _, kind = name.partition(":")
        if kind == "token_seq" and plain_name(plain) != "movietitle":
            columns[plain] = pc.split_pattern_regex(pc.cast(table[name], pa.string()), pattern=r"\s+")
        else:
            columns[plain if kind in ("token", "float", "token_seq", "float_seq") else name] = table[name]
    return pa.table(columns)
