"""Importing: counts, repeats, rejects, times, attributes; and that a second import adds nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from features import import_dataset as importing
from features.errors import EventError, ImportFormatError
from features.row_buffer import RowBuffer

Folder = Callable[..., Path]
Written = Callable[[str, str | bytes], Path]


def counts(report: importing.ImportReport) -> tuple[int, ...]:
    return report.users, report.items, report.interactions, report.duplicates, report.rejected


@pytest.mark.parametrize(
    ("name", "users", "items", "interactions", "listed"),
    [
        ("beauty", 22_363, 12_101, 198_502, 12_101),
        ("ml-1m", 6_040, 3_416, 999_611, 3_883),
        ("ml-100k", 943, 1_682, 100_000, 1_682),
        ("ml-latest-small", 671, 9_066, 100_004, 9_125),
        ("lastfm", 1_090, 3_646, 52_551, 3_646),
        ("coat", 290, 300, 6_960 + 4_640, 300),
    ],
)
def test_real_datasets_import_with_their_published_counts_once(
    home: Any, shared: Path, name: str, users: int, items: int, interactions: int, listed: int
) -> None:
    report = home.import_(shared / "data" / name)
    assert report.to_dict() == {
        "dataset": "d",
        "users": users,
        "items": items,
        "interactions": interactions,
        "catalogue_items": listed,
        "duplicates": 0,
        "rejected": 0,
        "rejected_path": None,
    }
    if interactions > 200_000:
        return  # ml-1m again is a matter of seconds
    assert home.import_(shared / "data" / name).to_dict() == {**report.to_dict(), "duplicates": interactions}
    assert home.store().count() == interactions


def test_beautys_order_is_its_position(home: Any, shared: Path) -> None:
    home.import_(shared / "data" / "beauty")
    source = pd.read_parquet(shared / "data" / "beauty" / "interactions.parquet").sort_values(
        ["user_id", "position"], kind="stable"
    )
    stored = home.events()
    assert (stored.item_id.to_numpy() == source.item_id.to_numpy()).all()
    assert (stored.history_position.to_numpy() == source.position.to_numpy()).all()
    assert stored.timestamp_imputed.sum() == 287
    assert (stored.groupby("user_id").timestamp.diff().dropna() > pd.Timedelta(0)).all()


def test_coat_keeps_pairs_that_are_in_both_splits(home: Any, shared: Path) -> None:
    home.import_(shared / "data" / "coat")
    splits = home.events().groupby(["user_id", "item_id"]).split.nunique()
    assert (splits == 2).sum() == 366
    names = [attribute.name for attribute in home.catalogue().schema().user_attributes]
    assert "age_over_60" in names
    assert len({name.lower() for name in names}) == len(names)


def test_repeated_rows_are_counted_and_stored_once(home: Any, written: Written) -> None:
    path = written("a.csv", "user_id,item_id,rating,timestamp\nu,i,4,100\nu,i,4,100\nu,i,5,100\nv,i,4,100\n")
    assert counts(home.import_(path)) == (2, 1, 3, 1, 0)
    assert counts(home.import_(path)) == (2, 1, 3, 4, 0)
    assert home.store().count() == 3


def test_an_extended_and_resorted_file_adds_only_what_is_new(home: Any, written: Written) -> None:
    home.import_(written("a.csv", "user_id,item_id\nu,a\nu,b\nv,a\n"))
    report = home.import_(written("b.csv", "user_id,item_id\nv,a\nu,c\nu,b\nu,a\n"))
    assert counts(report) == (2, 3, 4, 3, 0)
    assert sorted(home.events().item_id) == ["a", "a", "b", "c"]


def test_bad_rows_are_kept_with_reasons_and_stop_nothing(home: Any, written: Written) -> None:
    long_id = "x" * 300
    path = written(
        "a.csv",
        "user_id,item_id,rating,timestamp,position\n"
        "u,a,4,2020-01-01T00:00:00+02:00,0\n"
        ",a,4,100,1\n"
        "u,,4,100,1\n"
        "u,b,good,100,1\n"
        "u,c,inf,100,1\n"
        "u,d,4,yesterday,1\n"
        "u,e,4,9999-01-01,1\n"
        "u,f,4,100,-1\n"
        "u,g,4,100,1.5\n"
        f"{long_id},h,4,100,1\n"
        "u,i,4\n"
        "u,j,,,1\n",
    )
    report = home.import_(path)
    assert counts(report) == (1, 2, 2, 0, 10)
    rejects = home.rejects()
    assert list(rejects.columns) == ["file", "row", "reason", "content"]
    reasons = rejects.set_index("row").reason
    assert "user_id is missing" in reasons[3]
    assert "item_id is missing" in reasons[4]
    assert "value 'good' is not a finite number" in reasons[5]
    assert "'inf'" in reasons[6]
    assert "timestamp 'yesterday' is not ISO 8601" in reasons[7]
    assert "9999-01-01" in reasons[8]
    assert "position '-1'" in reasons[9]
    assert "position '1.5'" in reasons[10]
    assert "longer than 256" in reasons[11]
    assert "3 values where 5 are expected" in reasons[12]
    stored = home.events()
    assert list(stored.timestamp.dt.strftime("%Y-%m-%dT%H:%M:%S.%f")) == [
        "2019-12-31T22:00:00.000000",
        "2019-12-31T22:00:00.000001",
    ]
    assert list(stored.timestamp_imputed) == [False, True]
    told = next(note for note in report.notes if "rows were rejected" in note)
    assert "value is not a finite number: 2" in told


def test_a_file_of_bad_rows_alone_is_one_error_and_writes_nothing_but_the_rejects(home: Any, written: Written) -> None:
    path = written("a.csv", "user_id,item_id\n,a\n,b\n")
    with pytest.raises(
        ImportFormatError, match=r"no valid interaction: all 2 rows were rejected \(user_id is missing: 2\).*rejects-"
    ):
        home.import_(path)
    assert not home.catalogue().exists()
    assert home.store().count() == 0


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("1262304000", "2010-01-01T00:00:00"),
        ("1262304000000", "2010-01-01T00:00:00"),
        ("1262304000.5", "2010-01-01T00:00:00.500000"),
        ("2010-01-01", "2010-01-01T00:00:00"),
        ("2010-01-01 05:00:00+05:00", "2010-01-01T00:00:00"),
        ("2010-01-01T00:00:00Z", "2010-01-01T00:00:00"),
        ("2010/01/01", "2010-01-01T00:00:00"),
        ("20100101", "2010-01-01T00:00:00"),
        ("-86400", "1969-12-31T00:00:00"),
    ],
)
def test_times_in_any_usual_form_become_utc(home: Any, written: Written, given: str, expected: str) -> None:
    home.import_(written("a.csv", f"user_id,item_id,time\nu,a,{given}\n"))
    assert home.events().timestamp[0] == pd.Timestamp(expected, tz="UTC")


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("kind", ["number", "naive", "zoned", "object"])
def test_times_of_any_column_type_become_utc(home: Any, folder: Folder, unit: str, kind: str) -> None:
    moment = pd.Timestamp("2010-05-06T07:08:09")
    column: Any = pd.Series([moment]).astype(f"datetime64[{unit}]")
    if kind == "number":
        column = column.astype("int64")
    elif kind == "zoned":
        column = column.dt.tz_localize("UTC").dt.tz_convert("Asia/Tokyo")
    elif kind == "object":
        column = [moment.date()]
    home.import_(folder({"user_id": ["u"], "item_id": ["a"], "timestamp": column}))
    expected = moment.normalize() if kind == "object" else moment
    assert home.events().timestamp[0] == expected.tz_localize("UTC")


def test_null_times_take_a_neighbours_or_the_files_first_and_are_flagged(home: Any, folder: Folder) -> None:
    day = pd.to_datetime(["2020-01-05", None, "2020-01-01", None, None], utc=True)
    home.import_(
        folder({"user_id": list("uuvvw"), "item_id": list("abcde"), "timestamp": day, "position": [1, 0, 0, 1, 0]}), dataset="with"
    )
    found = home.events("with").set_index("item_id")
    assert found.timestamp.dt.date.astype(str).to_dict() == {
        "b": "2020-01-05",
        "a": "2020-01-05",
        "c": "2020-01-01",
        "d": "2020-01-01",
        "e": "2020-01-01",
    }
    assert set(found.index[found.timestamp_imputed]) == {"b", "d", "e"}
    home.import_(folder({"user_id": list("uu"), "item_id": list("ab"), "timestamp": day[:2]}, "other"), dataset="without")
    without = home.events("without")
    assert list(without.item_id) == ["a", "b"]
    assert list(without.timestamp.dt.date.astype(str)) == ["2020-01-05", "2020-01-05"]
    assert list(without.timestamp_imputed) == [False, True]


def test_data_without_times_says_so_in_the_schema(home: Any, folder: Folder) -> None:
    report = home.import_(folder({"user_id": ["u", "u"], "item_id": ["b", "a"]}))
    assert not home.catalogue().schema().has_times
    assert list(home.events().item_id) == ["b", "a"]
    assert any("no interaction has a time" in note for note in report.notes)
    home.import_(folder({"user_id": ["u"], "item_id": ["c"], "timestamp": [100], "rating": [5]}, "more"))
    schema = home.catalogue().schema()
    assert (schema.has_times, schema.has_values) == (True, True)


@pytest.mark.parametrize(
    ("columns", "options", "actions"),
    [
        ({"rating": [4.0, np.nan]}, {}, ["rating", "view"]),
        ({"rating": [4.0, np.nan]}, {"default_action": "purchase"}, ["rating", "purchase"]),
        ({}, {"default_action": "click"}, ["click", "click"]),
        ({"event": ["AddToCart", "transaction"]}, {}, ["add_to_cart", "purchase"]),
        ({"action": ["like", None], "value": [1.0, 2.0]}, {}, ["like", "rating"]),
    ],
)
def test_actions(home: Any, folder: Folder, columns: dict[str, Any], options: dict[str, str], actions: list[str]) -> None:
    home.import_(folder({"user_id": ["u", "u"], "item_id": ["a", "b"], "position": [0, 1], **columns}), **options)
    assert list(home.events().action) == actions


def test_unknown_actions_are_kept_with_a_flag(home: Any, folder: Folder) -> None:
    home.import_(folder({"user_id": ["u", "u"], "item_id": ["a", "b"], "action": ["view", "teleport"]}))
    found = home.events().set_index("item_id").flag
    assert found["a"] is None
    assert found["b"] == "unknown_action"


def test_an_unknown_default_action_is_refused(home: Any, folder: Folder) -> None:
    with pytest.raises(EventError, match=r"'teleport' is not known; use one of view"):
        home.import_(folder({"user_id": ["u"], "item_id": ["a"]}), default_action="teleport")


def test_ids_of_any_type_become_text(home: Any, folder: Folder) -> None:
    home.import_(folder({"user_id": [1, 2], "item_id": [7.0, 8.0]}, items={"item_id": [7, 8], "title": ["x", "y"]}))
    assert set(home.events().user_id) == {"1", "2"}
    assert home.catalogue().item("7") == {"item_id": "7", "title": "x", "available": True}
    assert home.catalogue().count_items() == 2


def test_mapping_names_any_column(home: Any, written: Written) -> None:
    path = written("a.csv", "who,what,how_much\n1,2,3\n")
    home.import_(path, mapping={"user_id": "who", "item_id": "what", "value": "how_much"})
    assert home.events()[["user_id", "item_id", "value", "action"]].iloc[0].tolist() == ["1", "2", 3.0, "rating"]


def test_mapping_reaches_the_items_and_users_files(home: Any, folder: Folder) -> None:
    source = folder(
        {"user_id": ["u"], "item_id": ["a"]}, items={"code": ["a"], "headline": ["A"]}, users={"login": ["u"], "age": [3]}
    )
    home.import_(source, mapping={"item_id": "code", "title": "headline", "user_id": "login"})
    assert home.catalogue().item("a") == {"item_id": "a", "title": "A", "available": True}
    assert home.catalogue().user("u") == {"user_id": "u", "age": 3}
    with pytest.raises(ImportFormatError, match="no column 'head'"):
        home.import_(source, mapping={"item_id": "code", "title": "head", "user_id": "login"})


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"user_id": "nobody"}, r"no column 'nobody' \(from --map user_id=nobody\); it has: 'who', 'item_id'"),
        ({"customer": "who"}, r"unknown canonical column 'customer'; known: .*user_id"),
        ({}, r"no column that looks like user_id or session_id; it has: 'who', 'item_id'.*--map user_id=COLUMN"),
    ],
)
def test_missing_columns_are_named_with_what_there_is(home: Any, written: Written, mapping: dict[str, str], message: str) -> None:
    with pytest.raises(ImportFormatError, match=message):
        home.import_(written("a.csv", "who,item_id\n1,2\n"), mapping=mapping)


def test_items_get_typed_attributes_under_safe_names(home: Any, folder: Folder) -> None:
    report = home.import_(
        folder(
            {"user_id": ["u", "u"], "item_id": ["a", "new"]},
            items={
                "item_id": ["a", "b", None, "a"],
                "title": ["old", "B", "C", "A"],
                "genres": ["x|y", "", "z", "x | y|"],
                "price": ["1.5", "cheap", "2", "1.5"],
                "in_stock": ["no", "yes", "yes", "yes"],
                "created_at": [0, 1262304000, 0, 1262304000000],
                "age:over 60": [1, 2, 3, 4],
                "age_over_60": [1.5, 2.5, np.nan, 4.5],
                "in": ["p", "q", "r", "s"],
            },
            users={"user_id": ["u"], "joined": pd.to_datetime(["2020-01-01"], utc=True), "vip": [True]},
        )
    )
    assert (report.catalogue_items, report.rejected) == (3, 1)
    assert home.rejects().reason.tolist() == ["item_id is missing"]
    kinds = {a.source_name: (a.name, a.type) for a in home.catalogue().schema().item_attributes}
    assert kinds == {
        "title": ("title", "string"),
        "categories": ("categories", "string_list"),
        "price": ("price", "float"),
        "available": ("available", "bool"),
        "created_at": ("created_at", "timestamp"),
        "age:over 60": ("age_over_60", "int"),
        "age_over_60": ("age_over_60_2", "float"),
        "in": ("x_in", "string"),
    }
    items = home.catalogue().items().to_pandas().set_index("item_id")
    assert items.loc["a", "categories"].tolist() == ["x", "y"]
    assert items.loc["b", "categories"].tolist() == []
    assert items.loc["a", "title"] == "A"
    assert np.isnan(items.loc["b", "price"])
    assert str(items.loc["a", "created_at"]) == "2010-01-01 00:00:00+00:00"
    assert items.available.to_dict() == {"a": True, "b": True, "new": True}
    assert any("1 items occur in the activity and are not listed" in note and "'new'" in note for note in report.notes)
    assert home.catalogue().user("u") == {"user_id": "u", "joined": "2020-01-01T00:00:00.000000Z", "vip": True}


def test_attribute_names_and_types_stay_over_imports(home: Any, folder: Folder) -> None:
    base = {"user_id": ["u"], "item_id": ["a"]}
    home.import_(folder(base, items={"item_id": ["a"], "size": [3], "colour!": ["red"]}))
    home.import_(folder(base, "second", items={"item_id": ["b"], "size": [3.5], "colour?": ["blue"]}))
    home.import_(folder(base, "third", items={"item_id": ["c"], "size": ["large"], "colour!": ["green"]}))
    kinds = {a.source_name: (a.name, a.type) for a in home.catalogue().schema().item_attributes}
    assert kinds == {"size": ("size", "string"), "colour!": ("colour", "string"), "colour?": ("colour_2", "string")}
    items = home.catalogue().items().to_pandas().set_index("item_id")
    assert items["size"].to_dict() == {"a": "3", "b": "3.5", "c": "large"}
    assert items.colour.to_dict() == {"a": "red", "b": None, "c": "green"}


def test_sessions_without_users_import_too(home: Any, folder: Folder) -> None:
    report = home.import_(folder({"session_id": ["s", "s"], "item_id": ["a", "b"], "timestamp": [5, 6]}))
    assert (report.users, report.interactions) == (1, 2)
    assert home.events().user_id.isna().all()


def test_given_event_ids_decide_what_is_the_same(home: Any, folder: Folder) -> None:
    report = home.import_(folder({"event_id": ["e", "e", None], "user_id": ["u"] * 3, "item_id": ["a", "b", "c"]}))
    assert (report.interactions, report.duplicates) == (2, 1)
    assert "e" in set(home.events().event_id)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 60), st.integers(1, 40), st.integers(0, 9))
def test_spilling_gives_the_same_events_as_memory(
    home: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int, limit: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    source = tmp_path / f"{rows}-{limit}-{seed}"
    source.mkdir(exist_ok=True)
    pd.DataFrame(
        {
            "user_id": rng.integers(0, 8, rows).astype(str),
            "item_id": rng.integers(0, 5, rows).astype(str),
            "timestamp": pd.array(rng.integers(1, 30, rows), dtype="Int64"),
        }
    ).to_parquet(source / "interactions.parquet")
    with monkeypatch.context() as patch:
        name = f"m-{rows}-{limit}-{seed}"
        in_memory = home.import_(source, dataset=name)
        patch.setattr(importing, "RowBuffer", lambda scratch: RowBuffer(scratch, memory_rows=limit))
        spilled = home.import_(source, dataset=f"s-{rows}-{limit}-{seed}")
    assert counts(in_memory) == counts(spilled)
    columns = ["user_id", "item_id", "timestamp", "history_position"]
    pd.testing.assert_frame_equal(home.events(name)[columns], home.events(f"s-{rows}-{limit}-{seed}")[columns])
    assert not list(home.paths(f"s-{rows}-{limit}-{seed}").root.glob("scratch/*"))
