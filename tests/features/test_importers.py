"""Readers of other people's formats: what they take from real layouts, and what they say of broken ones."""

from __future__ import annotations

import gzip
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.errors import DatasetNotFoundError, ImportFormatError
from features.importers.detect import FORMATS, detect
from features.importers.movielens import years
from features.importers.text import BLOCK_BYTES, TextForm, open_path, stream

Written = Callable[[str, str | bytes], Path]

GENRE_FLAGS = "0|0|0|1|1|1|0|0|0|0|0|0|0|0|0|0|0|0|0"
MOVIELENS = {
    "100k": {
        "u.data": "196\t242\t3\t881250949\n186\t242\t4\t891717742\n196\t1\t5\t881250950\n",
        "u.item": f"1|Toy Story (1995)|01-Jan-1995||http://x|{GENRE_FLAGS}\n242|Café (1994) (V)|01-Jan-1994||http://y|{GENRE_FLAGS}\n",
        "u.user": "196|49|M|writer|05105\n186|39|F|executive|00000\n",
    },
    "1m": {
        "ratings.dat": "196::242::3::881250949\n186::242::4::891717742\n196::1::5::881250950\n",
        "movies.dat": "1::Toy Story (1995)::Animation|Children's|Comedy\n242::Café (1994) (V)::Animation|Children's|Comedy\n",
        "users.dat": "196::M::25::15::05105\n186::F::35::1::00000-12\n",
    },
    "latest": {
        "ratings.csv": "userId,movieId,rating,timestamp\n196,242,3.0,881250949\n186,242,4.0,891717742\n196,1,5.0,881250950\n",
        "movies.csv": "movieId,title,genres\n1,Toy Story (1995),Animation|Children's|Comedy\n"
        '242,"Café (1994) (V)",Animation|Children\'s|Comedy\n',
        "links.csv": "movieId,imdbId,tmdbId\n1,0114709,862\n",
        "tags.csv": "userId,movieId,tag,timestamp\n1,1,Pixar,5\n2,1,pixar,6\n2,1,fun,7\n",
    },
}


def movielens(folder: Path, release: str) -> Path:
    folder.mkdir()
    for name, content in MOVIELENS[release].items():
        (folder / name).write_bytes(content.encode("utf-8" if release == "latest" else "latin-1"))
    return folder


@pytest.mark.parametrize("packed", ["folder", "zip", "inner"])
@pytest.mark.parametrize("release", list(MOVIELENS))
def test_every_movielens_layout_gives_the_same_dataset(home: Any, tmp_path: Path, release: str, packed: str) -> None:
    source = movielens(tmp_path / "ml", release)
    if packed == "zip":
        with zipfile.ZipFile(tmp_path / "ml.zip", "w") as archive:
            for path in source.iterdir():
                archive.write(path, f"ml/{path.name}")
        source = tmp_path / "ml.zip"
    elif packed == "inner":
        (tmp_path / "outer").mkdir()
        source = source.rename(tmp_path / "outer" / "ml").parent
    assert detect(source) == "movielens"
    report = home.import_(source)
    assert (report.users, report.items, report.interactions, report.catalogue_items, report.rejected) == (2, 2, 3, 2, 0)
    assert home.events()[["user_id", "item_id", "value", "action"]].to_numpy().tolist() == [
        ["186", "242", 4.0, "rating"],
        ["196", "242", 3.0, "rating"],
        ["196", "1", 5.0, "rating"],
    ]
    items = home.catalogue().items().to_pandas().set_index("item_id")
    assert items.title.to_dict() == {"1": "Toy Story (1995)", "242": "Café (1994) (V)"}
    assert items.year.to_dict() == {"1": 1995, "242": 1994}
    assert items.categories["242"].tolist() == ["Animation", "Children's", "Comedy"]
    if release == "latest":
        assert items.tags["1"].tolist() == ["pixar", "fun"]
        assert items.imdbId.to_dict() == {"1": "0114709", "242": None}
    else:
        assert home.catalogue().user("196")["zip_code"] == "05105"


def test_years_come_from_the_last_bracket_with_a_year() -> None:
    titles = ["Toy Story (1995)", "2001: A Space Odyssey (1968)", "Land (1995) (V)", "Show (2006-2007)", "1984", None]
    assert years(pa.array(titles)).to_pylist() == [1995, 1968, 1995, 2006, None, None]


@pytest.mark.parametrize("content", ["u1 a b a\nu2 c\n", "u1 a\nu1 b\nu2 c\nu1 a", "u1\ta b\r\n\r\nu2 c\r\nu1 a\r\n"])
def test_sequences_keep_order_and_repeats(home: Any, written: Written, content: str) -> None:
    path = written("data.txt", content)
    report = home.import_(path, fmt="sequences")
    assert (report.users, report.items, report.interactions, report.duplicates) == (2, 3, 4, 0)
    assert home.events().groupby("user_id").item_id.apply(list).to_dict() == {"u1": ["a", "b", "a"], "u2": ["c"]}
    assert home.import_(path, fmt="sequences").duplicates == 4


def test_sequence_lines_without_items_are_rejected(home: Any, written: Written) -> None:
    report = home.import_(written("data.txt", b"u1 a b\nlonely\nu\xff a\n"))
    assert (report.interactions, report.rejected) == (2, 2)
    assert home.rejects().reason.tolist() == ["the line has a user and no items", "the line is not UTF-8 text"]
    assert home.rejects().row.tolist() == [2, 3]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", 'user_id,item_id,title\n1,2,"a, b"\n3,4,"c\nd"\n'),
        ("a.tsv", "user_id\titem_id\n1\t2\n3\t4\n"),
        ("a.csv", "user_id;item_id\r\n1;2\r\n3;4\r\n"),
        ("a.csv", "﻿user_id|item_id\n1|2\n3|4"),
        ("a.dat", "user_id::item_id\n1::2\n3::4\n"),
        ("a.csv", "userId,movieId\n1,2\n3,4\n"),
        ("a.inter", "user_id:token\titem_id:token\n1\t2\n3\t4\n"),
        ("a.csv.gz", gzip.compress(b"user_id,item_id\n1,2\n3,4\n")),
    ],
)
def test_csv_and_its_relatives(home: Any, written: Written, name: str, content: str | bytes) -> None:
    report = home.import_(written(name, content))
    assert (report.users, report.items, report.interactions, report.rejected) == (2, 2, 2, 0)
    assert home.events().item_id.tolist() == ["2", "4"]


def test_csv_folders_bring_items_and_users(home: Any, written: Written, tmp_path: Path) -> None:
    written("shop/interactions.csv", "customer,sku,bought_at,timestamp\n007,a,x,100\n008,b,y,2020-01-01\n")
    written(
        "shop/items.csv",
        "sku,name,genres,zip,weight,fresh,added,shape\na,A,x|y,01234,1.5,true,2020-01-01,1\nb,B,,99999,2,false,,\nc\n",
    )
    written("shop/users.csv", "customer,level\n007,3\n008,\n")
    report = home.import_(tmp_path / "shop")
    assert (report.interactions, report.catalogue_items, report.rejected) == (2, 2, 1)
    assert set(home.events().user_id) == {"007", "008"}
    kinds = {a.name: a.type for a in home.catalogue().schema().item_attributes}
    assert kinds == {
        "title": "string",
        "categories": "string_list",
        "zip": "string",
        "weight": "float",
        "fresh": "bool",
        "added": "timestamp",
        "shape": "int",
    }
    assert home.catalogue().user("007") == {"user_id": "007", "level": 3}
    assert home.rejects().loc[0, ["file", "row"]].tolist() == ["items.csv", 4]


def test_whole_numbers_that_no_column_can_hold_are_none(home: Any, tmp_path: Path) -> None:
    (tmp_path / "shop").mkdir()
    pq.write_table(pa.table({"user_id": ["u", "u"], "item_id": ["a", "b"]}), tmp_path / "shop/interactions.parquet")
    table = {
        "item_id": ["a", "b"],
        "year": pa.array([1e300, 1999.4]),  # whole by its name, whatever the file's column is
        "stock": pa.array([2**64 - 1, 2**63 - 1], pa.uint64()),
    }
    pq.write_table(pa.table(table), tmp_path / "shop/items.parquet")
    home.import_(tmp_path / "shop")
    found = home.catalogue().items().to_pydict()
    assert (found["year"], found["stock"]) == ([None, 1999], [None, 2**63 - 1])


def test_recbole_folders(home: Any, written: Written, tmp_path: Path) -> None:
    written("r/x.inter", "user_id:token\titem_id:token\trating:float\ttimestamp:float\n1\t2\t3\t881250949\n")
    written(
        "r/x.item",
        "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n2\tToy Story\t1995\tAnimation Comedy\n",
    )
    written("r/x.user", "user_id:token\tage:token\n1\t24\n")
    home.import_(tmp_path / "r")
    item = home.catalogue().item("2")
    assert (item["title"], item["year"], item["categories"]) == ("Toy Story", 1995, ["Animation", "Comedy"])
    assert home.catalogue().user("1")["age"] == 24


def test_rows_that_are_not_utf8_are_rejected_alone(home: Any, written: Written) -> None:
    report = home.import_(written("a.csv", b"user_id,item_id\n1,2\n\xff\xfe,3\n4,5\n"))
    assert (report.interactions, report.rejected) == (2, 1)
    assert home.rejects().loc[0, ["row", "reason"]].tolist() == [3, "the row is not UTF-8 text"]


def test_row_numbers_hold_over_blocks_and_broken_rows(written: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["user_id,item_id", *(f"u{n},i{n}" if n % 7 else f"u{n},i{n},extra" for n in range(2, 400))]
    path = written("a.csv", "\n".join(lines) + "\n")
    monkeypatch.setattr("features.importers.text.BLOCK_BYTES", 256)
    assert BLOCK_BYTES > 256
    batches = list(stream(open_path(path), "a.csv", TextForm(",", ("user_id", "item_id"))))
    assert len(batches) > 3
    good = [
        (number, user)
        for batch in batches
        for number, user in zip(batch.row_numbers, batch.table["user_id"].to_pylist(), strict=True)
    ]
    bad = sorted(row.number for batch in batches for row in batch.bad_rows)
    assert [(int(number), user) for number, user in good] == [(n, f"u{n}") for n in range(2, 400) if n % 7]
    assert bad == [n for n in range(2, 400) if n % 7 == 0]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "", "a.csv is empty"),
        ("a.csv", "   \n", "a.csv is empty"),
        ("a.csv", "user_id,item_id\n", "has no interactions: there is nothing to import"),
        ("a.csv", b"\x00\x01\x02\x03", "not a text file"),
        ("a.csv", "only\none\n", "has no columns"),
        ("a.csv", "user_id,user_id,item_id\na,b,c\n", "a.csv has two columns 'user_id': rename one"),
        ("a.csv", "customer,sku,note,note\na,b,c,d\n", "a.csv has two columns 'note'"),
        ("a.parquet", "PAR1 but not really", "cannot be read as Parquet"),
        ("a.zip", b"PK\x03\x04rest", "zip that holds no MovieLens release"),
        ("a.csv.gz", b"\x1f\x8bbroken", "cannot be read"),
    ],
)
def test_files_that_cannot_be_read_are_one_clear_error(
    home: Any, written: Written, name: str, content: str | bytes, message: str
) -> None:
    with pytest.raises(ImportFormatError, match=message):
        home.import_(written(name, content))


def test_parquet_that_names_a_column_twice_is_one_clear_error(home: Any, tmp_path: Path) -> None:
    values = [pa.array(["a"]), pa.array(["b"]), pa.array(["c"])]
    pq.write_table(pa.Table.from_arrays(values, names=["user_id", "user_id", "item_id"]), tmp_path / "twice.parquet")
    with pytest.raises(ImportFormatError, match=r"twice.parquet \(parquet\) has two columns 'user_id': rename one"):
        home.import_(tmp_path / "twice.parquet")
    (tmp_path / "shop").mkdir()
    pq.write_table(pa.table({"user_id": ["u"], "item_id": ["a"]}), tmp_path / "shop/interactions.parquet")
    pq.write_table(pa.Table.from_arrays(values, names=["item_id", "title", "title"]), tmp_path / "shop/items.parquet")
    with pytest.raises(ImportFormatError, match=r"items.parquet has two columns 'title'"):
        home.import_(tmp_path / "shop")


def test_columns_without_a_name_are_no_repeated_name(home: Any, written: Written) -> None:
    report = home.import_(written("a.csv", "user_id,item_id,,\n1,2,,\n3,4,,\n"))
    assert (report.users, report.unused_columns) == (2, ("column3", "column4"))


def test_ids_that_the_api_could_not_name_are_rejected(home: Any, tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"user_id": ["a\0b", "u"], "item_id": ["1", "2"]}), path)
    report = home.import_(path)
    assert (report.interactions, report.rejected) == (1, 1)
    pq.write_table(pa.table({"user_id": [["a"], ["b"]], "item_id": ["1", "2"]}), path)
    with pytest.raises(ImportFormatError, match=r"all 2 rows were rejected \(user_id is longer than 256 characters.* or a list: 2"):
        home.import_(path)


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_items_and_users_may_stand_beside_in_the_other_form(home: Any, tmp_path: Path, form: str) -> None:
    interactions, items = pd.DataFrame({"user_id": ["u"], "item_id": ["a"]}), pd.DataFrame({"item_id": ["a"], "title": ["A"]})
    users = pd.DataFrame({"user_id": ["u"], "level": [3]})
    if form == "csv":
        interactions.to_csv(tmp_path / "interactions.csv", index=False)
        items.to_parquet(tmp_path / "items.parquet")
        users.to_parquet(tmp_path / "users.parquet")
    else:
        interactions.to_parquet(tmp_path / "interactions.parquet")
        items.to_csv(tmp_path / "items.csv", index=False)
        users.to_csv(tmp_path / "users.csv", index=False)
    home.import_(tmp_path)
    assert home.catalogue().items()["title"].to_pylist() == ["A"]
    assert home.catalogue().user("u") == {"user_id": "u", "level": 3}


def test_what_of_the_catalogue_is_left_out_is_told(home: Any, written: Written, tmp_path: Path) -> None:
    written("shop/interactions.csv", "user_id,item_id\nu,a\nu,b\n")
    written(
        "shop/items.csv",
        'item_id,price,available\na,cheap,true\na,,perhaps\nb,NA,yes\n,4,no\n"c",dear,no\nd,2,\n',
    )
    report = home.import_(tmp_path / "shop")
    assert report.notes[:3] == (
        "items.csv: 1 rows repeat the item_id of another; the last one counts",
        "items.csv: 1 values of 'price' are no numbers and were left empty (one is 'dear')",
        "items.csv: 1 values of 'available' are no truth values and were left empty (one is 'perhaps')",
    )
    assert home.rejects().loc[0, ["file", "row"]].tolist() == ["items.csv", 5]


def test_an_empty_dataset_folder_is_named(home: Any, tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    with pytest.raises(ImportFormatError, match=r"nothing in .*nothing looks like a dataset: expected interactions.parquet"):
        home.import_(tmp_path / "nothing")
    pq.write_table(
        pa.table({"user_id": pa.array([], pa.string()), "item_id": pa.array([], pa.string())}), tmp_path / "interactions.parquet"
    )
    with pytest.raises(ImportFormatError, match="has no interactions"):
        home.import_(tmp_path)


def test_a_damaged_parquet_tail_is_found_before_anything_is_written(home: Any, tmp_path: Path) -> None:
    table = pa.table({"user_id": [f"u{n}" for n in range(5000)], "item_id": [f"i{n}" for n in range(5000)]})
    path = tmp_path / "x.parquet"
    pq.write_table(table, path, row_group_size=500, use_dictionary=False, compression="zstd")
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 200] = b"\xff" * 200
    path.write_bytes(content)
    with pytest.raises(ImportFormatError, match=r"damaged after row \d+"):
        home.import_(path)
    assert home.store().count() == 0


@pytest.mark.parametrize("fmt", [f for f in FORMATS if f not in ("auto", "parquet")])
def test_the_asked_format_is_held_against_what_is_there(home: Any, folder: Callable[..., Path], fmt: str) -> None:
    with pytest.raises(ImportFormatError):
        home.import_(folder({"user_id": ["u"], "item_id": ["a"]}), fmt=fmt)


def test_unknown_formats_and_names_are_refused_with_those_known(home: Any) -> None:
    with pytest.raises(ImportFormatError, match="'xlsx' is not known; use one of auto, movielens"):
        home.import_("x", fmt="xlsx")
    with pytest.raises(DatasetNotFoundError, match=r"no file or folder 'movielens-9k'.*known names: movielens-100k"):
        home.import_("movielens-9k")


def test_folders_of_parquet_parts(home: Any, tmp_path: Path) -> None:
    (tmp_path / "interactions.parquet").mkdir()
    for part in range(3):
        pd.DataFrame({"user_id": [part], "item_id": [part]}).to_parquet(tmp_path / "interactions.parquet" / f"part-{part}.parquet")
    pd.DataFrame({"item_id": [0], "title": ["zero"]}).to_parquet(tmp_path / "items.parquet")
    report = home.import_(tmp_path)
    assert (report.interactions, report.catalogue_items) == (3, 3)


# ---- guessing
