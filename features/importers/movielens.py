"""MovieLens releases as GroupLens ships them: ml-100k (`u.data`), ml-1m and ml-10m (`::`), ml-20m and later (CSV).

Reads a folder, a zip of one, or a folder that holds one. The year comes from the title's `(1995)`, tags from `tags.csv`.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.compute as pc

from features.errors import ImportFormatError
from features.importers.source import RawDataset, RawTable
from features.importers.text import Opener, TextForm, open_path, read_table, sniff, stream

_YEAR = re.compile(r"\((\d{4})(?:[-–]\d{0,4})?\)")
_RATING = ("user_id", "item_id", "value", "timestamp")
_MOVIE = ("item_id", "title", "categories")
_U_GENRES = (
    *("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy"),
    *("Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"),
)
_NO_GENRES = "(no genres listed)"

MAX_TAGS = 20
"""Tags kept of each item."""


def is_movielens(path: Path) -> bool:
    """Whether a path holds a MovieLens release."""
    try:
        return _ratings_name(_files(path)) is not None
    except ImportFormatError:
        return False


def read_movielens(path: Path) -> RawDataset:
    """Open a MovieLens folder or zip.

    Raises:
        ImportFormatError: there is no ratings file in it.
    """
    files = _files(path)
    name = _ratings_name(files)
    if name is None:
        raise ImportFormatError(f"{path} has neither u.data, ratings.dat nor ratings.csv: it is no MovieLens release")
    opener = files[name]
    items: RawTable | None
    users: RawTable | None
    if name == "u.data":
        form = TextForm("\t", _RATING, has_header=False, quoted=False)
        items, users = _u_items(files), _u_users(files)
    elif name == "ratings.dat":
        form = TextForm("::", _RATING, has_header=False, quoted=False)
        items, users = _dat_items(files), _dat_users(files)
    else:
        form = sniff(opener, name)
        items, users = _csv_items(files), None
    return RawDataset(
        format="movielens", interactions=lambda: stream(opener, name, form), columns=form.columns, items=items, users=users
    )


def movies(item_id: pa.Array, title: pa.Array, categories: pa.Array, **more: pa.Array) -> pa.Table:
    """An items table with the year taken from the title.

    Args:
        item_id, title: (N,) str.
        categories: (N,) list of str.
        more: further columns.
    """
    title = pc.utf8_trim_whitespace(title)
    return pa.table({"item_id": item_id, "title": title, "categories": categories, "year": years(title), **more})


def years(titles: pa.Array) -> pa.Array:
    """(N,) int64: the last four-digit number in brackets of each title, null where there is none."""
    found = [_YEAR.findall(title or "") for title in titles.to_pylist()]
    return pa.array([int(years[-1]) if years else None for years in found], pa.int64())


def _files(path: Path) -> dict[str, Opener]:
    if path.is_file() and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = {Path(name).name: name for name in sorted(archive.namelist(), key=lambda name: -name.count("/"))}
        return {short: _member(path, full) for short, full in names.items() if short}
    if path.is_file() and path.name in ("u.data", "ratings.dat", "ratings.csv"):
        path = path.parent
    if not path.is_dir():
        raise ImportFormatError(f"{path} is neither a MovieLens folder nor a zip of one")
    inner = [entry for entry in sorted(path.iterdir()) if entry.is_dir()]
    if len(inner) == 1 and not any(entry.is_file() and entry.suffix in (".dat", ".csv", ".data") for entry in path.iterdir()):
        path = inner[0]
    return {entry.name: open_path(entry) for entry in path.iterdir() if entry.is_file()}


def _member(path: Path, name: str) -> Callable[[], IO[bytes]]:
    def opener() -> IO[bytes]:
        try:
            return zipfile.ZipFile(path).open(name)
        except (OSError, zipfile.BadZipFile) as error:
            raise ImportFormatError(f"{name} in {path} cannot be read: {error}") from error

    return opener


def _ratings_name(files: dict[str, Opener]) -> str | None:
    if "ratings.csv" in files and "movies.csv" not in files:
        return None  # somebody's own ratings.csv: the CSV reader's
    return next((name for name in ("u.data", "ratings.dat", "ratings.csv") if name in files), None)


def _u_items(files: dict[str, Opener]) -> RawTable | None:
    if "u.item" not in files:
        return None
    columns = ("item_id", "title", "release_date", "video_release_date", "imdb_url", *_U_GENRES)
    form = TextForm("|", columns, has_header=False, quoted=False, encoding="latin-1")
    raw = read_table(files["u.item"], "u.item", form, as_text=("item_id", "title", "release_date", "imdb_url", *_U_GENRES))
    flags = [raw.table[name].to_pylist() for name in _U_GENRES]
    genres = [[name for name, flag in zip(_U_GENRES, row, strict=True) if flag == "1"] for row in zip(*flags, strict=True)]
    table = movies(
        raw.table["item_id"],
        raw.table["title"].combine_chunks(),
        pa.array(genres, pa.list_(pa.string())),
        release_date=raw.table["release_date"],
    )
    return RawTable(table, raw.file, raw.bad_rows)


def _u_users(files: dict[str, Opener]) -> RawTable | None:
    if "u.user" not in files:
        return None
    form = TextForm("|", ("user_id", "age", "gender", "occupation", "zip_code"), has_header=False, quoted=False)
    return read_table(files["u.user"], "u.user", form, as_text=("user_id", "zip_code"))


def _dat_items(files: dict[str, Opener]) -> RawTable | None:
    if "movies.dat" not in files:
        return None
    form = TextForm("::", _MOVIE, has_header=False, quoted=False, encoding=_encoding(files["movies.dat"]))
    return _with_genres(read_table(files["movies.dat"], "movies.dat", form, as_text=_MOVIE))


def _dat_users(files: dict[str, Opener]) -> RawTable | None:
    if "users.dat" not in files:
        return None
    form = TextForm("::", ("user_id", "gender", "age", "occupation", "zip_code"), has_header=False, quoted=False)
    return read_table(files["users.dat"], "users.dat", form, as_text=("user_id", "zip_code"))


def _csv_items(files: dict[str, Opener]) -> RawTable | None:
    if "movies.csv" not in files:
        return None
    form = TextForm(",", _MOVIE, encoding=_encoding(files["movies.csv"]))
    raw = _with_genres(read_table(files["movies.csv"], "movies.csv", form, as_text=_MOVIE))
    table = raw.table
    if "links.csv" in files:
        form = TextForm(",", ("item_id", "imdbId", "tmdbId"))
        links = read_table(files["links.csv"], "links.csv", form, as_text=form.columns).table
        row = pc.index_in(table["item_id"].combine_chunks(), links["item_id"].combine_chunks())
        for name in ("imdbId", "tmdbId"):
            table = table.append_column(name, links[name].take(row))
    if "tags.csv" in files:
        table = table.append_column("tags", _tags(files["tags.csv"], table["item_id"]))
    return RawTable(table, raw.file, raw.bad_rows)


def _with_genres(raw: RawTable) -> RawTable:
    genres = [
        [genre for genre in (text or "").split("|") if genre and genre != _NO_GENRES]
        for text in raw.table["categories"].to_pylist()
    ]
    table = movies(raw.table["item_id"], raw.table["title"].combine_chunks(), pa.array(genres, pa.list_(pa.string())))
    return RawTable(table, raw.file, raw.bad_rows)


def _tags(opener: Opener, item_ids: pa.ChunkedArray) -> pa.Array:
    """(N,) list of str: each item's most frequent tags, lower-cased."""
    form = TextForm(",", ("user_id", "item_id", "tag", "timestamp"))
    given = read_table(opener, "tags.csv", form, as_text=form.columns).table
    counted = (
        pa.table({"item_id": given["item_id"], "tag": pc.utf8_lower(given["tag"])})
        .group_by(["item_id", "tag"])
        .aggregate([([], "count_all")])
        .sort_by([("count_all", "descending"), ("tag", "ascending")])
    )
    of_item: dict[str, list[str]] = {}
    for item, tag in zip(counted["item_id"].to_pylist(), counted["tag"].to_pylist(), strict=True):
        tags = of_item.setdefault(item, [])
        if tag and len(tags) < MAX_TAGS:
            tags.append(tag)
    return pa.array([of_item.get(item, []) for item in item_ids.to_pylist()], pa.list_(pa.string()))


def _encoding(opener: Opener) -> str:
    """UTF-8 where the file is, else Latin-1, in which GroupLens wrote its early releases."""
    with opener() as file:
        try:
            file.read().decode()
        except UnicodeDecodeError:
            return "latin-1"
    return "utf-8"
