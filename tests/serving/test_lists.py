"""Binary lists, recent activity, item tables: what goes in comes out, and damage is never taken for data."""

from __future__ import annotations

import gc
import struct
import weakref
from collections.abc import Mapping
from copy import copy
from dataclasses import replace
from datetime import datetime

import numpy as np
import pyarrow as pa
import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st

from features.events import ACTIONS, NEGATIVE_ACTIONS
from serving.cached_list import CachedList, decode_list
from serving.columns import Column
from serving.errors import FilterError
from serving.filters import Filter, compile_filter
from serving.item_table import ItemTable
from serving.recent_activity import (
    APPEND_SCRIPT,
    MARK_BYTES,
    RecentEvent,
    changes_answers,
    decode_activity,
    encode_events,
    mark_of,
)
from serving.schemas import Selection
from shortlist.stack.redis_server import start_redis
from training.interactions import BoolArray

scores = st.lists(st.floats(-1e6, 1e6, width=32), max_size=50).map(lambda values: sorted(values, reverse=True))


@given(scores, st.booleans(), st.booleans(), st.integers(0, 2**53))
def test_a_list_survives_its_bytes(values: list[float], complete: bool, anonymous: bool, at_us: int) -> None:
    count = len(values)
    items = np.arange(count, dtype=np.int32)[::-1]
    one = CachedList(items, np.array(values, np.float32), np.arange(count).astype(np.uint8), at_us, at_us + 1, complete, anonymous)
    blob = one.encode()
    assert len(blob) <= 40 + 9 * count
    back = decode_list(blob)
    assert back is not None
    assert back.item_idx.tolist() == items.tolist()
    assert back.source.tolist() == one.source.tolist()
    assert (back.computed_at_us, back.activity_at_us, back.complete, back.anonymous) == (at_us, at_us + 1, complete, anonymous)
    np.testing.assert_array_equal(back.score, one.score)


@given(st.binary(max_size=80))
def test_foreign_bytes_are_no_list(blob: bytes) -> None:
    assert decode_list(blob) is None


def test_a_damaged_list_is_no_list() -> None:
    blob = CachedList(np.arange(3, dtype=np.int32), np.ones(3, np.float32), np.zeros(3, np.uint8), 1, 1).encode()
    assert decode_list(blob[:-1]) is None
    assert decode_list(b"SL\x01" + blob[3:]) is None
    assert decode_list(blob + b"x") is None


@pytest.mark.parametrize(
    ("row", "source", "fits"),
    [(9, 2, True), (10, 0, False), (-1, 0, False), (-(2**31), 0, False), (2**31 - 1, 0, False), (0, 3, False)],
)
def test_a_list_says_whether_it_is_of_a_version(row: int, source: int, fits: bool) -> None:
    columns = np.array([1, row], np.int32), np.ones(2, np.float32), np.array([0, source], np.uint8)
    back = decode_list(CachedList(*columns, 1, 1).encode())
    assert back is not None
    assert back.fits(10, 3) is fits
    assert CachedList(*(column[:0] for column in columns), 1, 1).fits(0, 0)


events = st.lists(
    st.builds(RecentEvent, st.text(min_size=1, max_size=40), st.integers(-(2**40), 2**60), st.booleans()), max_size=20
)


@given(events, st.integers(0, 20))
def test_activity_survives_its_bytes_and_cut_tails(wanted: list[RecentEvent], cut: int) -> None:
    value = b"%016d" % 1234 + encode_events(wanted)
    found = decode_activity(value)
    assert found.mark_us == mark_of(value) == 1234
    assert list(found.events) == wanted
    shorter = decode_activity(value[: len(value) - cut]).events
    assert list(shorter) == wanted[: len(shorter)]


def test_no_value_is_no_activity() -> None:
    for nothing in (None, b"", b"12"):
        assert decode_activity(nothing).events == ()
        assert mark_of(nothing) == 0


def test_being_shown_changes_nothing() -> None:
    assert changes_answers("click")
    assert changes_answers("dislike")
    assert not changes_answers("impression")
    assert not changes_answers("unheard_of")


def test_events_come_back_as_they_were_written_and_those_of_an_earlier_release_too() -> None:
    events = tuple(RecentEvent.of(f"i{n}", n, action) for n, action in enumerate(ACTIONS))
    found = decode_activity(b"%016d" % 1 + encode_events(events)).events
    assert found == events
    assert [event.positive for event in found] == [action not in NEGATIVE_ACTIONS for action in ACTIONS]
    # Without actions: 0 for interest, 1 for the contrary.
    old = b"".join(struct.pack("<qBH", 7, kind, 1) + b"a" for kind in (0, 1))
    assert decode_activity(b"%016d" % 1 + old).events == (RecentEvent("a", 7, True), RecentEvent("a", 7, False))


@pytest.mark.integration
def test_appending_keeps_the_newest_and_the_mark_rises_whatever_the_clock_says(tmp_path) -> None:
    child, url = start_redis("test", "test", tmp_path, durable=False)
    try:
        with redis.Redis.from_url(url) as client:

            def append(now_us: int, *new: RecentEvent) -> None:
                assert client.eval(APPEND_SCRIPT, 1, "k", now_us, encode_events(new), 200, 60) == 1

            append(1_700_000_000_000_000, RecentEvent("a", 1, True))
            append(1_600_000_000_000_000, RecentEvent("b", 2, False), RecentEvent("ü", 3, True))
            found = decode_activity(client.get("k"))
            assert found.mark_us == 1_700_000_000_000_001
            assert [event.item_id for event in found.events] == ["a", "b", "ü"]
            for number in range(40):
                append(1_700_000_000_000_100 + number, RecentEvent(f"item-{number:03d}", number, True))
            value = client.get("k")
            kept = decode_activity(value).events
            assert MARK_BYTES < len(value) <= MARK_BYTES + 200
            assert [event.item_id for event in kept] == [f"item-{number:03d}" for number in range(40)][-len(kept) :]
            assert len(kept) >= 8
            assert 0 < client.ttl("k") <= 60
    finally:
        child.stop()


def test_popular_items_respect_mask_and_exclusion(rng: np.random.Generator) -> None:
    count = 500
    order = rng.permutation(count).astype(np.int32)
    table = ItemTable.from_arrow(pa.table({"item_id": [f"i{n}" for n in range(count)]}), order)
    for share in (0.5, 0.02, 0.0):
        mask = rng.random(count) < share
        exclude = rng.integers(0, count, 20).astype(np.int32)
        expected = [row for row in order if mask[row] and row not in exclude][:10]
        assert table.popular(10, mask, exclude).tolist() == expected


def test_availability_reaches_masks_that_were_cached() -> None:
    items = pa.table({"item_id": ["a", "b", "c"], "categories": [["x"], ["x"], []], "available": [True, None, False]})
    table = ItemTable.from_arrow(items, np.arange(3, dtype=np.int32))
    asked = Selection(category=("x",))
    assert table.mask(asked).tolist() == [True, True, False]
    table.set_available("a", False)
    table.set_available("unknown", False)
    assert table.mask(asked).tolist() == [False, True, False]
    assert table.mask(Selection()).tolist() == [False, True, False]
    table.set_all_available(np.array([True, False, True]))
    assert table.mask(Selection(filter="available")).tolist() == [True, False, True]


def test_popularity_of_activity_counts_items_that_the_catalogue_lacks() -> None:
    items = pa.table({"item_id": ["a", "b"], "title": ["A", "B"]})
    table = ItemTable.from_activity(items, pa.table({"item_id": ["b", "x", "b", "x", "x"]}))
    assert [table.item_ids[row] for row in table.by_popularity] == ["x", "b", "a"]
    assert table.fields(table.row("x"), ["title", "nothing"]) == {"title": None, "nothing": None}


WORDS = st.lists(st.sampled_from(["x", "y", "z"]), max_size=3)
ATTRIBUTES = st.fixed_dictionaries(
    {},
    optional={
        "year": st.integers(1900, 2100),
        "price": st.floats(0, 10),
        "title": st.text(max_size=3),
        "tags": WORDS,
        "created_at": st.sampled_from(["2024-01-01T00:00:00+00:00", "2025-06-01T12:00:00+00:00"]),
        "adult": st.booleans(),
    },
)
KINDS = {
    "year": pa.int64(),
    "price": pa.float64(),
    "title": pa.string(),
    "tags": pa.list_(pa.string()),
    "created_at": pa.timestamp("us", tz="UTC"),
    "adult": pa.bool_(),
}


def read_back(table: ItemTable, item_id: str) -> dict[str, object]:
    found = table.fields(table.row(item_id), [name for name in KINDS if name in table.columns])
    return {name: value for name, value in found.items() if value is not None and value != []}


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(st.sampled_from("abcd"), ATTRIBUTES, min_size=1),
    st.dictionaries(st.sampled_from("abcdefg"), ATTRIBUTES, min_size=1),
)
def test_changed_and_added_items_read_back_and_the_others_stay(
    before: dict[str, dict[str, object]], changes: dict[str, dict[str, object]]
) -> None:
    columns = {}
    for name, kind in KINDS.items():
        values = [item.get(name) for item in before.values()]
        columns[name] = pa.array(
            [None if v is None else datetime.fromisoformat(v) for v in values] if "_at" in name else values, kind
        )
    old = ItemTable.from_arrow(pa.table({"item_id": list(before), **columns}), np.arange(len(before), dtype=np.int32)[::-1].copy())
    old.set_available(next(iter(before)), False)
    new = old.with_items(changes)
    wanted = {**before, **changes}
    assert len(new) == len(wanted)
    assert new.num_trained == len(before)
    for item_id, attributes in wanted.items():
        assert read_back(new, item_id) == {name: value for name, value in attributes.items() if value != []}
        assert new.available[new.row(item_id)] == (item_id != next(iter(before)))
    for item_id, attributes in before.items():
        assert new.row(item_id) == old.row(item_id)
        assert read_back(old, item_id) == {name: value for name, value in attributes.items() if value != []}
    assert sorted(new.by_popularity.tolist()) == list(range(len(new)))


def test_attributes_that_no_item_had_get_a_column() -> None:
    table = ItemTable.from_arrow(pa.table({"item_id": ["a"]}), np.zeros(1, np.int32))
    grown = table.with_items({"b": {"colour": "red", "sizes": ["s"], "weight": 1.5, "nothing": None}})
    assert grown.fields(0, ["colour", "sizes", "weight"]) == {"colour": None, "sizes": [], "weight": None}
    assert grown.matching('colour == "red" && "s" in sizes && weight > 1').tolist() == [False, True]


def test_a_list_that_is_written_empty_is_no_missing_one() -> None:
    table = ItemTable.from_arrow(pa.table({"item_id": ["a", "b", "c"], "tags": [[], None, ["x"]]}), np.arange(3, dtype=np.int32))
    assert table.matching("size(tags) == 0").tolist() == [True, False, False]
    grown = table.with_items({"a": {}, "b": {"tags": []}, "d": {"tags": []}, "e": {"tags": None}})
    assert grown.matching("size(tags) == 0").tolist() == [False, True, False, True, False]
    assert table.with_items({"f": {"more": []}}).matching("size(more) == 0").tolist() == [False, False, False, True]


@pytest.mark.parametrize(
    "value",
    [10**400, -(10**400), 2**63, 1e300, float("inf"), float("nan")],
    ids=["beyond floats", "below floats", "beyond int64", "1e300", "inf", "nan"],
)
def test_numbers_that_a_column_cannot_hold_count_as_lacking(value: float) -> None:
    table = ItemTable.from_arrow(pa.table({"item_id": ["a", "b"], "year": [1, 2]}), np.arange(2, dtype=np.int32))
    changed = table.with_items({"a": {"year": value, "price": value}, "b": {"year": 2**62 + 1, "price": 1}})
    assert changed.fields(0, ["year"]) == {"year": None}
    assert changed.fields(1, ["year", "price"]) == {"year": 2**62 + 1, "price": 1}
    holds = abs(value) < 1e301
    assert changed.fields(0, ["price"])["price"] == (value if holds else None)


def test_a_table_is_freed_with_its_last_reference() -> None:
    items = pa.table({"item_id": ["a", "b"], "year": [1, 2], "regions": [["es"], []], "available": [True, False]})
    table = ItemTable.from_arrow(items, np.arange(2, dtype=np.int32))
    wanted = Selection(region=("es",), filter="year > 0 && available")
    assert table.mask(wanted).tolist() == table.trained_mask(wanted).tolist() == [True, False]
    table.set_available("a", False)
    table.rows_of_hashes(table.hashes(np.arange(2)))
    newer = table.with_items({"a": {"year": 3}})
    old = weakref.ref(table)
    gc.disable()
    try:
        del table
        assert old() is None
    finally:
        gc.enable()
    assert not newer.mask(wanted).any()


def test_chains_prefer_the_first_word_and_regions_before_languages() -> None:
    items = pa.table(
        {
            "item_id": ["a", "b", "c", "d", "e"],
            "regions": [["es"], ["fr"], ["fr", "es"], [], ["us"]],
            "languages": [["en"], ["es"], ["es"], ["en"], []],
        }
    )
    table, rows = ItemTable.from_arrow(items, np.arange(5, dtype=np.int32)), np.arange(4, dtype=np.int32)
    assert table.preference(Selection(region=("es",)), rows) is None
    found = table.preference(Selection(region=("es", "fr"), language=("es", "en")), rows)
    assert found is not None
    assert found.tolist() == [1, 2, 0, 1]


def test_hashes_of_ids_lead_back_to_their_rows() -> None:
    table = ItemTable.from_arrow(pa.table({"item_id": [f"i{n}" for n in range(1000)]}), np.arange(1000, dtype=np.int32))
    other = ItemTable.from_arrow(pa.table({"item_id": [f"i{n}" for n in range(999, 500, -1)]}), np.arange(499, dtype=np.int32))
    asked = table.hashes(np.array([3, 600, 999], np.int32))
    assert sorted(table.rows_of_hashes(asked).tolist()) == [3, 600, 999]
    assert sorted(other.item_ids[row] for row in other.rows_of_hashes(asked)) == ["i600", "i999"]


def test_masks_of_selections_outlive_changes_of_availability_also_where_they_name_it() -> None:
    table = ItemTable.from_arrow(pa.table({"item_id": ["a", "b"], "year": [1, 2]}), np.arange(2, dtype=np.int32))
    kept = table.matching("year > 1")
    table.set_available("b", False)
    assert table.matching("year > 1") is kept
    assert table.passing(Selection(filter="year > 1"), np.array([0, 1], np.int32)).tolist() == [False, False]
    rows, named = np.array([0, 1], np.int32), Selection(filter="available && year > 1")
    assert table.passing(named, rows).tolist() == [False, False]
    table.set_available("b", True)
    assert table.passing(named, rows).tolist() == [False, True]
    assert not table.mask(Selection(filter="!available")).any()
    assert table.fields(1, ["available"]) == {"available": True}
    for wrong in ('available == "yes"', '"yes" in available', "size(available) > 0"):
        with pytest.raises(FilterError):
            table.matching(wrong)


def test_an_item_that_comes_back_while_a_mask_is_made_is_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    table = ItemTable.from_arrow(pa.table({"item_id": ["a", "b"], "year": [1, 2]}), np.arange(2, dtype=np.int32))
    table.set_available("b", False)

    def interrupted(expression: str) -> Filter:
        compiled = compile_filter(expression)

        def mask(columns: Mapping[str, Column], n: int) -> BoolArray:
            made = compiled.mask(columns, n)
            table.set_available("b", True)  # by the thread that follows availability
            return made

        return replace(compiled, mask=mask)

    monkeypatch.setattr("serving.item_table.compile_filter", interrupted)
    rows, named = np.array([0, 1], np.int32), Selection(filter="available && year > 1")
    table.passing(named, rows)
    assert table.passing(named, rows).tolist() == [False, True]


def test_conditions_of_rules_and_a_callers_filter_hold_together_in_one_mask() -> None:
    table = ItemTable.from_arrow(pa.table({"item_id": list("abcde"), "year": [1, 2, 3, 4, 5]}), np.arange(5, dtype=np.int32))
    asked = Selection(filter="year < 5", required=("year > 1", "year != 9"), barred=("year == 3", "year > 100"))
    assert table.mask(asked).tolist() == [False, True, False, True, False]
    assert table.mask(asked._replace(filter=None)).tolist() == [False, True, False, True, True]
    assert table.mask(Selection(barred=("year > 1",))).tolist() == [True, False, False, False, False]
    again = Selection((), (), (), "year < 5", ("year > 1", "year != 9"), ("year == 3", "year > 100"))
    assert table.mask(again) is table.mask(asked)
    table.set_available("b", False)
    assert table.mask(asked).tolist() == [False, False, False, True, False]
    assert table.mask(asked._replace(barred=("available",))).tolist() == [False] * 5


def test_a_selection_travels_and_one_without_rules_to_replicas_of_earlier_releases_too() -> None:
    capped = Selection(capped=(("brand", ("b1",), None), ("tags", None, "year < 5")))
    for asked in (
        Selection(filter="year < 5", required=("a > 1",)),
        Selection(barred=("a > 1",)),
        Selection(region=("es",)),
        capped,
    ):
        assert copy(asked) == asked
    assert Selection(region=("es",)).__reduce__() == (Selection, ((), ("es",), (), None))
