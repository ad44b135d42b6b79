"""CEL filters against a slow oracle that evaluates item by item, and errors that point at the place."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.columns import IdColumn, column_from_arrow
from serving.context_conditions import compile_condition
from serving.errors import FilterError
from serving.filters import MAX_DEPTH, MAX_LENGTH, compile_filter

ITEMS: list[dict[str, Any]] = [
    {"year": 1990, "price": 9.5, "title": "Alpha", "categories": ["Comedy"], "regions": ["DE"], "available": True},
    {"year": 2000, "price": None, "title": "Beta", "categories": ["A > B > C"], "regions": [], "available": None},
    {"year": None, "price": 0.0, "title": None, "categories": None, "regions": None, "available": False},
    {"year": 1990, "price": 20.0, "title": "Gamma ray", "categories": ["B", "Comedy"], "regions": ["FR", "DE"], "available": True},
    {"year": 2024, "price": -1.0, "title": "", "categories": [], "regions": ["US"], "available": True},
]
for number, item in enumerate(ITEMS):
    item["created_at"] = None if number == 2 else datetime(2020 + number, 1, 1, tzinfo=UTC)
TYPES = {
    "year": pa.int64(),
    "price": pa.float64(),
    "title": pa.string(),
    "categories": pa.list_(pa.string()),
    "regions": pa.list_(pa.string()),
    "available": pa.bool_(),
    "created_at": pa.timestamp("us", tz="UTC"),
}
COLUMNS = {name: column_from_arrow(pa.array([item[name] for item in ITEMS], kind)) for name, kind in TYPES.items()}


def passing(expression: str) -> list[int]:
    return np.flatnonzero(compile_filter(expression).mask(COLUMNS, len(ITEMS))).tolist()


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ('"Comedy" in categories', [0, 3]),
        ('"Comedy" in categories && year >= 1990 && available', [0, 3]),
        ('"B" in categories', [1, 3]),
        ('"A > B" in categories', [1]),
        ('"A > C" in categories', []),
        ('"DE" in regions', [0, 1, 2, 3]),
        ('"en" in languages', [0, 1, 2, 3, 4]),
        ("available", [0, 1, 3, 4]),
        ("!available", [2]),
        ("available == false", [2]),
        ("year == 1990", [0, 3]),
        ("year == 1990.0", [0, 3]),
        ("year != 1990", [1, 4]),
        ("!(year == 1990)", [1, 2, 4]),
        ("1990 < year", [1, 4]),
        ("price < 10", [0, 2, 4]),
        ("price >= -1.0 && price <= 0", [2, 4]),
        ("price > 1e1", [3]),
        ("year in [1990, 2024]", [0, 3, 4]),
        ('title in ["Alpha", "Beta"]', [0, 1]),
        ("year in []", []),
        ('title.startsWith("Ga")', [3]),
        ('title.contains("a r") || title.endsWith("eta")', [1, 3]),
        ('title == "" ', [4]),
        ("title == 'Alpha'", [0]),
        ("size(categories) > 1", [3]),
        ("categories.size() == 0", [4]),
        ("size(categories) != 1", [3, 4]),
        ("size(regions) == 0", [1, 2]),
        ("size(languages) == 0", [0, 1, 2, 3, 4]),
        ("size(nothing) == 0", []),
        ("size(title) == 5", [0]),
        ('created_at >= "2021-01-01"', [1, 3, 4]),
        ("nothing == 1", []),
        ("!(nothing == 1)", [0, 1, 2, 3, 4]),
        ('"x" in nothing', []),
        ('nothing.contains("x")', []),
        ("true", [0, 1, 2, 3, 4]),
        ("false || (true && !false)", [0, 1, 2, 3, 4]),
        ('"a \\"quoted\\" word" in categories', []),
        (r'"Com\u0065dy" in categories', [0, 3]),
        (r'"Com\U00000065d\171" in categories', [0, 3]),
        (r"title == '\x41\X6cph\141'", [0]),
        (r'title.contains("\040")', [3]),
        (r'title.contains("\\u0065") || title.contains("\"\'\`\?\a\b\f\n\r\t\v")', []),
        ("year < 9223372036854775807", [0, 1, 3, 4]),
        ("year > -9223372036854775808", [0, 1, 3, 4]),
        ("year < 1e300", [0, 1, 3, 4]),
    ],
)
def test_meaning(expression: str, expected: list[int]) -> None:
    assert passing(expression) == expected


def test_an_absent_available_reads_true() -> None:
    assert compile_filter("available").mask({}, 2).tolist() == [True, True]
    assert compile_filter("available == false").mask({}, 2).tolist() == [False, False]


def test_ids_are_looked_up() -> None:
    ids = np.array(["a", "b", "c"], dtype=object)
    columns = {"item_id": IdColumn(ids, {"a": 0, "b": 1, "c": 2})}
    for expression, expected in [
        ('item_id in ["a", "c", "z"]', [0, 2]),
        ('item_id == "b"', [1]),
        ('item_id != "b"', [0, 2]),
        ('item_id == "z"', []),
    ]:
        assert np.flatnonzero(compile_filter(expression).mask(columns, 3)).tolist() == expected
    with pytest.raises(FilterError):
        compile_filter('item_id > "a"').mask(columns, 3)


@pytest.mark.parametrize(
    ("expression", "position"),
    [
        ("", 0),
        ("year >=", 7),
        ("year >= 1990 &&", 15),
        ("(year > 1", 9),
        ("year > 1)", 8),
        ("year = 1", 5),
        ("year > 1 year", 9),
        ('title == "open', 9),
        ("5", 0),
        ('"text"', 0),
        ("size(year)", 0),
        ("year.matches(1)", 5),
        ('title.matches("x")', 6),
        ("year > title", 5),
        ("f(year)", 0),
        ("null == year", 0),
        ("$", 0),
        ('year >= "x"', 0),
        ("title > 3", 0),
        ("available > true", 0),
        ("categories == 1", 0),
        ('"x" in year', 7),
        ("created_at > 5", 0),
        ('created_at > "never"', 0),
        ("year in 5", 5),
        ("year == 99999999999999999999", 8),
        ("year < 9999999999999999999", 7),
        ("year < 9223372036854775808", 7),
        ("year > -9223372036854775809", 7),
        ("year in [1, -9999999999999999999]", 12),
        (r'title == "a\d"', 11),
        (r'title == "\u12"', 10),
        (r'title == "ab\ud83d"', 12),
        (r'title == "\U00110000"', 10),
        (r'title == "\400"', 10),
        ('title == "a\ud83d"', 11),
        (r'"x" in categories && title.startsWith("\q")', 39),
        ("[" * 1000, 1),
        ("year in [1, [2]]", 12),
        ("year in " + "[(" * 500, 136),
        ("year > 1 && " * 300 + "year >", 3606),
        ("true) || (true", 4),
        ("year < 1980) || (false", 11),
        ("(" * 100 + "true" + ")" * 100, 64),
        ("!" * 100 + "true", 63),
        ("a" * 5000, 4096),
    ],
)
def test_errors_point_at_the_place(expression: str, position: int) -> None:
    with pytest.raises(FilterError) as caught:
        passing(expression)
    assert caught.value.position == position
    assert caught.value.status == 422
    assert caught.value.to_json()["error"].items() >= {"field": "filter", "position": position}.items()


@pytest.mark.parametrize(("symbol", "expected"), [("&&", []), ("||", [0, 3])])
def test_a_chain_may_be_as_long_as_an_expression(symbol: str, expected: list[int]) -> None:
    missing = symbol.join(["a"] * ((MAX_LENGTH - 20) // 3))
    assert passing(f"{missing} {symbol} year == 1990") == expected
    true_of_context = compile_condition(symbol.join(["a"] * 1_300))
    assert true_of_context.holds({"a": True})
    assert not true_of_context.holds({"a": False})


def test_as_deep_as_may_be_is_evaluated() -> None:
    deep = "missing || true && !(" * (MAX_DEPTH // 2 - 1) + "year == 1990" + ")" * (MAX_DEPTH // 2 - 1)
    assert passing(deep) == [1, 2, 4]
    assert passing(f"({deep})") == [1, 2, 4]
    with pytest.raises(FilterError, match="nested deeper than 64"):
        passing(f"missing || (true && !({deep}))")


@pytest.mark.parametrize("value", [2**70, [-(2**70)], "\ud800", ["a", "\udc00"], [1, "a"], {"a": 1}, [{"a": 1}], [[1]], []])
def test_a_context_of_values_that_no_column_holds_is_no_match(value: object) -> None:
    assert not compile_condition("device == 1").holds({"device": value})
    assert not compile_condition('"x" in device').holds({"device": value})


Oracle = Callable[[dict[str, Any]], bool]


def _comparison(name: str, symbol: str, value: float) -> tuple[str, Oracle]:
    compare = {"==": "__eq__", "!=": "__ne__", "<": "__lt__", "<=": "__le__", ">": "__gt__", ">=": "__ge__"}[symbol]
    return (
        f"{name} {symbol} {value}",
        lambda item: item[name] is not None and bool(getattr(float(item[name]), compare)(float(value))),
    )


def _member(word: str) -> tuple[str, Oracle]:
    return f'"{word}" in categories', lambda item: any(f" > {word} > " in f" > {one} > " for one in item["categories"] or [])


leaves = st.one_of(
    st.builds(
        _comparison,
        st.sampled_from(["year", "price"]),
        st.sampled_from(["==", "!=", "<", "<=", ">", ">="]),
        st.sampled_from([-1.0, 0.0, 9.5, 1990, 2000, 2024]),
    ),
    st.builds(_member, st.sampled_from(["Comedy", "A", "B", "C", "none"])),
    st.just(("available", lambda item: item["available"] is not False)),
)


def _grow(children: st.SearchStrategy[tuple[str, Oracle]]) -> st.SearchStrategy[tuple[str, Oracle]]:
    def both(symbol: str, one: tuple[str, Oracle], other: tuple[str, Oracle]) -> tuple[str, Oracle]:
        join = all if symbol == "&&" else any
        return f"({one[0]}) {symbol} ({other[0]})", lambda item: join((one[1](item), other[1](item)))

    negated = children.map(lambda one: (f"!({one[0]})", lambda item: not one[1](item)))
    return st.one_of(st.builds(both, st.sampled_from(["&&", "||"]), children, children), negated)


@settings(max_examples=200, deadline=None)
@given(st.recursive(leaves, _grow, max_leaves=8))
def test_masks_equal_the_oracle(made: tuple[str, Oracle]) -> None:
    expression, oracle = made
    assert passing(expression) == [number for number, item in enumerate(ITEMS) if oracle(item)]


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="ye ar(&|!)[]\"'=<>.,0199-truein\\ux", max_size=30))
def test_any_text_compiles_or_is_a_filter_error(expression: str) -> None:
    with contextlib.suppress(FilterError):
        assert len(compile_filter(expression).mask(COLUMNS, len(ITEMS))) == len(ITEMS)


@pytest.mark.parametrize("value", [2**64 - 1, [2**64 - 1], ["a", 1], [[1]], {"a": 1}, None])
def test_a_context_that_a_condition_cannot_be_asked_of_is_no_match(value: Any) -> None:
    for condition in ("x > 5", '"a" in x', 'x == "a"'):
        assert not compile_condition(condition).holds({"x": value})
