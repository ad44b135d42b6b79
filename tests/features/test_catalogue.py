"""Catalogue and attributes: what goes in comes out, typed; one row an id; safe names."""

from __future__ import annotations

import time
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.attributes import ARROW_TYPES, decode_attributes, encode_attributes, safe_names
from features.catalogue import Catalogue
from features.control_store import ControlStore
from features.errors import StoreError
from features.schema import Attribute, AttributeType, DatasetSchema

KINDS: dict[str, AttributeType] = {
    "title": "string",
    "price": "float",
    "year": "int",
    "fresh": "bool",
    "created_at": "timestamp",
    "categories": "string_list",
}
ATTRIBUTES = tuple(Attribute(name, name, kind) for name, kind in KINDS.items())


@pytest.fixture
def catalogue(home: Any) -> Catalogue:
    found = home.catalogue()
    found.save_schema(DatasetSchema("d", item_attributes=ATTRIBUTES, user_attributes=ATTRIBUTES[:1]))
    return found  # type: ignore[no-any-return]


def items(**columns: list[Any]) -> pa.Table:
    table = {name: pa.array(values, ARROW_TYPES[KINDS[name]]) for name, values in columns.items() if name in KINDS}
    others = {name: values for name, values in columns.items() if name not in KINDS}
    return pa.table({**others, **table})


ROW = {
    "item_id": ["b", "a"],
    "title": ['Ünïcode "quoted" \n', None],
    "price": [1.5, None],
    "year": [1995, None],
    "fresh": [True, None],
    "created_at": [pd.Timestamp("2020-02-03T04:05:06.789012", tz="UTC"), None],
    "categories": [["x", "y > z"], None],
}


def test_items_come_back_typed_and_sorted(catalogue: Catalogue) -> None:
    table = items(**ROW)
    assert catalogue.upsert_items(table) == 2
    found = catalogue.items()
    assert found.schema.names == ["item_id", "available", *KINDS]
    assert found.drop_columns(["available"]).equals(table.sort_by("item_id"))
    assert found["available"].to_pylist() == [True, True]
    assert catalogue.item_ids() == ["a", "b"]


def test_an_upsert_replaces_and_a_missing_item_is_added_bare(catalogue: Catalogue) -> None:
    catalogue.upsert_items(items(item_id=["a", "b"], title=["A", "B"], year=[1, 2]))
    catalogue.upsert_items(items(item_id=["a"], title=["A2"]))
    assert catalogue.add_missing_items(["a", "c"]) == 1
    assert catalogue.item("a") == {"item_id": "a", "title": "A2", "available": True}
    assert catalogue.item("c") == {"item_id": "c", "available": True}
    assert catalogue.item("d") is None
    assert catalogue.existing_items(["a", "d", "c"]) == {"a", "c"}


def test_availability_is_kept_and_absent_reads_true(catalogue: Catalogue) -> None:
    catalogue.upsert_items(pa.table({"item_id": ["a", "b", "c"], "available": pa.array([False, True, None])}))
    assert catalogue.items()["available"].to_pylist() == [False, True, True]
    assert [catalogue.item(i)["available"] for i in "abc"] == [False, True, True]  # type: ignore[index]


def test_patch_changes_removes_and_says_when_there_is_nothing(catalogue: Catalogue) -> None:
    catalogue.upsert_items(items(item_id=["a"], title=["A"], year=[1]))
    assert catalogue.patch_item("a", {"title": "B", "year": None, "available": False}) == {
        "item_id": "a",
        "title": "B",
        "available": False,
    }
    assert catalogue.items()["available"].to_pylist() == [False]
    assert catalogue.patch_item("zzz", {"title": "B"}) is None
    assert catalogue.delete_item("a")
    assert not catalogue.delete_item("a")
    assert catalogue.count_items() == 0


def test_a_value_of_another_type_than_the_schemas_does_not_break_reading(catalogue: Catalogue) -> None:
    catalogue.upsert_items(items(item_id=["a", "b"], title=["A", "B"], price=[1.0, 2.0]))
    catalogue.patch_item("a", {"price": "cheap", "title": 7, "categories": "x"})
    found = catalogue.items().to_pydict()
    assert (found["price"], found["title"], found["categories"]) == ([None, 2.0], ["7", "B"], [["x"], None])


def test_a_number_beyond_the_schemas_type_does_not_break_reading(catalogue: Catalogue) -> None:
    catalogue.upsert_items(items(item_id=["a", "b"], title=["A", "B"], price=[1.0, 2.0], year=[1, 2]))
    catalogue.patch_item("a", {"year": 2**63, "price": 10**400})
    found = catalogue.items().to_pydict()
    assert (found["year"], found["price"]) == ([None, 2], [None, 2.0])


def test_datasets_do_not_see_each_other(home: Any) -> None:
    one, other = home.catalogue("one"), home.catalogue("other")
    one.upsert_items(pa.table({"item_id": ["a"]}))
    one.upsert_users(pa.table({"user_id": ["u"]}))
    assert (other.count_items(), other.count_users(), other.item("a"), other.exists()) == (0, 0, None, False)
    assert other.items().num_rows == 0
    assert one.user("u") == {"user_id": "u"}
    assert one.delete_user("u")


@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "title": st.none() | st.text(st.characters(exclude_categories=["Cs"])),
                "price": st.none() | st.floats(allow_nan=False, allow_infinity=False),
                "year": st.none() | st.integers(-(2**63), 2**63 - 1),
                "fresh": st.none() | st.booleans(),
                "categories": st.none() | st.lists(st.text(st.characters(exclude_categories=["Cs"]))),
                "created_at": st.none() | st.integers(-(10**15), 4 * 10**15),
            }
        ),
        max_size=6,
    )
)
def test_attributes_survive_their_json(rows: list[dict[str, Any]]) -> None:
    table = pa.table({name: pa.array([row[name] for row in rows], ARROW_TYPES[kind]) for name, kind in KINDS.items()})
    decoded = decode_attributes(encode_attributes(table), ATTRIBUTES)
    for name in KINDS:
        assert decoded[name].to_pylist() == table[name].to_pylist()


@given(st.lists(st.text(max_size=8), max_size=12, unique=True))
def test_safe_names_are_safe_unique_and_stable(names: list[str]) -> None:
    first = safe_names(names)
    assert len({safe.lower() for safe in first.values()}) == len(names)
    for safe in first.values():
        assert safe.isascii()
        assert safe.isidentifier()
        assert "__" not in safe
        assert not safe.startswith("_")
    known = [Attribute(safe, source, "int") for source, safe in first.items()]
    again = safe_names([*reversed(names), "another one"], known)
    assert {name: again[name] for name in names} == first


def test_bulk_upserts_are_fast_enough_for_a_million_items(home: Any) -> None:
    catalogue, count = home.catalogue(), 50_000
    catalogue.save_schema(DatasetSchema("d", item_attributes=ATTRIBUTES[:2]))
    table = pa.table({"item_id": [f"i{n}" for n in range(count)], "title": ["t"] * count, "price": [1.0] * count})
    started = time.process_time()
    catalogue.upsert_items(table)
    assert catalogue.items().num_rows == count
    assert time.process_time() - started < 6, "a million items would take more than two minutes"


def test_a_store_that_cannot_be_opened_names_the_url_and_hides_the_password(tmp_path: Any) -> None:
    with pytest.raises(StoreError, match="is no SQLAlchemy URL"):
        ControlStore("nonsense")
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be opened"):
        ControlStore(f"sqlite:///{tmp_path}/file/control.db").create()
    with pytest.raises(StoreError) as caught:
        ControlStore("postgresql+psycopg://me:secret@nowhere/x").create()
    assert "secret" not in str(caught.value)
